"""Reduced-rank regression: the linear map of rank ``r`` that best predicts given outputs from given inputs.

Where the inputs come from a network that is already compressed and the outputs from the dense one, the
fit makes good the errors made upstream (cf. the sequential local update of SVD-LLM, Wang et al., ICLR
2025; reduced-rank regression: Izenman, 1975).
"""

import torch
from torch import Tensor

from fewfold.linalg.low_rank import LowRankSpectrum, calibrated_spectrum
from fewfold.linalg.spectra import cholesky_factor


def ridge_solution(
    input_moment: Tensor, cross_moment: Tensor, prior: Tensor, damping: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Full-rank regression pulled towards a prior.

    Minimises ``E|y - W' x|^2 + lambda |W' - W|^2``; ``lambda`` is ``damping`` times the mean input
    energy, so directions that calibration hardly saw keep the prior's map.

    :param input_moment: ``(in, in)``, ``E[x x^T]`` or the covariance.
    :param cross_moment: ``(out, in)``, ``E[y x^T]`` or the cross-covariance.
    :param prior: ``(out, in)``, the dense weight.
    :param damping: relative to the mean input energy; positive.
    :return: the solution ``(out, in)`` and the damped input moment ``(in, in)``, float64.
    :raises ValueError: if shapes disagree or ``damping`` is not positive.
    """
    if prior.shape != cross_moment.shape or input_moment.shape != (prior.shape[1], prior.shape[1]):
        raise ValueError(
            f"prior {tuple(prior.shape)}, cross_moment {tuple(cross_moment.shape)} and input_moment "
            f"{tuple(input_moment.shape)} do not belong together"
        )
    if damping <= 0:
        raise ValueError(f"damping={damping}: it must be positive")
    prior = prior.detach().to(torch.float64)
    moment = input_moment.to(torch.float64)
    strength = damping * float(moment.diagonal().mean())
    if strength <= 0:
        return prior, torch.eye(prior.shape[1], dtype=torch.float64, device=prior.device)
    damped = (moment + moment.T) / 2 + strength * torch.eye(len(moment), dtype=torch.float64, device=prior.device)
    factor = cholesky_factor(damped)
    right = (cross_moment.to(torch.float64) + strength * prior).T
    return torch.cholesky_solve(right, factor).T, damped


def reduced_rank_regression(
    input_moment: Tensor,
    cross_moment: Tensor,
    prior: Tensor,
    output_metric: Tensor | None = None,
    damping: float = 0.01,
) -> LowRankSpectrum:
    """Best linear maps of every rank, in a given output metric, pulled towards a prior.

    The full-rank solution is found first; its truncation in the metric of the damped inputs is the
    optimum at each rank (Izenman, 1975, theorem 1).

    :param input_moment: ``(in, in)``, of the inputs as they will be.
    :param cross_moment: ``(out, in)``, of the wanted outputs with these inputs.
    :param prior: ``(out, in)``, the dense weight.
    :param output_metric: ``(out, out)``, for example ``E[g g^T]`` of output gradients; identity if absent.
    :param damping: of the regression, see `ridge_solution`.
    :return: a spectrum; its errors are those added to the full-rank solution's.
    :raises ValueError: if shapes disagree or a number is out of range.
    """
    solution, moment = ridge_solution(input_moment, cross_moment, prior, damping)
    return calibrated_spectrum(solution, moment, output_metric)
