"""Low-rank look-up tables, with rows weighted by how often, and how much, they matter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewfold.linalg.finite import is_finite
from fewfold.linalg.low_rank import TIE_BREAK, LowRankSpectrum, checked_matrix
from fewfold.linalg.spectra import cholesky_factor, damped, eigh_descending

CHUNK_ROWS = 4096  # that are held in another dtype at a time
NEIGHBOURS = 200  # tokens on either side whose counts speak for a token


def row_weighted_spectrum(
    table: Tensor,
    row_weights: Tensor,
    output_metric: Tensor | None = None,
    output_damping: float = 0.01,
) -> LowRankSpectrum:
    """Decompose a look-up table with some rows counting more than others.

    Minimises ``sum_i f_i (e_i - e'_i)^T M (e_i - e'_i)``. Every row, also one of weight zero, is projected
    onto the same subspace, so the weights move the subspace only. Subtract the weighted mean row first
    where a bias, a position or a segment embedding can take it up.

    :param table: ``(rows, dim)``.
    :param row_weights: ``(rows,)``, not negative, for example `smoothed_counts`.
    :param output_metric: ``(dim, dim)``, for example ``E[g g^T]`` of gradients at the embedding; identity
        if absent.
    :param output_damping: share of the metric's mean eigenvalue added to its diagonal.
    :return: the spectrum, with ``up`` ``(rows, k)`` the short rows and ``down`` ``(k, dim)`` the directions
        (orthonormal without a metric), ``k = dim`` (also where there are fewer rows).
    :raises ValueError: if shapes disagree, a weight is negative or all are zero, or a number is not finite.
    """
    table = checked_matrix(table)
    dim = table.shape[1]
    if row_weights.shape != table.shape[:1]:
        raise ValueError(f"row_weights {tuple(row_weights.shape)}: the table has {table.shape[0]} rows")
    if output_metric is not None and output_metric.shape != (dim, dim):
        raise ValueError(f"output_metric {tuple(output_metric.shape)}: rows of {dim} need ({dim}, {dim})")
    row_weights = row_weights.to(table)
    if not bool((row_weights >= 0).all()) or not 0 < float(row_weights.sum()) < float("inf"):
        raise ValueError("row_weights must be finite, not negative and not all zero")
    factor = None
    if output_metric is not None:
        factor = cholesky_factor(damped(output_metric, output_damping))
        table = table @ factor
    gram = table.T @ (table * row_weights[:, None])
    plain = table.T @ table
    tie_break = TIE_BREAK * gram.trace() / plain.trace().clamp_min(torch.finfo(torch.float64).tiny)
    gains, directions = eigh_descending(gram + tie_break * plain)
    down = directions.T
    if factor is not None:
        down = torch.linalg.solve_triangular(factor, down, upper=False, left=False)
    return LowRankSpectrum(table @ directions, down.contiguous(), gains)


def smoothed_counts(counts: Tensor) -> Tensor:
    """Token counts of a small text made fit to weight a whole vocabulary.

    Adds to every token the share that Good and Turing give to an unseen one: the tokens seen once,
    divided by the tokens never seen (Good, 1953), at least 1e-3 and at most 1. Both are counted among the
    ``NEIGHBOURS`` tokens on either side: vocabularies are built by falling frequency, so what stands near
    frequent tokens is likely frequent too.

    :param counts: ``(vocab,)``, not negative.
    :return: ``(vocab,)`` float64, all positive.
    """
    counts = counts.to(torch.float64)
    once, never = (_sum_around(counts == number) for number in (1, 0))
    return counts + (once / never.clamp_min(1)).clamp(1e-3, 1.0)


def _sum_around(marked: Tensor) -> Tensor:
    """How many are marked within ``NEIGHBOURS`` places, each place itself included."""
    before = torch.nn.functional.pad(marked.to(torch.float64).cumsum(0), (1, 0))
    places = torch.arange(len(marked), device=marked.device)
    first, last = (places - NEIGHBOURS).clamp_min(0), (places + NEIGHBOURS + 1).clamp_max(len(marked))
    return before[last] - before[first]


@dataclass(frozen=True)
class TableDirections:
    """Directions of a table's rows about their mean, by falling weighted energy.

    :param mean: ``(dim,)``.
    :param into: ``(dim, dim)``: ``(row − mean) @ into`` are a row's coordinates.
    :param back: ``(dim, dim)``, the inverse of ``into``.
    :param gains: ``(dim,)``, the weighted energy in each direction.
    """

    mean: Tensor
    into: Tensor
    back: Tensor
    gains: Tensor

    def coordinates(self, table: Tensor, directions: Tensor) -> Tensor:
        """The coordinates of all rows in some directions, ``(rows, len(directions))`` fp32, a run of rows at a time."""
        into, mean = self.into[:, directions].float(), self.mean.float()
        found = torch.empty(len(table), len(directions))
        for start in range(0, len(table), CHUNK_ROWS):
            run = slice(start, start + CHUNK_ROWS)
            torch.mm(table[run].float() - mean, into, out=found[run])
        return found


def row_weighted_directions(
    table: Tensor, row_weights: Tensor, output_metric: Tensor | None = None, output_damping: float = 0.01
) -> TableDirections:
    """As `row_weighted_spectrum` about the weighted mean, without a copy of the table: for those of any size.

    :param table: ``(rows, dim)``.
    :param row_weights: ``(rows,)``, not negative.
    :param output_metric: ``(dim, dim)``; identity if absent.
    :param output_damping: share of the metric's mean eigenvalue added to its diagonal.
    :raises ValueError: if shapes disagree, a weight is negative or all are zero, or a number is not finite.
    """
    rows, dim = table.shape
    weights = row_weights.to(torch.float64)
    if weights.shape != (rows,) or not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < float("inf"):
        raise ValueError(f"row_weights: {rows} numbers, finite, not negative and not all zero")
    if output_metric is not None and output_metric.shape != (dim, dim):
        raise ValueError(f"output_metric {tuple(output_metric.shape)}: rows of {dim} need ({dim}, {dim})")
    weights = weights / weights.sum()
    second, total = torch.zeros(dim, dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    plain = torch.zeros(dim, dtype=torch.float64)
    for start in range(0, rows, CHUNK_ROWS):
        run = slice(start, start + CHUNK_ROWS)
        part, own = table[run].float(), weights[run]
        if not is_finite(part):
            raise ValueError(f"rows {start}…{start + len(part) - 1} of the table hold an infinity or a NaN")
        rooted = part * own.sqrt().float()[:, None]
        second += (rooted.T @ rooted).double()
        total += own @ part.double()
        plain += part.square().sum(0, dtype=torch.float64)
    covariance = second - torch.outer(total, total)
    tie_break = TIE_BREAK * covariance.trace() / plain.sum().clamp_min(torch.finfo(torch.float64).tiny)
    covariance = covariance + tie_break * torch.diag(plain)
    identity = torch.eye(dim, dtype=torch.float64)
    factor = identity if output_metric is None else cholesky_factor(damped(output_metric, output_damping))
    gains, directions = eigh_descending(factor.T @ covariance @ factor)
    back = directions.T @ torch.linalg.inv(factor)
    return TableDirections(total, factor @ directions, back, gains.clamp_min(0))
