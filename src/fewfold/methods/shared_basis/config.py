"""SharedBasis: W_l ≈ A_l · B with B common to a group of neighbouring layers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fewfold.methods.base import MethodConfig


class SharedBasis(MethodConfig):
    """Weights of one kind in ``group`` neighbouring layers share a basis; each layer keeps its coefficients.

    Wang et al., Basis Sharing: Cross-Layer Parameter Sharing for Large Language Model Compression (ICLR 2025). Stores
    ``rank · (in + n · out)`` numbers for ``n`` weights; with ``group=1`` it is calibrated low rank.
    """

    method: Literal["shared_basis"] = "shared_basis"
    rank: int | None = Field(None, ge=1, description="the rank of every group (None: a budget chooses, or keep)")
    keep: float | None = Field(
        None, gt=0, le=1, description="the fraction of every group's numbers that is kept, instead of a rank: "
        "the published rule, floor(keep · n · in · out / (in + n · out))"
    )  # fmt: skip
    multiple_of: int = Field(1, ge=1, description="ranks that a budget chooses are multiples of this")
    group: int = Field(2, ge=1, description="neighbouring layers that share a basis")
    writers: Literal["apart", "inputs", "outputs"] = Field(
        "outputs",
        description="weights that write to the residual stream (attention output, second feed-forward weight): 'apart' "
        "has a basis a layer, as published; 'inputs' shares as elsewhere; 'outputs' shares the side that is written",
    )
    families: bool = Field(
        False, description="one basis for all weights that read the same input (q, k and v; gate and up), read once"
    )
    weighting: Literal["auto", "none", "inputs", "inputs_and_outputs"] = Field(
        "auto",
        description="what the fit minimises: 'none' the weights' error, 'inputs' that of the layers' outputs on inputs "
        "pooled over the group, 'inputs_and_outputs' that as the model's output sees it; 'auto' is the best that the "
        "calibration data allows",
    )
    refit: bool = Field(
        True, description="fit every layer's coefficients once more to what it alone reads (in sequence: to what the "
        "compressed layers before it give); 'writers' on the outputs' side: to its own output metric"
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_size(self) -> SharedBasis:
        if self.rank is not None and self.keep is not None:
            raise ValueError(f"rank={self.rank} and keep={self.keep} both fix the size; give one of them")
        return self
