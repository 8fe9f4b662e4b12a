"""Keeping a weight dense: there is nothing to choose and nothing to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fewfold.assembled import Assembled
from fewfold.calibration.statistics import Statistics
from fewfold.methods.base import Cost, Method, Unit
from fewfold.methods.dense.config import Dense
from fewfold.methods.dense.modules import DenseEmbedding, DenseLinear
from fewfold.store import Store
from fewfold.stored import StoredDtype
from fewfold.surgery.targets import Target


class DenseMethod(Method):
    """One matrix, kept in fewer bits."""

    name = "dense"
    config = Dense

    def check(self, unit: Unit) -> None:
        """Anything goes."""

    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The stored dtype is the config's; there are no settings."""
        return {}

    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """One."""
        return [{}]

    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """All numbers of the weight, in the bytes of its stored dtype."""
        (target,) = unit.targets
        size = unit.config.stored.matrix_bytes(target.rows, target.columns, element_size)
        return Cost(target.numel, size, target.dense_macs)

    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """0: rounding is not weighed against other targets."""
        return [0.0] * len(sizes)

    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """The weight itself."""
        return {target.name: {"full.weight": weights[target.name]} for target in unit.targets}

    def build(
        self, target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
    ) -> Assembled:
        """An empty module that keeps one matrix."""
        if settings:
            raise ValueError("the dense method has no settings")
        if target.kind == "embedding":
            return DenseEmbedding(target.rows, target.columns, target.padding_idx, target.scale, stored)
        return DenseLinear(target.columns, target.rows, target.bias, stored)
