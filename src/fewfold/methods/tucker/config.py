"""Tucker: W_i ≈ U · (Σ_j P_ij C_j) · V."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewfold.methods.shared_factors.config import FactoredConfig


class Tucker(FactoredConfig):
    """Shared factors whose cores are mixed from a bank: ``W_i ≈ U · (Σ_j P_ij C_j) · V``.

    Method IV of Ren et al., Exploring Extreme Parameter Compression for Pre-trained Language Models (ICLR 2022), a
    Tucker decomposition of the stack of all slices. Stores ``l · d² + slices · l + 2 · D · d`` numbers; speed depends
    on ``d`` alone.
    """

    method: Literal["tucker"] = "tucker"
    bank: int | None = Field(None, ge=1, description="l, the number of cores (None: a budget chooses)")
