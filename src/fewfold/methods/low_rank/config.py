"""LowRank: one matrix as the product of two narrow ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewfold.methods.base import MethodConfig


class LowRank(MethodConfig):
    """Replace a weight by two factors of rank ``rank``: ``W ≈ up · down`` (a table: ``latents · up``ᵀ).

    Calibrated, the fit minimises the error of the layer's output on real inputs, seen by the model's final output;
    uncalibrated (``weighting="none"``), it is the truncated SVD of the weight.
    """

    method: Literal["low_rank"] = "low_rank"
    rank: int | None = Field(None, ge=1, description="the rank of every target (None: a budget chooses)")
    multiple_of: int = Field(1, ge=1, description="ranks that a budget chooses are multiples of this")
    square_core: bool = Field(
        False, description="a square core between the factors, W = up · core · down (a linear map's; for training)"
    )
    weighting: Literal["auto", "none", "inputs", "inputs_and_outputs"] = Field(
        "auto",
        description="what the fit minimises: 'none' the weight's error (plain SVD), 'inputs' the error of the "
        "layer's output, 'inputs_and_outputs' that error as the model's final output sees it; 'auto' is the best "
        "that the calibration data allows",
    )
    count_power: float = Field(
        1.0, ge=0, le=1, description="tables: rows weigh (smoothed token count) to this power; 0 weighs all equally"
    )
