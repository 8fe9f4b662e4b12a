"""Weights that several modules use: tied heads and shared tables, kept tied after replacement."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fewfold.assembled import AssembledEmbedding


@dataclass(frozen=True)
class Tie:
    """A module that uses another module's weight.

    :param module: its name.
    :param role: ``head`` multiplies by the transposed table, ``alias`` looks rows up.
    :param scale: factor of an alias's rows.
    """

    module: str
    role: Literal["head", "alias"]
    scale: float = 1.0


def find_ties(model: nn.Module) -> dict[str, list[Tie]]:
    """By the name of the embedding that is a weight's home: the other modules that use the same Parameter."""
    users: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, module in model.named_modules():
        weight = getattr(module, "_parameters", {}).get("weight")
        if isinstance(module, nn.Embedding | nn.Linear) and weight is not None:
            users[id(weight)].append((name, module))
    ties: dict[str, list[Tie]] = {}
    for group in users.values():
        home = next((name for name, module in group if isinstance(module, nn.Embedding)), None)
        if home is None or len(group) < 2:
            continue
        ties[home] = [
            Tie(name, "alias" if isinstance(module, nn.Embedding) else "head", _scale(module))
            for name, module in group
            if name != home
        ]
    for name, module in model.named_modules():
        if isinstance(module, TiedHead | EmbeddingAlias):
            home = next(key for key, other in model.named_modules() if other is module.table)
            role: Literal["head", "alias"] = "head" if isinstance(module, TiedHead) else "alias"
            ties.setdefault(home, []).append(Tie(name, role, getattr(module, "scale", 1.0)))
    return ties


def tied_linears(model: nn.Module) -> dict[str, str]:
    """By the name of a linear layer that shares its weight with other linear layers alone: one of those."""
    users: dict[int, list[str]] = defaultdict(list)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(module, nn.Linear | Conv1D) and weight is not None and id(weight) not in tables:
            users[id(weight)].append(name)
    return {name: group[name == group[0]] for group in users.values() if len(group) > 1 for name in group}


def declared_ties(model: nn.Module) -> dict[str, list[Tie]]:
    """As :func:`find_ties`, from what the model's class declares: on an empty skeleton nothing is tied yet."""
    groups: dict[str, set[str]] = defaultdict(set)
    for user, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if user.endswith(".weight") and source.endswith(".weight"):
            groups[source] |= {user.removesuffix(".weight"), source.removesuffix(".weight")}
    ties: dict[str, list[Tie]] = {}
    for group in groups.values():
        modules = {name: model.get_submodule(name) for name in sorted(group)}
        for home in (name for name, module in modules.items() if isinstance(module, nn.Embedding)):
            ties[home] = [
                Tie(name, "alias" if isinstance(module, nn.Embedding) else "head", _scale(module))
                for name, module in modules.items()
                if name != home and isinstance(module, nn.Embedding | nn.Linear)
            ]
    return ties


def _scale(module: nn.Module) -> float:
    scale = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", 1.0))
    return float(scale) if isinstance(scale, int | float) else 1.0


class _Pointer(nn.Module):
    """Uses another module's table without registering it, so that its tensors are saved once."""

    weight: Tensor

    def __init__(self, table: AssembledEmbedding) -> None:
        super().__init__()
        self.register_buffer("weight", table.weight.new_empty(table.num_embeddings, 0))
        self._table: tuple[AssembledEmbedding, ...] = (table,)
        self.original: tuple[nn.Module, ...] = ()

    @property
    def table(self) -> AssembledEmbedding:
        """The module that owns the table."""
        return self._table[0]


class TiedHead(_Pointer):
    """An output head that multiplies by an assembled embedding: ``(…, dim)`` to ``(…, vocab)``."""

    def __init__(self, table: AssembledEmbedding, bias: nn.Parameter | None) -> None:
        super().__init__(table)
        self.bias = bias

    @property
    def out_features(self) -> int:
        """Vocabulary size."""
        return self.table.num_embeddings

    @property
    def in_features(self) -> int:
        """Hidden size."""
        return self.table.embedding_dim

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Logits."""
        logits = self.table.attend(hidden_states)
        return logits if self.bias is None else logits + self.bias


class EmbeddingAlias(_Pointer):
    """A second look-up into an assembled embedding (the encoder's and decoder's tables of T5 and BART)."""

    def __init__(self, table: AssembledEmbedding, scale: float, padding_idx: int | None) -> None:
        super().__init__(table)
        self.scale, self.padding_idx = scale, padding_idx

    @property
    def num_embeddings(self) -> int:
        """Vocabulary size."""
        return self.table.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Row width."""
        return self.table.embedding_dim

    def forward(self, input_ids: Tensor) -> Tensor:
        """Rows of the shared table times this look-up's own scale."""
        rows = self.table(input_ids)
        factor = self.scale / self.table.scale
        return rows if factor == 1.0 else rows * factor


def drop_tie_declarations(model: nn.Module, module_names: set[str]) -> None:
    """Tell transformers that these modules' ``weight`` is no longer tied by it (pointers tie them now)."""
    for prefix, module in model.named_modules():
        if not isinstance(module, PreTrainedModel):
            continue
        offset = f"{prefix}." if prefix else ""
        gone = {name[len(offset) :] for name in module_names if name.startswith(offset)}
        _without(module, "_tied_weights_keys", gone)
        _without(module, "all_tied_weights_keys", gone)


_BEFORE = "_fewfold_ties_before"  # a model's own declaration, None where its class's counts


def _without(module: Any, attribute: str, gone: set[str]) -> None:
    keys = getattr(module, attribute, None)
    if not isinstance(keys, dict):
        return
    weights = {f"{name}.weight" for name in gone}
    kept = {target: source for target, source in keys.items() if target not in weights and source not in weights}
    if kept != keys:
        if attribute == "_tied_weights_keys":
            module.__dict__.setdefault(_BEFORE, vars(module).get(attribute))
        setattr(module, attribute, kept)


def untie(model: nn.Module) -> None:
    """Let a model's config say that its head has a weight of its own."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.tie_word_embeddings = False


def restore_tie_declarations(model: nn.Module) -> None:
    """Undo :func:`drop_tie_declarations`: the classes' own declarations count again, where they hold.

    A class may declare a tie that its weights do not have (T5 v1.1 has a head of its own): such a one stays undeclared.
    """
    pretrained = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    for module in pretrained:
        if _BEFORE in module.__dict__:
            before = module.__dict__.pop(_BEFORE)
            module.__dict__.pop("_tied_weights_keys", None)
            if before is not None:  # some families declare ties when a model is made (Marian)
                module.__dict__["_tied_weights_keys"] = before
    for module in pretrained:
        declared = module.get_expanded_tied_weights_keys(all_submodels=True)
        module.all_tied_weights_keys = {
            user: source
            for user, source in declared.items()
            if module.get_parameter_or_buffer(user) is module.get_parameter_or_buffer(source)
        }
