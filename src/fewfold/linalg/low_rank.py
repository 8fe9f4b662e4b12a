"""Two-factor approximations ``weight ~ up @ down``: plain, or calibrated on inputs and outputs.

The calibrated optimum minimises ``tr(M (W - W') C (W - W')^T)`` over matrices ``W'`` of rank ``r``, where
``C`` is the second moment of the inputs and ``M`` a metric on the outputs. With ``M = I`` it is the
truncation-aware optimum of SVD-LLM (Wang et al., ICLR 2025) in the form that needs no inverse of ``C``:
the leading eigenvectors of ``W C W^T``. A Fisher-like ``M``, the second moment of the gradients at the
outputs, makes the errors of different weights comparable (cf. K-FAC, Martens and Grosse, ICML 2015).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewfold.linalg.finite import is_finite
from fewfold.linalg.spectra import cholesky_factor, damped, eigh_descending

# Breaks ties among directions that calibration never saw: there the plain weight error decides.
TIE_BREAK = 1e-10


@dataclass(frozen=True)
class LowRankFactors:
    """A matrix kept as a product: ``weight ~ up @ down``.

    :param up: ``(out, rank)``.
    :param down: ``(rank, in)``.
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return self.up.shape[1]

    def dense(self) -> Tensor:
        """The product, ``(out, in)``."""
        return self.up @ self.down


@dataclass(frozen=True)
class LowRankSpectrum:
    """A full decomposition from which factors of every rank are cut.

    Orthonormal, in the metric of its side, is the factor of the smaller one: ``up`` where ``out ≤ in``, else ``down``.

    :param up: ``(out, k)`` with ``k = min(out, in)``, most important direction first, float64.
    :param down: ``(k, in)``, float64; ``up @ down`` is the weight itself.
    :param gains: ``(k,)`` descending: the squared error that each direction removes, in the units
        of the objective that was minimised.
    """

    up: Tensor
    down: Tensor
    gains: Tensor

    def truncate(self, rank: int) -> LowRankFactors:
        """The best factors of this rank.

        :param rank: 1 … k.
        :return: float64 factors.
        :raises ValueError: if the rank lies outside its range.
        """
        full = self.gains.shape[0]
        if not 1 <= rank <= full:
            raise ValueError(f"rank={rank}: a {self.up.shape[0]}×{self.down.shape[1]} matrix takes 1…{full}")
        return LowRankFactors(self.up[:, :rank].contiguous(), self.down[:rank].contiguous())

    def errors(self) -> Tensor:
        """Squared error against rank: entry ``r`` is what remains with ``r`` directions, ``(k + 1,)``."""
        tail = self.gains.flip(0).cumsum(0).flip(0)
        return torch.cat([tail, tail.new_zeros(1)])


def svd_spectrum(weight: Tensor) -> LowRankSpectrum:
    """Plain truncated SVD (Eckart and Young, 1936), by the Gram matrix of the smaller side.

    :param weight: ``(out, in)``.
    :return: the spectrum; its errors are squared Frobenius norms.
    :raises ValueError: if the weight is not a finite matrix.
    """
    return calibrated_spectrum(weight)


def calibrated_spectrum(
    weight: Tensor,
    input_moment: Tensor | None = None,
    output_metric: Tensor | None = None,
    output_damping: float = 0.01,
) -> LowRankSpectrum:
    """Decompose for least output error on given inputs, measured in a given output metric.

    Pass a centred covariance as ``input_moment`` when the bias absorbs the mean (`corrected_bias`).
    Directions without any input energy come last, ordered by their plain weight error.

    :param weight: ``(out, in)``, applied as ``weight @ x``.
    :param input_moment: ``(in, in)``, ``E[x x^T]`` or the covariance; identity if absent. It may be singular.
    :param output_metric: ``(out, out)``, for example ``E[g g^T]`` of output gradients; identity if absent.
    :param output_damping: share of the metric's mean eigenvalue added to its diagonal.
    :return: the spectrum; its errors are ``tr(M (W - W') C (W - W')^T)`` with the damped metrics.
    :raises ValueError: if shapes disagree or a number is not finite.
    """
    weight = checked_matrix(weight, input_moment, output_metric)
    moment = None if input_moment is None else damped(input_moment, TIE_BREAK)
    metric = None if output_metric is None else damped(output_metric, output_damping)
    if weight.shape[0] <= weight.shape[1]:
        up, down, gains = _project_rows(weight, metric, moment)
        return LowRankSpectrum(up, down, gains)
    directions, coordinates, gains = _project_rows(weight.T, moment, metric)
    return LowRankSpectrum(coordinates.T, directions.T, gains)


def corrected_bias(weight: Tensor, approximation: Tensor, mean: Tensor, bias: Tensor | None = None) -> Tensor:
    """The bias that keeps the mean output: ``b + (W - W') E[x]``.

    :param weight: ``(out, in)``.
    :param approximation: ``(out, in)``, for example ``factors.dense()``.
    :param mean: ``(in,)``, mean input.
    :param bias: ``(out,)``; zero if absent.
    :return: ``(out,)`` float64.
    """
    shift = (weight.to(torch.float64) - approximation.to(torch.float64)) @ mean.to(torch.float64)
    return shift if bias is None else shift + bias.to(torch.float64)


def _project_rows(
    matrix: Tensor, rows_metric: Tensor | None, columns_metric: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Project on the smaller side, the rows: ``W' = S^-T U U^T S^T W`` with ``S S^T`` the rows' metric.

    Any factor ``S`` of the metric gives the same ``W'``; the Cholesky factor is the cheapest.

    :return: the directions, one a column and orthonormal in the rows' metric, what the matrix is in them, and gains.
    """
    factor = None if rows_metric is None else cholesky_factor(rows_metric)
    scaled = matrix if factor is None else factor.T @ matrix
    gram = scaled @ scaled.T if columns_metric is None else scaled @ columns_metric @ scaled.T
    gains, basis = eigh_descending(gram)
    directions = basis if factor is None else torch.linalg.solve_triangular(factor.T, basis, upper=True)
    return directions, basis.T @ scaled, gains


def checked_matrix(weight: Tensor, input_moment: Tensor | None = None, output_metric: Tensor | None = None) -> Tensor:
    """The weight detached and in float64, once it and the sizes of its metrics are found to be sound.

    :raises ValueError: if a shape is wrong or a weight is not finite.
    """
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"expected a matrix, got shape {tuple(weight.shape)}")
    if not is_finite(weight):
        raise ValueError("the weight holds an infinity or a NaN")
    for name, square, size in (
        ("input_moment", input_moment, weight.shape[1]),
        ("output_metric", output_metric, weight.shape[0]),
    ):
        if square is not None and square.shape != (size, size):
            raise ValueError(f"{name} {tuple(square.shape)}: a weight {tuple(weight.shape)} needs ({size}, {size})")
    return weight.detach().to(torch.float64)
