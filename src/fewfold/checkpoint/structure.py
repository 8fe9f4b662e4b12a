"""The structure: which target was replaced by what, enough to rebuild the empty modules without any algorithm."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewfold.errors import CheckpointError
from fewfold.stored.dtypes import StoredDtypeName

STRUCTURE_VERSION = 1


class TargetRecord(BaseModel):
    """One replaced weight.

    ``name``, ``module``, ``part``, ``kind``, ``rows``, ``columns``, ``bias``, ``transposed``, ``scale`` and
    ``padding_idx`` are those of :class:`fewfold.surgery.targets.Target`.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    module: str
    part: str | None = None
    kind: Literal["linear", "embedding", "conv", "recurrent", "norm"]
    rows: int = Field(gt=0)
    columns: int = Field(gt=0)
    bias: bool = False
    transposed: bool = False
    scale: float = 1.0
    padding_idx: int | None = None
    method: str
    settings: dict[str, Any]
    store: str | None = None
    stored_dtype: StoredDtypeName = "fp32"
    group_size: int = 32


class StoreRecord(BaseModel):
    """Tensors that several targets share; they are in the model's body, under the store's name."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    method: str
    settings: dict[str, Any]
    stored_dtype: StoredDtypeName = "fp32"
    group_size: int = 32


class TieRecord(BaseModel):
    """A module that points at a replaced table."""

    model_config = ConfigDict(extra="forbid")

    module: str
    table: str
    role: Literal["head", "alias"]
    scale: float = 1.0


class Structure(BaseModel):
    """Everything that was replaced in one model, versioned."""

    model_config = ConfigDict(extra="forbid")

    version: int = STRUCTURE_VERSION
    targets: list[TargetRecord] = Field(default_factory=list)
    stores: list[StoreRecord] = Field(default_factory=list)
    ties: list[TieRecord] = Field(default_factory=list)
    provenance: dict[str, Any] = Field(default_factory=dict)

    def record(self, name: str) -> TargetRecord | None:
        """The record of this target, if it was replaced."""
        return next((record for record in self.targets if record.name == name), None)


def parse_structure(data: Any) -> Structure:
    """A structure from the ``quantization_config`` of a config.json.

    :raises CheckpointError: naming the version or the entry that cannot be used.
    """
    if not isinstance(data, dict):
        raise CheckpointError(f"the fewfold structure in config.json is a {type(data).__name__}, not an object")
    version = data.get("version")
    if version != STRUCTURE_VERSION:
        raise CheckpointError(
            f"this checkpoint's structure has version {version!r}; this fewfold reads version {STRUCTURE_VERSION}. "
            "Install a fewfold that wrote it (see its model card), or update fewfold"
        )
    try:
        structure = Structure.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(piece) for piece in first["loc"])
        raise CheckpointError(
            f"the fewfold structure in config.json is damaged at {place}: {first['msg']} (got {first.get('input')!r})"
        ) from None
    names = Counter(record.name for record in structure.targets)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise CheckpointError(f"the fewfold structure in config.json is damaged: it replaces {twice} twice")
    stores = Counter(record.name for record in structure.stores)
    twice = next((name for name, count in stores.items() if count > 1), None)
    if twice is not None:
        raise CheckpointError(f"the fewfold structure in config.json is damaged: it has two stores {twice}")
    for record in structure.targets:
        if record.store is not None and record.store not in stores:
            raise CheckpointError(
                f"the fewfold structure in config.json is damaged: {record.name} is assembled from the store "
                f"{record.store}, which it does not have"
            )
    return structure
