"""What errors of different methods have in common: the unit that they are given in."""

from __future__ import annotations

from torch import Tensor

from fewfold.calibration.statistics import Statistics
from fewfold.surgery.targets import Target


def output_energy(target: Target, weight: Tensor, statistics: Statistics) -> float:
    """What losing the whole of a linear target costs: ``tr(M W C Wᵀ)`` with the metric of its output, else 1.

    An error that is a share of a target's own output, times this, is in the unit of the statistics.

    :param weight: ``(out, in)``.
    """
    metric, moments = statistics.output_metric(target), statistics.input_moments(target)
    if metric is None or moments is None:
        return 1.0
    moment = moments.covariance if target.bias else moments.second
    weight = weight.float()
    seen = (metric.to(weight) @ weight) * (weight @ moment.to(weight))
    return max(float(seen.double().sum()), 0.0)
