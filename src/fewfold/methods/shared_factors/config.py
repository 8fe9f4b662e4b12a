"""SharedFactors: W_i ≈ U · Σ_i · V with U and V common to all slices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewfold.methods.slices.config import SliceConfig


class FactoredConfig(SliceConfig):
    """What SharedFactors and Tucker have in common."""

    rank: int | tuple[int, int] | None = Field(
        None, description="rank of both factors, or of rows and columns (None: a budget chooses one for both)"
    )
    multiple_of: int = Field(8, ge=1, description="ranks that a budget chooses are multiples of this")
    coupled: bool = Field(
        False,
        description="groups of different shapes share the factor of the side that they have in common, the model's "
        "width (implies orientation='residual')",
    )
    weighting: Literal["auto", "none", "inputs", "inputs_and_outputs"] = Field(
        "auto",
        description="what the fit minimises: 'none' the weights' error, 'inputs' that of the layers' outputs, "
        "'inputs_and_outputs' that as the model's output sees it (moments averaged per shared side); 'auto' is the "
        "best that the calibration data allows",
    )
    normalise: bool = Field(
        True, description="slices weigh by their share in the error, not by their norm (uncalibrated fits: all alike)"
    )
    sweeps: int = Field(3, ge=0, description="at most this many alternating sweeps after the start (0: HOSVD)")


class SharedFactors(FactoredConfig):
    """Replace the weights of many layers by two shared factors and one small core a slice: ``W_i ≈ U · Σ_i · V``.

    Method III of Ren et al., Exploring Extreme Parameter Compression for Pre-trained Language Models (ICLR 2022); the
    same numbers as a tensor train with the slices in the middle. Stores ``slices · d² + 2 · D · d`` numbers.
    """

    method: Literal["shared_factors"] = "shared_factors"
