"""TensorTrain: slices as trains of small cores, all but the first of them shared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewfold.methods.slices.config import SliceConfig


class TensorTrain(SliceConfig):
    """Replace slices of many layers by tensor trains: ``W_s[i₁i₂, j₁j₂] ≈ Σ_r head_s[i₁, j₁, r] · core[r, i₂, j₂]``.

    Rows and columns are split into ``cores`` factors each (Oseledets 2011); the first core is each slice's own, or
    mixed from a bank, the others are common to all. Stores few numbers; multiplying through it costs more than the
    shared factors do, so that it usually runs rebuilt.
    """

    method: Literal["tensor_train"] = "tensor_train"
    rank: int | None = Field(None, ge=1, description="largest rank between two cores (None: a budget chooses)")
    cores: int = Field(2, ge=2, le=6, description="cores in a train: factors that rows and columns are split into")
    bank: int | None = Field(None, ge=1, description="first cores are mixed from this many (None: each its own)")
