"""Slim tables in any transformers model: every embedding, and the heads tied to it, of few shared sub-vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fewfold.checkpoint.config import carry
from fewfold.checkpoint.rebuild import record_of, ties_of
from fewfold.checkpoint.structure import Structure
from fewfold.errors import TargetError
from fewfold.methods.registry import method_named
from fewfold.models.slim import SlimCodes
from fewfold.models.slim.embedding import slim_matrix
from fewfold.stored import StoredDtype
from fewfold.surgery.replace import replace_modules
from fewfold.surgery.targets import Target, find_targets, is_token_table

METHOD = "subvector_codes"


@dataclass(frozen=True)
class SlimTables:
    """Sizes of slim tables (Li et al., AAAI 2018): random balanced codes that stay, sub-vectors that train.

    :param ratio: By how much a table's numbers shrink; codes are no numbers, they count in bytes.
    :param positions: Sub-vectors of a word.
    :param seed: Of the codes.
    """

    ratio: float = 10.0
    positions: int = 8
    seed: int = 0

    def codes(self, rows: int, columns: int, number: int = 0) -> SlimCodes:
        """The codes of a model's table with this number.

        :raises ModelError: If its rows cannot be cut, or the ratio cannot be had.
        """
        return SlimCodes.sized(rows, columns, self.positions, ratio=self.ratio, seed=self.seed + number)


@torch.no_grad()
def make_slim(model: Any, slim: SlimTables) -> Any:
    """Replace every embedding of a model by a fresh slim one, in place; what is tied to it stays tied.

    Sub-vectors begin with the standard deviation of the table that they replace. The structure goes into the config, so
    that what is saved reloads through the Auto classes.

    :param model: A dense transformers model, not trained yet.
    :param slim: The sizes.
    :return: The model.
    :raises TargetError: If it has no embedding.
    :raises ModelError: If the sizes do not fit one.
    """
    targets = [target for target in find_targets(model) if _is_table_of_tokens(model, target)]
    if not targets:
        raise TargetError(f"{type(model).__name__} has no embedding that could be made slim")
    method, stored, records, built = method_named(METHOD), StoredDtype("fp32"), [], []
    for place, target in enumerate(targets):
        dense: nn.Embedding = model.get_submodule(target.module)
        codes = slim.codes(target.rows, target.columns, place)
        settings = {"stages": [codes.stage(target.columns).to_dict()], "scales": False, "rank": None}
        module: Any = method.build(target, settings, stored)
        module.coded = slim_matrix(target.rows, target.columns, codes, float(dense.weight.std()))
        built.append((target, module.to(dense.weight.dtype)))
        records.append(record_of(target, METHOD, settings, stored))
    replace_modules(model, built)
    carry(model, Structure(targets=records, ties=ties_of(targets), provenance={"slim": asdict(slim)}))
    return model


def _is_table_of_tokens(model: Any, target: Target) -> bool:
    """Whether a target is looked up by token ids, of the decoder's side too; tables of positions are not."""
    if target.kind != "embedding" or target.refusal is not None:
        return False
    sizes = (model.config.vocab_size, getattr(model.config, "decoder_vocab_size", None))
    return is_token_table(model, target) or target.rows in sizes
