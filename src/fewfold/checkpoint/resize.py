"""``resize_token_embeddings`` on compressed models: transformers' own method, taught our tables and heads.

transformers insists on ``nn.Embedding`` and ``nn.Linear`` there. The wrappers below serve assembled tables and heads
and pass everything else through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fewfold.assembled import Assembled, AssembledEmbedding, AssembledLinear
from fewfold.checkpoint.config import FewfoldConfig, structure_of
from fewfold.checkpoint.rebuild import resolve
from fewfold.errors import TargetError
from fewfold.store import stores_of
from fewfold.surgery.ties import EmbeddingAlias, TiedHead


def install_resizing() -> None:
    """Wrap the three methods of PreTrainedModel that resizing consists of; doing it twice is harmless."""
    if getattr(PreTrainedModel._resize_token_embeddings, "_fewfold", False):
        return
    for name, wrapper in (
        ("_resize_token_embeddings", _resizing),
        ("_get_resized_embeddings", _resizing_table),
        ("_get_resized_lm_head", _resizing_head),
    ):
        wrapped = wrapper(getattr(PreTrainedModel, name))
        wrapped._fewfold = True
        setattr(PreTrainedModel, name, wrapped)


def _resizing(original: Any) -> Any:
    @wraps(original)
    def _resize_token_embeddings(self: Any, *args: Any, **kwargs: Any) -> Any:
        with resizing(self):
            original(self, *args, **kwargs)
        return self.get_input_embeddings()

    return _resize_token_embeddings


@contextmanager
def resizing(model: Any) -> Iterator[None]:
    """Rows of tables and heads may change inside; of a compressed model, pointers and the record follow.

    :raises TargetError: if a table or head cannot change its number of rows.
    """
    if structure_of(model) is None:
        yield
        return
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        _refuse_unless_resizable(module)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    pointers = {name: module for name, module in model.named_modules() if isinstance(module, TiedHead | EmbeddingAlias)}
    yield
    # set_input_embeddings puts the table itself where pointers stood; two owners would be saved twice
    for name, pointer in pointers.items():
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = pointer
        pointer.weight = pointer.table.weight.new_empty(pointer.table.num_embeddings, 0)
    # the method copies requires_grad from .weight, which is only a placeholder here
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained.get(name, parameter.requires_grad))
    record_sizes(model)


def _refuse_unless_resizable(module: nn.Module | None) -> None:
    table = module.table if isinstance(module, TiedHead | EmbeddingAlias) else module
    for base in (AssembledEmbedding, AssembledLinear):
        if isinstance(table, base) and type(table).resize is base.resize:
            raise TargetError(
                f"{type(table).__name__} cannot change its number of rows: densify the model, resize it, compress again"
            )


def _resizing_table(original: Any) -> Any:
    @wraps(original)
    def _get_resized_embeddings(
        self: Any, old: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        table = old.table if isinstance(old, EmbeddingAlias) else old
        if not isinstance(table, AssembledEmbedding):
            return original(self, old, new_num_tokens, pad_to_multiple_of, *args, **kwargs)
        rows = table.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        if rows != table.num_embeddings:
            table.resize(rows)
            table.weight = table.weight.new_empty(rows, 0)
        return old

    return _get_resized_embeddings


def _resizing_head(original: Any) -> Any:
    @wraps(original)
    def _get_resized_lm_head(
        self: Any, old: Any, new_num_tokens: int | None = None, transposed: bool = False, mean_resizing: bool = True,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        if not isinstance(old, TiedHead | AssembledLinear):
            return original(self, old, new_num_tokens, transposed, mean_resizing, **kwargs)
        if new_num_tokens is None:
            return old
        if isinstance(old, AssembledLinear):
            if new_num_tokens != old.out_features:
                old.resize(new_num_tokens)
                old.weight = old.weight.new_empty(new_num_tokens, 0)
        elif old.bias is not None and old.bias.shape[0] != new_num_tokens:
            old.bias = _resized_bias(old.bias, new_num_tokens, mean_resizing)
        return old

    return _get_resized_lm_head


@torch.no_grad()
def _resized_bias(bias: nn.Parameter, rows: int, mean: bool) -> nn.Parameter:
    kept = bias[:rows]
    filling = bias.mean() if mean else bias.new_zeros(())
    added = filling.expand(rows - kept.shape[0])
    return nn.Parameter(torch.cat([kept, added]), bias.requires_grad)


def record_sizes(model: nn.Module) -> None:
    """Write the present numbers of rows into the structure that the model's config carries."""
    structure = structure_of(model)
    config: Any = getattr(model, "config", None)
    if structure is None or config is None:
        return
    records = []
    for record in structure.targets:
        name = resolve(model, record.module)
        module = None if name is None else model.get_submodule(name)
        changes: dict[str, Any] = {}
        if isinstance(module, AssembledEmbedding):
            changes = {"rows": module.num_embeddings, "padding_idx": module.padding_idx}
        elif isinstance(module, AssembledLinear):
            changes = {"rows": module.out_features}
        if changes and isinstance(module, Assembled):
            changes["settings"] = {**record.settings, **module.resized_settings()}
        records.append(record.model_copy(update=changes))
    present = stores_of(model)
    stores = [
        record.model_copy(update={"settings": {**record.settings, **present[record.name].resized_settings()}})
        if record.name in present  # a body that was loaded without its head lacks the head's stores
        else record
        for record in structure.stores
    ]
    config.quantization_config = FewfoldConfig(structure.model_copy(update={"targets": records, "stores": stores}))
