"""Bring the feed-forward neurons of two layers into one order, exactly and without a change of what they compute.

Layers read and write one residual stream, but inside of a layer the neurons stand in any order: a mean of two layers
means something only once they match. The best order is a linear assignment problem (Kuhn, 1955), as in Ainsworth et
al., Git Re-Basin (ICLR 2023, section 3.2). For attention heads see :mod:`fewfold.linalg.heads`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewfold.optional import require


def best_assignment(scores: Tensor) -> Tensor:
    """The permutation ``p`` with the largest ``sum_i scores[i, p[i]]``.

    :param scores: ``(n, n)``.
    :return: ``(n,)`` int64, on the CPU.
    :raises ValueError: if the scores are not square, or one is not finite.
    :raises ImportError: if scipy is missing.
    """
    if scores.dim() != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"scores {tuple(scores.shape)}: an assignment needs a square matrix")
    if not torch.isfinite(scores).all():
        raise ValueError("a score is an infinity or a NaN: check the weights and metrics it comes from")
    solver = require("scipy.optimize", "sharing")
    _, columns = solver.linear_sum_assignment(scores.detach().double().cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).long()


def match_neurons(
    references: Sequence[Tensor], others: Sequence[Tensor], metrics: Sequence[Tensor | None] | None = None
) -> Tensor:
    """The order in which the neurons of one layer lie closest to those of another.

    Minimises ``sum_k sum_i |references[k][i] - others[k][p[i]]|^2``, each norm in its metric; as an order leaves the
    rows' own norms as they are, that is the largest sum of inner products.

    :param references: matrices ``(neurons, …)`` whose rows belong to neurons: ``W_in`` with the bias as one more
        column, a gate's rows, ``W_out`` transposed.
    :param others: the same matrices of the other layer.
    :param metrics: ``(columns, columns)`` a matrix, such as the second moment of the inputs (the inner product is then
        that of the neurons' values); identity where absent.
    :return: ``p``, ``(neurons,)`` int64: ``other[p]`` stands next to ``reference``.
    :raises ValueError: if shapes disagree or a number is not finite.
    """
    metrics = [None] * len(references) if metrics is None else metrics
    if not references or not len(references) == len(others) == len(metrics):
        raise ValueError(
            f"{len(references)} references, {len(others)} others and {len(metrics)} metrics: they go together one by "
            "one, and at least one is needed"
        )
    scores: Tensor | None = None
    for number, (reference, other, metric) in enumerate(zip(references, others, metrics, strict=True)):
        if reference.dim() != 2 or reference.shape != other.shape or len(reference) != len(references[0]):
            raise ValueError(
                f"matrices {number}, {tuple(reference.shape)} and {tuple(other.shape)}: both need one shape and a row "
                f"for each of the {len(references[0])} neurons"
            )
        found = inner_products(reference, other, metric)
        scores = found if scores is None else scores + found
    assert scores is not None
    return best_assignment(scores)


def inner_products(first: Tensor, second: Tensor, metric: Tensor | None = None) -> Tensor:
    """``first @ metric @ second^T`` in float64: of rows ``(m, d)`` and ``(n, d)``, ``(m, n)``.

    :raises ValueError: if the metric's shape is not ``(d, d)``.
    """
    width = first.shape[-1]
    if metric is not None and metric.shape != (width, width):
        raise ValueError(f"metric {tuple(metric.shape)}: rows of {width} numbers need ({width}, {width})")
    left, right = first.detach().double(), second.detach().double()
    return (left if metric is None else left @ metric.to(left)) @ right.transpose(-2, -1)
