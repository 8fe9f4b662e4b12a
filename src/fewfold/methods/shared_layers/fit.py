"""Fitting blocks, and what every layer keeps of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewfold.assembled import Assembled
from fewfold.calibration.statistics import Statistics
from fewfold.errors import TargetError
from fewfold.linalg.low_rank import LowRankFactors
from fewfold.linalg.round_factors import balance
from fewfold.linalg.shared_mean import shared_with_differences
from fewfold.methods.base import STORE, Cost, Method, MethodConfig, Records, Unit
from fewfold.methods.shared_layers.config import SharedLayers
from fewfold.methods.shared_layers.fresh import begin_norm
from fewfold.methods.shared_layers.layout import mean_of_vectors, units_of
from fewfold.methods.shared_layers.modules import BlockStore, NormStore, SharedAffine, SharedLinear, SharedNorm
from fewfold.methods.shared_layers.places import role_of
from fewfold.methods.shared_layers.refit import refit
from fewfold.methods.shared_layers.sizes import (
    config_of,
    difference_form,
    full_rank,
    gains_of,
    is_norm,
    layout_of,
    moments_of,
    ranks_of,
    start_of,
)
from fewfold.store import Store
from fewfold.stored import StoredDtype
from fewfold.surgery.targets import Target


class SharedLayersMethod(Method):
    """``W_l ≈ W'_g(l) + B_l A_l``."""

    name = "shared_layers"
    config = SharedLayers

    def takes(self, config: MethodConfig, targets: Sequence[Target]) -> list[Target]:
        """The config's parts of the targets that lie in layers."""
        assert isinstance(config, SharedLayers)
        found = [t for t in targets if t.kind == "linear" and t.layer is not None and role_of(t) in config.roles]
        if not found:
            roles = sorted({role_of(t) for t in targets if t.kind == "linear" and t.layer is not None})
            raise TargetError(
                f"SharedLayers(parts={config.parts!r}): none of the {len(targets)} chosen weights, "
                f"{targets[0].name} …, is such a part of a layer; the parts there are {', '.join(roles) or 'none'}"
            )
        return found

    def units_in(self, model: nn.Module, config: MethodConfig, targets: Sequence[Target], width: int) -> list[Unit]:
        """One unit for everything that a block stands for: a place in the layers."""
        assert isinstance(config, SharedLayers)
        return units_of(self.name, model, config, targets)

    def check(self, unit: Unit) -> None:
        """The map was checked with the stacks."""

    def calibrates(self, unit: Unit) -> Literal["nothing", "inputs", "inputs and gradients"]:
        """Inputs, unless the weighting is none; norms need nothing."""
        return "nothing" if config_of(unit).weighting == "none" or is_norm(unit) else "inputs"

    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The config's rank for every layer; a norm, or a block that serves one layer, has nothing to choose."""
        if is_norm(unit):
            return {}
        if len(unit.targets) == 1:
            return {"ranks": [0]}
        rank = config_of(unit).delta_rank
        return None if rank is None else {"ranks": [min(rank, full_rank(unit))] * len(unit.targets)}

    def unbudgeted(self, unit: Unit) -> Mapping[str, Any]:
        """Strict sharing."""
        return {"ranks": [0] * len(unit.targets)}

    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """No differences, then ever more ranks of all layers together, as long as that costs less than dense."""
        step, target = config_of(unit).multiple_of, unit.targets[0]
        most = (unit.dense_parameters - target.numel - 1) // (target.rows + target.columns)
        most = min(most, full_rank(unit) * len(unit.targets))
        return [{"total": total} for total in range(0, max(most, 0) + 1, step)]

    def may_stay_dense(self, unit: Unit) -> bool:
        """Not where its weights are turned together with others: a bundle is turned whole or not at all."""
        return is_norm(unit) or not layout_of(unit).alignment.may_turn(unit.targets)

    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """The block once, every difference; all of them are multiplied in every layer.

        Before ranks are settled, the bytes of integer forms are those of the worst division among the layers.
        """
        target, count, stored = unit.targets[0], len(unit.targets), unit.config.stored
        if is_norm(unit):
            numbers = target.rows * (2 if target.bias else 1)
            return Cost(numbers, numbers * element_size, 0)
        ranks = ranks_of(unit, settings)
        total, form = sum(ranks), difference_form(config_of(unit))
        sides = target.rows + target.columns
        size = stored.matrix_bytes(target.rows, target.columns, element_size)
        parts = [total, *[1] * (count - 1)] if "total" in settings and form.is_integer else ranks
        size += form.matrix_bytes(total, target.columns, element_size)
        size += sum(form.matrix_bytes(target.rows, rank, element_size) for rank in parts if rank and total)
        return Cost(target.numel + total * sides, size, count * target.numel + total * sides)

    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """What differences from the block as it begins leave, summed over the layers."""
        gains = torch.cat(gains_of(unit, weights, statistics)).sort(descending=True).values
        left = gains.sum() - torch.cat([gains.new_zeros(1), gains.cumsum(0)])
        return [max(float(left[size["total"]]), 0.0) for size in sizes]

    def settle(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> Mapping[str, Any]:
        """Gives the ranks that a budget chose to the layers that gain most by them."""
        if "total" not in settings:
            return settings
        gains = gains_of(unit, weights, statistics)
        owners = torch.cat([torch.full((len(own),), number) for number, own in enumerate(gains)])
        chosen = owners[torch.cat(gains).argsort(descending=True, stable=True)[: settings["total"]]]
        return {"ranks": torch.bincount(chosen, minlength=len(gains)).tolist()}

    def notes(self, targets: int, stores: int) -> list[str]:
        """What sharing saves, and what it does not."""
        return [
            f"shared layers: {targets} weights run from {stores} blocks. That saves parameters, bytes on disk and "
            "memory for weights; multiply-accumulates, activations, caches and latency stay those of all layers"
        ]

    def store_name(self, unit: Unit) -> str:
        """The place and the block."""
        return layout_of(unit).group.name

    def records(self, unit: Unit, settings: Mapping[str, Any]) -> Records:
        """Each layer's rank; the block's sizes."""
        first, config = unit.targets[0], config_of(unit)
        shared = config.norms_and_biases == "shared" and first.bias
        if is_norm(unit):
            return Records({t.name: {} for t in unit.targets}, {"norm": first.rows, "bias": first.bias})
        targets: dict[str, dict[str, Any]] = {}
        for target, rank in zip(unit.targets, ranks_of(unit, settings), strict=True):
            targets[target.name] = {"rank": rank}
            if rank and config.difference_dtype is not None:
                targets[target.name]["difference_dtype"] = config.difference_dtype
            if shared:
                targets[target.name]["bias"] = "shared"
        return Records(targets, {"rows": first.rows, "columns": first.columns, "bias": shared})

    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """The block, the differences and the biases."""
        if is_norm(unit):
            return _fit_norm(unit, weights)
        layout, config, ranks = layout_of(unit), config_of(unit), ranks_of(unit, settings)
        own, moments = layout.weights(weights), moments_of(unit, weights, statistics)
        start = start_of(unit, own, moments, weights, strict=not any(ranks))
        if any(ranks):
            shared, pairs, _ = shared_with_differences(own, ranks, moments, start, config.sweeps)
        else:
            shared, pairs = start, [(start.new_zeros(start.shape[0], 0), start.new_zeros(0, start.shape[1]))] * len(own)
        fitted: dict[str, dict[str, Tensor]] = {STORE: {"matrix.weight": shared}}
        for target, rank, pair in zip(unit.targets, ranks, pairs, strict=True):
            factors = balance(LowRankFactors(*pair)) if rank else None
            fitted[target.name] = {} if factors is None else {"down.weight": factors.down, "up.weight": factors.up}
        if unit.targets[0].bias:
            self._fit_biases(unit, own, [shared + up @ down for up, down in pairs], fitted, weights, statistics)
        return fitted

    def _fit_biases(
        self,
        unit: Unit,
        own: Sequence[Tensor],
        found: Sequence[Tensor],
        fitted: dict[str, dict[str, Tensor]],
        weights: Mapping[str, Tensor],
        statistics: Statistics,
    ) -> None:
        """Biases turned as their weights are, and the mean error that is left; one for all where they are shared."""
        layout, config, wanted = layout_of(unit), config_of(unit), []
        turns = layout.turns(weights)
        for target, turn, before, after in zip(unit.targets, turns, own, found, strict=True):
            dense = layout.bias(target)
            bias, moments = turn.outputs(dense), statistics.input_moments(target)
            if moments is not None and config.weighting != "none":
                bias = bias + (before - after) @ turn.inputs(moments.mean)
            wanted.append(bias)
            fitted[target.name]["bias_shift"] = bias - dense
        if config.norms_and_biases == "shared":
            common = mean_of_vectors(wanted)
            if config.init in ("first", "stepwise"):
                common = layout.bias(layout.start)
            fitted[STORE]["shift.bias"] = common
            for target in unit.targets:
                fitted[target.name]["bias_shift"] = common - layout.bias(target)

    def refits(self, unit: Unit) -> bool:
        """What a layer has to itself can be fitted again: its bias and its difference."""
        if is_norm(unit) or config_of(unit).weighting == "none":
            return False
        return config_of(unit).norms_and_biases == "private" and len(unit.targets) > 1

    def refit(
        self,
        unit: Unit,
        target: Target,
        module: Assembled,
        weight: Tensor,
        bias: Tensor | None,
        statistics: Statistics,
    ) -> None:
        """See :func:`fewfold.methods.shared_layers.refit.refit`."""
        assert isinstance(module, SharedLinear)
        turns = layout_of(unit).alignment.turns(target, {target.name: weight})
        refit(module, weight, bias, turns, statistics.drift[target.module])

    def build_store(self, settings: Mapping[str, Any], stored: StoredDtype) -> Store:
        """An empty block, or the vectors of a norm."""
        if set(settings) == {"norm", "bias"}:
            return NormStore(int(settings["norm"]), bool(settings["bias"]))
        if set(settings) != {"rows", "columns", "bias"}:
            raise ValueError("a block has the settings rows, columns and bias, that of a norm norm and bias")
        return BlockStore(int(settings["rows"]), int(settings["columns"]), bool(settings["bias"]), stored)

    def build(
        self, target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
    ) -> Assembled:
        """An empty use of a block, with a difference of the recorded rank."""
        if isinstance(store, NormStore):
            if settings or store.vectors.weight.shape != (target.rows,):  # type: ignore[union-attr]
                raise ValueError(f"the norm's store does not hold {target.rows} numbers")
            return SharedNorm(target.name, target.rows, store)
        if not isinstance(store, BlockStore):
            raise ValueError("the block that it runs through is missing")
        if not set(settings) <= {"rank", "difference_dtype", "bias"} or "rank" not in settings:
            raise ValueError("its settings are rank, difference_dtype and bias")
        rank, full = settings["rank"], min(target.rows, target.columns)
        if store.matrix.matrix_shape != (target.rows, target.columns):
            raise ValueError(f"its block is {store.matrix.matrix_shape}")
        if not isinstance(rank, int) or not 0 <= rank <= full:
            raise ValueError(f"a {target.rows}×{target.columns} difference takes a rank of 0…{full}")
        form = StoredDtype(settings.get("difference_dtype", stored.name), stored.group)
        kind = SharedAffine if settings.get("bias") == "shared" else SharedLinear
        return kind(target.name, target.columns, target.rows, target.bias, store, rank, form)

    def modules(self, unit: Unit, settings: Mapping[str, Any], store_name: str = "store") -> dict[str, Assembled]:
        """As every method's; a norm begins as the dense one does."""
        modules = super().modules(unit, settings, store_name)
        first = unit.targets[0]
        module = modules[first.name]
        if isinstance(module, SharedNorm):
            begin_norm(module.store, layout_of(unit).alignment.model, first.module)
        return modules


def _fit_norm(unit: Unit, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Weights and biases of a norm: of the layer that the block begins with, or the mean of all."""
    layout = layout_of(unit)
    targets = [layout.start] if config_of(unit).init in ("first", "stepwise") else list(unit.targets)
    found = {"vectors.weight": mean_of_vectors([weights[target.name][:, 0] for target in targets])}
    fitted: dict[str, dict[str, Tensor]] = {STORE: found, **{target.name: {} for target in unit.targets}}
    if targets[0].bias:
        biases = {target.name: layout.bias(target) for target in (*unit.targets, *targets)}
        found["vectors.bias"] = mean_of_vectors([biases[target.name] for target in targets])
        for target in unit.targets:
            fitted[target.name]["bias_shift"] = found["vectors.bias"] - biases[target.name]
    return fitted
