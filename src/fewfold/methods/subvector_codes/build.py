"""Empty modules and stores from what the structure records of codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from fewfold.assembled import Assembled
from fewfold.methods.subvector_codes.modules import CodedEmbedding, CodedLinear
from fewfold.store import Store
from fewfold.stored import StoredDtype, StoredMatrix
from fewfold.stored.stages import StageSpec
from fewfold.surgery.targets import Target

KNOWN = {"stages", "scales", "rank", "mean_row", "map", "codebooks"}


class CodebookStore(Store):
    """Owns codebooks that several coded matrices share.

    :param codebooks: by name, the number of sub-vectors and their width.
    """

    def __init__(self, codebooks: Mapping[str, tuple[int, int]], stored: StoredDtype) -> None:
        super().__init__()
        self.codebooks = nn.ModuleDict(
            {name: StoredMatrix(width, count, stored) for name, (count, width) in codebooks.items()}
        )

    def leaf(self, name: str, stage: StageSpec, columns: int) -> nn.Module:
        """The codebook of a stage.

        :raises ValueError: if there is none of this name, or it has another shape.
        """
        if name not in self.codebooks:
            raise ValueError(f"the store has no codebook {name!r}; it has {', '.join(self.codebooks)}")
        leaf: Any = self.codebooks[name]
        wanted = (stage.codebook_rows(columns), stage.width)
        if leaf.matrix_shape != wanted:
            raise ValueError(f"codebook {name} has {leaf.matrix_shape} sub-vectors and width, the stage needs {wanted}")
        return leaf


def build_codebooks(settings: Mapping[str, Any], stored: StoredDtype) -> CodebookStore:
    """The empty store of recorded settings: ``{"codebooks": {name: [count, width]}}``."""
    return CodebookStore({name: (count, width) for name, (count, width) in settings["codebooks"].items()}, stored)


def build_coded(
    target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
) -> Assembled:
    """The empty module that stands for ``target``.

    :param settings: ``stages`` (a list of :class:`StageSpec` as dicts); ``scales`` (bool); of a table, ``rank`` (None:
        no map after the codes), ``mean_row`` (bool, True) and ``map`` (its stored dtype, as the codebooks'); with a
        store, ``codebooks`` (by stage, a name or None).
    :raises ValueError: naming the setting that does not fit the target.
    """
    known = KNOWN if target.kind == "embedding" else KNOWN - {"rank", "mean_row", "map"}
    if not set(settings) <= {key for key in KNOWN if key in known or settings.get(key) is None}:
        raise ValueError(f"{target.name} takes {', '.join(sorted(known))}; got {', '.join(sorted(settings))}")
    stages = [StageSpec.from_dict(values) for values in settings.get("stages") or ()]
    if not stages:
        raise ValueError(f"{target.name} needs at least one stage")
    rank = settings.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= target.columns):
        raise ValueError(f"rank={rank!r}: codes of {target.name} have 1…{target.columns} columns")
    columns = rank or target.columns
    for stage in stages:
        if stage.width > columns:
            raise ValueError(f"width={stage.width}: {target.name} has rows of {columns}; sub-vectors are no wider")
        if stage.rows is not None and stage.rows > target.rows:
            raise ValueError(f"rows={stage.rows}: {target.name} has {target.rows}; a stage covers no more")
    books = _codebooks(stages, columns, settings.get("codebooks"), store)
    scales = bool(settings.get("scales", False))
    if target.kind == "embedding":
        kept = StoredDtype(settings.get("map", stored.name), stored.group)
        return CodedEmbedding(
            target.rows, target.columns, stages, rank, target.padding_idx, target.scale, scales, stored,
            bool(settings.get("mean_row", True)), books, store, kept,
        )  # fmt: skip
    return CodedLinear(target.columns, target.rows, stages, target.bias, scales, stored, books, store)


def _codebooks(stages: list[StageSpec], columns: int, names: Any, store: Store | None) -> list[nn.Module | None] | None:
    if names is None:
        return None
    if not isinstance(store, CodebookStore):
        raise ValueError(f"codebooks={names} lie in a store, and the record names none")
    if not isinstance(names, list) or len(names) != len(stages):
        raise ValueError(f"codebooks={names}: give a name or null for each of {len(stages)} stages")
    return [
        None if name is None else store.leaf(name, stage, columns) for name, stage in zip(names, stages, strict=True)
    ]
