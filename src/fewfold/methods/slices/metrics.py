"""What the slices of a group weigh: one metric for each shared side, and one weight for each slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewfold.calibration.statistics import Statistics
from fewfold.errors import CalibrationError
from fewfold.linalg.spectra import cholesky_factor, damped
from fewfold.methods.slices.layout import Cut, cut_slices
from fewfold.surgery.targets import Target

DAMPING = 0.02  # share of the mean eigenvalue that is added to a shared side's metric


@dataclass(frozen=True)
class Weighing:
    """Slices as the fit sees them: ``scale_i · Lᵀ · W_i · R``.

    :param slices: the slices themselves, views of the weights.
    :param left: Cholesky factor ``L`` of the rows' metric, float64, or None for the identity.
    :param right: the same of the columns'.
    :param scales: one a slice.
    """

    slices: Sequence[Tensor]
    left: Tensor | None
    right: Tensor | None
    scales: Sequence[float]

    def __len__(self) -> int:
        return len(self.slices)

    def seen(self, number: int) -> Tensor:
        """One slice as the fit sees it, fp32."""
        return _through(self.slices[number], self.left, self.right) * self.scales[number]


def slices_of(targets: Sequence[Target], cuts: Mapping[str, Cut], weights: Mapping[str, Tensor]) -> list[Tensor]:
    """All slices of these targets, views, in order."""
    return [part for target in targets for part in cut_slices(weights[target.name], cuts[target.name])]


def weigh(
    targets: Sequence[Target],
    cuts: Mapping[str, Cut],
    weights: Mapping[str, Tensor],
    statistics: Statistics,
    weighting: str,
    normalise: bool,
    columns: Sequence[Tensor | None] | None = None,
) -> Weighing:
    """Metrics averaged over everything that a side is shared by, and what each slice's error counts.

    With gradients, a slice's scale is such that its energy is what the model's output sees of it; with inputs alone,
    its share of its own layer's output; with neither, all slices alike (``normalise``) or as they are.

    :param columns: the metrics that the columns' side is shared by, where other groups share it too.
    :raises CalibrationError: if the weighting asks for statistics that are not there.
    """
    slices = slices_of(targets, cuts, weights)
    energies: list[float] = []
    for target in targets:
        cut = cuts[target.name]
        inputs, outputs = _metrics(target, statistics, weighting)
        blocks_in, blocks_out = _blocks(inputs, cut, "in"), _blocks(outputs, cut, "out")
        energies += _energies(weights[target.name], cut, blocks_in, blocks_out, normalise and weighting != "none")
    rows, own_columns = side_metrics(targets, cuts, statistics, weighting)
    left, right = _shared(rows), _shared(own_columns if columns is None else columns)
    if left is None and right is None and not any(energies):
        scales = [1.0 / max(float(part.norm()), 1e-30) if normalise else 1.0 for part in slices]
        return Weighing(slices, None, None, scales)
    known = [energy for energy in energies if energy > 0]
    usual = sum(known) / max(1, len(known))
    scales = []
    for part, energy in zip(slices, energies, strict=True):
        own = float(_through(part, left, right).square().sum(dtype=torch.float64))
        scales.append(((energy or usual) / own) ** 0.5 if normalise and own > 0 else 1.0)
    return Weighing(slices, left, right, scales)


def side_metrics(
    targets: Sequence[Target], cuts: Mapping[str, Cut], statistics: Statistics, weighting: str
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The metrics of all slices' rows and columns, each with a mean of one on its diagonal; None where unknown."""
    rows: list[Tensor | None] = []
    columns: list[Tensor | None] = []
    for target in targets:
        cut = cuts[target.name]
        inputs, outputs = _metrics(target, statistics, weighting)
        sides = [_blocks(inputs, cut, "in"), _blocks(outputs, cut, "out")]
        first, second = sides if cut.rows == "in" else reversed(sides)
        rows += [_unit_trace(block) for block in first]
        columns += [_unit_trace(block) for block in second]
    return rows, columns


def _metrics(target: Target, statistics: Statistics, weighting: str) -> tuple[Tensor | None, Tensor | None]:
    if weighting == "none":
        return None, None
    moments = statistics.input_moments(target)
    if moments is None:
        if weighting != "auto":
            raise CalibrationError(f"{target.name} saw no calibration input; pass calibration texts that reach it")
        return None, None
    metric = statistics.output_metric(target) if weighting != "inputs" else None
    if metric is None and weighting == "inputs_and_outputs":
        raise CalibrationError(f"{target.name} has no output gradients: the model's output does not depend on it")
    return moments.covariance if target.bias else moments.second, metric


def _blocks(metric: Tensor | None, cut: Cut, side: str) -> list[Tensor | None]:
    """The diagonal blocks of a metric that belong to the tiles."""
    if metric is None or cut.tiled != side:
        return [metric] * cut.tiles
    size = len(metric) // cut.tiles
    return [metric[n * size : (n + 1) * size, n * size : (n + 1) * size] for n in range(cut.tiles)]


def _unit_trace(metric: Tensor | None) -> Tensor | None:
    if metric is None:
        return None
    mean = metric.diagonal().mean()
    return metric / mean if float(mean) > 0 else None


def _shared(metrics: Sequence[Tensor | None]) -> Tensor | None:
    """Cholesky factor of the mean metric; what is unknown counts as the identity."""
    known = [metric for metric in metrics if metric is not None]
    if not known:
        return None
    total = torch.zeros_like(known[0], dtype=torch.float64)
    for metric in known:
        total += metric
    missing = len(metrics) - len(known)
    if missing:
        total = total + missing * torch.eye(len(total), dtype=torch.float64)
    return cholesky_factor(damped(total / len(metrics), DAMPING))


def _energies(
    weight: Tensor, cut: Cut, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None], shares: bool
) -> list[float]:
    """``tr(B W A Wᵀ)`` of every tile with its own metrics; shares of the target's sum where there is no ``B``."""
    energies = []
    for block, moment, metric in zip(
        weight.chunk(cut.tiles, dim=1 if cut.tiled == "in" else 0), inputs, outputs, strict=True
    ):
        if moment is None:
            energies.append(0.0)
            continue
        seen = block @ moment.float()
        other = block if metric is None else metric.float() @ block
        energies.append(max(float((seen * other).sum(dtype=torch.float64)), 0.0))
    if shares and all(metric is None for metric in outputs) and sum(energies) > 0:
        return [energy / sum(energies) for energy in energies]
    return energies


def _through(part: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    if left is not None:
        part = left.t().to(part.dtype) @ part
    return part if right is None else part @ right.to(part.dtype)
