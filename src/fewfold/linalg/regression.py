"""Reduced-rank regression: the affine map of rank ``r`` that best predicts given outputs from given inputs.

Where the inputs come from a network that is already compressed and the outputs from the dense one, the
fit makes good the errors made upstream (cf. the sequential local update of SVD-LLM, Wang et al., ICLR
2025; reduced-rank regression: Izenman, 1975).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewfold.linalg.low_rank import LowRankFactors, LowRankSpectrum, calibrated_spectrum
from fewfold.linalg.moments import CrossMoments


@dataclass(frozen=True)
class AffineSpectrum:
    """A regression from which affine maps of every rank are cut.

    :param linear: the spectrum of the full-rank solution, in the metric of inputs and outputs.
    :param input_mean: ``(in,)``.
    :param output_mean: ``(out,)``.
    """

    linear: LowRankSpectrum
    input_mean: Tensor
    output_mean: Tensor

    def truncate(self, rank: int) -> tuple[LowRankFactors, Tensor]:
        """Factors of a rank, and the bias that makes the mean output right, ``(out,)``."""
        factors = self.linear.truncate(rank)
        return factors, self.output_mean - factors.up @ (factors.down @ self.input_mean)


def ridge_solution(moments: CrossMoments, prior: Tensor, damping: float = 0.01) -> tuple[Tensor, Tensor]:
    """Full-rank regression pulled towards a prior.

    Minimises ``E|y - W' x|^2 + lambda |W' - W|^2`` over centred samples; ``lambda`` is ``damping``
    times the mean input variance, so directions that calibration hardly saw keep the prior's map.

    :param moments: of the inputs and the wanted outputs.
    :param prior: ``(out, in)``, the dense weight.
    :param damping: relative to the mean input variance; positive.
    :return: the solution ``(out, in)`` and the damped input covariance ``(in, in)``, float64.
    :raises ValueError: if shapes disagree or ``damping`` is not positive.
    """
    if tuple(prior.shape) != tuple(moments.cross.shape):
        raise ValueError(f"prior {tuple(prior.shape)}: the moments are of {tuple(moments.cross.shape)}")
    if damping <= 0:
        raise ValueError(f"damping={damping}: it must be positive")
    prior = prior.detach().to(torch.float64)
    covariance = moments.input_covariance()
    strength = damping * float(covariance.diagonal().mean())
    if strength <= 0:
        return prior, torch.eye(prior.shape[1], dtype=torch.float64, device=prior.device)
    damped = covariance + strength * torch.eye(len(covariance), dtype=torch.float64, device=prior.device)
    factor = torch.linalg.cholesky((damped + damped.T) / 2)
    right = (moments.cross_covariance() + strength * prior).T
    return torch.cholesky_solve(right, factor).T, damped


def reduced_rank_regression(
    moments: CrossMoments,
    prior: Tensor,
    output_metric: Tensor | None = None,
    damping: float = 0.01,
    output_damping: float = 0.01,
) -> AffineSpectrum:
    """Best affine maps of every rank, in a given output metric, pulled towards a prior.

    The full-rank solution is found first; its truncation in the metric of the damped inputs is the
    optimum at each rank (Izenman, 1975, theorem 1).

    :param moments: of the inputs and the wanted outputs.
    :param prior: ``(out, in)``, the dense weight.
    :param output_metric: ``(out, out)``, for example ``E[g g^T]`` of output gradients; identity if absent.
    :param damping: of the regression, see `ridge_solution`.
    :param output_damping: of the metric, see `calibrated_spectrum`.
    :return: a spectrum of affine maps; its errors are those added to the full-rank solution's.
    :raises ValueError: if shapes disagree or a number is out of range.
    """
    solution, inputs = ridge_solution(moments, prior, damping)
    spectrum = calibrated_spectrum(solution, inputs, output_metric, output_damping)
    return AffineSpectrum(spectrum, moments.input_mean, moments.output_mean)
