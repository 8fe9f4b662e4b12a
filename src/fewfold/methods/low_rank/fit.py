"""Fitting low-rank factors, and what every rank costs and loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fewfold.assembled import Assembled
from fewfold.calibration.statistics import Drift, Statistics
from fewfold.errors import CalibrationError, RecipeError
from fewfold.linalg.low_rank import LowRankFactors, LowRankSpectrum, calibrated_spectrum, corrected_bias
from fewfold.linalg.regression import reduced_rank_regression
from fewfold.linalg.round_factors import balance, round_factors
from fewfold.linalg.tables import row_weighted_spectrum, smoothed_counts
from fewfold.methods.base import Cost, Method, Unit
from fewfold.methods.energy import output_energy
from fewfold.methods.low_rank.config import LowRank
from fewfold.methods.low_rank.modules import LowRankEmbedding, LowRankLinear
from fewfold.store import Store
from fewfold.stored import StoredDtype
from fewfold.surgery.targets import Target

RIDGE = 0.01  # pull of a fit in sequence towards the dense weight, as a share of the mean input energy
TABLE_DAMPING = 1.0  # share of the mean eigenvalue that is added to a table's output metric


class LowRankMethod(Method):
    """``W ≈ up · down``."""

    name = "low_rank"
    config = LowRank

    def check(self, unit: Unit) -> None:
        """The rank must fit the matrix."""
        (target,) = unit.targets
        config = _config(unit)
        full = min(target.rows, target.columns)
        if config.rank is not None and config.rank > full:
            raise RecipeError(
                f"LowRank(rank={config.rank}): {target.name} is {target.rows}×{target.columns}; "
                f"the rank must be 1…{full}"
            )

    def calibrates(self, unit: Unit) -> Literal["nothing", "inputs", "inputs and gradients"]:
        """As the config's weighting says."""
        weighting = _config(unit).weighting
        if weighting == "none":
            return "nothing"
        return "inputs" if weighting == "inputs" else "inputs and gradients"

    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The config's rank, if it has one."""
        rank = _config(unit).rank
        return None if rank is None else _settings(unit, rank)

    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """Every rank below break-even, in steps of ``multiple_of``."""
        (target,) = unit.targets
        step = _config(unit).multiple_of
        last = min((target.numel - 1) // (target.rows + target.columns), target.rows, target.columns)
        if _config(unit).square_core and target.kind == "linear":
            last = next((r for r in range(last, 0, -1) if r * (target.rows + target.columns + r) < target.numel), 1)
        ranks = list(range(step, last + 1, step)) or [max(1, last)]
        return [_settings(unit, rank) for rank in ranks]

    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """``rank · (rows + columns)`` numbers; a token multiplies them once (a table's: ``rank · dim``)."""
        (target,) = unit.targets
        rank, stored = settings["rank"], unit.config.stored
        numbers = rank * (target.rows + target.columns)
        if target.kind == "embedding":
            return table_cost(target, rank, bool(settings.get("mean_row")), stored, element_size)
        size = stored.matrix_bytes(rank, target.columns, element_size)
        size += stored.matrix_bytes(target.rows, rank, element_size)
        if settings.get("square_core"):
            numbers += rank * rank
            size += stored.matrix_bytes(rank, rank, element_size)
        return Cost(numbers, size, min(numbers, target.numel))

    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """The discarded part of the spectrum at every rank."""
        (target,) = unit.targets
        spectrum, scale = _spectrum(unit, target, weights[target.name], statistics)
        errors = spectrum.errors()
        return [float(errors[size["rank"]]) * scale for size in sizes]

    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """Factors of one rank; the bias takes up the mean error where the inputs are known."""
        (target,) = unit.targets
        weight, rank = weights[target.name], settings["rank"]
        if target.kind == "embedding":
            return {target.name: _fit_table(unit, target, weight, statistics, settings)}
        drift = statistics.drift.get(target.module) if _config(unit).weighting != "none" else None
        if drift is not None and drift.count:
            return {target.name: _fit_drifted(unit, target, weight, statistics, drift, rank)}
        factors = _spectrum(unit, target, weight, statistics)[0].truncate(rank)
        moments = statistics.input_moments(target) if _config(unit).weighting != "none" else None
        if moments is None:
            return {target.name: _kept(unit, factors, None)[0]}
        moment = moments.covariance if target.bias else moments.second
        tensors, factors = _kept(unit, factors, moment)
        if target.bias:
            tensors["bias_shift"] = corrected_bias(weight, factors.dense(), moments.mean)
        return {target.name: tensors}

    def build(
        self, target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
    ) -> Assembled:
        """Empty factors of the recorded rank."""
        rank, full = settings["rank"], min(target.rows, target.columns)
        known = {"rank", "mean_row"} if target.kind == "embedding" else {"rank", "square_core"}
        if not set(settings) <= known or not isinstance(rank, int) or not 1 <= rank <= full:
            raise ValueError(f"a {target.rows}×{target.columns} weight takes a rank of 1…{full}")
        if target.kind == "embedding":
            return LowRankEmbedding(
                target.rows,
                target.columns,
                rank,
                target.padding_idx,
                target.scale,
                stored,
                bool(settings.get("mean_row", False)),
            )
        return LowRankLinear(
            target.columns, target.rows, rank, target.bias, stored, bool(settings.get("square_core", False))
        )


def table_cost(
    target: Target, rank: int, mean_row: bool, stored: StoredDtype, element_size: int, chained: bool = True
) -> Cost:
    """Latents, directions and the mean row of a table; a looked-up token multiplies ``rank · dim``.

    :param chained: whether a tied output layer can multiply by the factors.
    """
    extra = target.columns if mean_row else 0
    size = stored.matrix_bytes(target.rows, rank, element_size) + extra * element_size
    size += stored.matrix_bytes(target.columns, rank, element_size)
    numbers = rank * (target.rows + target.columns) + extra
    head = min(numbers, target.numel) if chained else target.numel
    return Cost(numbers, size, rank * target.columns + target.heads * head)


def _settings(unit: Unit, rank: int) -> dict[str, Any]:
    """What the structure records of a rank: tables that are not plain SVDs keep their mean row apart."""
    if unit.targets[0].kind == "embedding" and _config(unit).weighting != "none":
        return {"rank": rank, "mean_row": True}
    if unit.targets[0].kind == "linear" and _config(unit).square_core:
        return {"rank": rank, "square_core": True}
    return {"rank": rank}


def _config(unit: Unit) -> LowRank:
    assert isinstance(unit.config, LowRank)
    return unit.config


def _spectrum(unit: Unit, target: Target, weight: Tensor, statistics: Statistics) -> tuple[LowRankSpectrum, float]:
    """The full decomposition under the config's weighting, and what makes its errors comparable.

    With gradients the errors are already in units of the model's output; without, they are divided by the energy
    of the target's own output.
    """
    weighting = _config(unit).weighting
    if target.kind == "embedding":
        return _table_spectrum(unit, target, weight, statistics)[:2]
    moments = None if weighting == "none" else statistics.input_moments(target)
    if weighting in ("inputs", "inputs_and_outputs") and moments is None:
        raise CalibrationError(f"{target.name} saw no calibration input; pass calibration texts that reach it")
    metric = statistics.output_metric(target) if weighting in ("auto", "inputs_and_outputs") else None
    if weighting == "inputs_and_outputs" and metric is None:
        raise CalibrationError(f"{target.name} has no output gradients: the model's output does not depend on it")
    moment = None if moments is None else moments.covariance if target.bias else moments.second
    spectrum = calibrated_spectrum(weight, moment, metric)
    if metric is not None:
        return spectrum, 1.0
    worth = output_energy(target, weight, statistics)
    return spectrum, worth / max(float(spectrum.gains.sum()), torch.finfo(torch.float64).tiny)


def _fit_drifted(
    unit: Unit, target: Target, weight: Tensor, statistics: Statistics, drift: Drift, rank: int
) -> dict[str, Tensor]:
    """Factors that give the dense outputs on the inputs that the compressed part before them gives."""
    weight = weight.double()
    mean, dense_mean = drift.total / drift.count, drift.dense_total / drift.count
    moment, cross = drift.product / drift.count, drift.cross / drift.count
    if target.bias:  # the bias takes up the means
        moment, cross = moment - torch.outer(mean, mean), cross - torch.outer(dense_mean, mean)
    metric = statistics.output_metric(target) if _config(unit).weighting in ("auto", "inputs_and_outputs") else None
    spectrum = reduced_rank_regression(moment, weight @ cross, weight, metric, RIDGE)
    strength = RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    tensors, factors = _kept(unit, spectrum.truncate(rank), moment + strength)
    if target.bias:
        tensors["bias_shift"] = weight @ dense_mean - factors.up @ (factors.down @ mean)
    return tensors


def _kept(unit: Unit, factors: LowRankFactors, input_moment: Tensor | None) -> tuple[dict[str, Tensor], LowRankFactors]:
    """Balanced factors in their kept form, and the factors that this form stands for."""
    stored = unit.config.stored
    if _config(unit).square_core and unit.targets[0].kind == "linear":
        return _with_core(factors), factors
    if stored.bits is None or stored.bits == 8 or input_moment is None:
        factors = balance(factors)
        return {"down.weight": factors.down, "up.weight": factors.up}, factors
    rounded = round_factors(factors, input_moment, stored.bits, stored.group, stored.scale_dtype)
    tensors = {
        "down.codes": rounded.down.packed(),
        "down.scales": rounded.down.scales,
        "up.codes": rounded.up.packed(),
        "up.scales": rounded.up.scales,
    }
    return tensors, rounded.dequantize(torch.float64)


def _with_core(factors: LowRankFactors) -> dict[str, Tensor]:
    """Orthonormal factors, and what they leave in a square core between them."""
    up, left = torch.linalg.qr(factors.up.double())
    down, right = torch.linalg.qr(factors.down.double().t())
    return {"down.weight": down.t(), "core.weight": left @ right.t(), "up.weight": up}


def _fit_table(
    unit: Unit, target: Target, weight: Tensor, statistics: Statistics, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Latents and directions of a table; its mean row, as the tokens weigh it, is kept apart where recorded."""
    spectrum, _, mean = _table_spectrum(unit, target, weight, statistics)
    factors = balance(spectrum.truncate(settings["rank"]))
    tensors = {"latents.weight": factors.up, "up.weight": factors.down.t()}
    if settings.get("mean_row"):
        tensors["up.bias"] = mean
    return tensors


def _table_spectrum(
    unit: Unit, target: Target, weight: Tensor, statistics: Statistics
) -> tuple[LowRankSpectrum, float, Tensor]:
    """The decomposition of a table, what makes its errors comparable, and the mean row that was taken off."""
    config = _config(unit)
    counts = None if config.weighting == "none" else statistics.counts(target)
    if counts is None and config.weighting in ("inputs", "inputs_and_outputs"):
        raise CalibrationError(f"{target.name} was never looked up during calibration; pass texts")
    row_weights = torch.ones(target.rows, dtype=torch.float64)
    if counts is not None:
        row_weights = smoothed_counts(counts).pow(config.count_power)
    row_weights = row_weights / row_weights.sum()
    weight = weight.double()
    mean = row_weights @ weight if config.weighting != "none" else torch.zeros(target.columns, dtype=torch.float64)
    metric = statistics.output_metric(target) if config.weighting in ("auto", "inputs_and_outputs") else None
    spectrum = row_weighted_spectrum(weight - mean, row_weights, metric, TABLE_DAMPING)
    if metric is not None:
        return spectrum, 1.0, mean
    return spectrum, 1.0 / max(float(spectrum.gains.sum()), torch.finfo(torch.float64).tiny), mean
