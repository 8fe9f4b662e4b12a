"""One weight for several layers, alone or with a low-rank difference a layer.

All errors are ``sum_l tr((W_l - W'_l) C_l (W_l - W'_l)^T)``: the squared errors of the layers' outputs where ``C_l`` is
the second moment of layer ``l``'s inputs, squared Frobenius norms without moments. Scale a moment to give its layer
another weight; where a bias is to be shared too, append it as a column and a constant 1 to the inputs. The form with
differences is that of Bae et al., Relaxed Recursive Transformers (ICLR 2025), who fit the differences once, to a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewfold.linalg.low_rank import LowRankSpectrum, calibrated_spectrum, checked_matrix
from fewfold.linalg.spectra import cholesky_factor

# Share of the moments' mean eigenvalue: directions that no layer's inputs reach get the plain mean.
DAMPING = 1e-6


class SharedWithDifferences(NamedTuple):
    """``W_l ~ shared + left_l @ right_l``.

    :param shared: ``(out, in)`` float64.
    :param differences: ``(left, right)`` a layer, ``(out, rank)`` and ``(rank, in)`` float64; ``left`` is orthonormal.
    :param errors: the error with the shared weight that was started from, then after every sweep; it never rises.
    """

    shared: Tensor
    differences: list[tuple[Tensor, Tensor]]
    errors: list[float]


def mean_weight(weights: Sequence[Tensor], moments: Sequence[Tensor] | None = None, damping: float = DAMPING) -> Tensor:
    """The one weight with the smallest error: ``(sum_l W_l C_l)(sum_l C_l)^-1``; the mean where all ``C_l`` are equal.

    :param weights: ``(out, in)`` each.
    :param moments: ``(in, in)`` each, ``E[x x^T]`` of the layer's inputs; all the identity if absent.
    :param damping: share of the moments' mean eigenvalue that is added to every moment's diagonal; positive.
    :return: ``(out, in)`` float64.
    :raises ValueError: if shapes disagree, a number is not finite or ``damping`` is not positive.
    """
    return _mean(*_checked(weights, moments, damping))


def difference_spectra(
    weights: Sequence[Tensor],
    shared: Tensor,
    moments: Sequence[Tensor] | None = None,
    damping: float = DAMPING,
) -> list[LowRankSpectrum]:
    """The differences ``W_l - shared`` decomposed in the metrics of their layers' inputs.

    ``spectrum.errors()[r]`` is the layer's error with a difference of rank ``r``: what a budget allocates ranks by.

    :param shared: ``(out, in)``.
    :return: a spectrum a layer; other parameters and errors as in :func:`mean_weight`.
    """
    checked, metrics = _checked(weights, moments, damping)
    return _spectra(checked, _fitting(shared, checked), metrics)


def shared_with_differences(
    weights: Sequence[Tensor],
    ranks: int | Sequence[int],
    moments: Sequence[Tensor] | None = None,
    start: Tensor | None = None,
    sweeps: int = 20,
    tolerance: float = 1e-4,
    damping: float = DAMPING,
) -> SharedWithDifferences:
    """One weight for all layers and a low-rank difference a layer, fitted in turns.

    ``shared <- mean of (W_l - left_l right_l)``, then ``left_l right_l <- (W_l - shared)`` cut to its rank, each step
    the optimum with the other side as it is; with ``sweeps=0`` the differences are fitted once, to ``start``.

    :param weights: ``(out, in)`` each.
    :param ranks: of every layer's difference, or one for all; 0 … min(out, in).
    :param moments: ``(in, in)`` each, ``E[x x^T]`` of the layer's inputs; all the identity if absent.
    :param start: the shared weight to begin with, ``(out, in)``; the mean weight if absent.
    :param sweeps: at most this many, 0 or more.
    :param tolerance: stop once a sweep lowers the error by less than this share of it.
    :param damping: see :func:`mean_weight`.
    :raises ValueError: if shapes disagree or a number is out of range.
    """
    checked, metrics = _checked(weights, moments, damping)
    full = min(checked[0].shape)
    chosen = [ranks] * len(checked) if isinstance(ranks, int) else list(ranks)
    if len(chosen) != len(checked) or not all(0 <= rank <= full for rank in chosen):
        raise ValueError(
            f"ranks={ranks}: {len(checked)} weights {tuple(checked[0].shape)} need one rank each, of 0…{full}"
        )
    if sweeps < 0:
        raise ValueError(f"sweeps={sweeps}: it must not be negative")
    shared = _mean(checked, metrics) if start is None else _fitting(start, checked)
    differences, error = _differences(checked, shared, metrics, chosen)
    errors = [error]
    for _ in range(sweeps):
        rest = [weight - left @ right for weight, (left, right) in zip(checked, differences, strict=True)]
        found = _mean(rest, metrics)
        fitted, error = _differences(checked, found, metrics, chosen)
        if error > errors[-1]:  # at the limit of float64
            break
        shared, differences = found, fitted
        errors.append(error)
        if error >= (1 - tolerance) * errors[-2]:
            break
    return SharedWithDifferences(shared, differences, errors)


def _differences(
    weights: Sequence[Tensor], shared: Tensor, metrics: Sequence[Tensor] | None, ranks: Sequence[int]
) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """The best differences of these ranks, and the error that they leave."""
    spectra = _spectra(weights, shared, metrics)
    error = sum(float(spectrum.errors()[rank]) for spectrum, rank in zip(spectra, ranks, strict=True))
    cut = [
        (one.up[:, :rank].contiguous(), one.down[:rank].contiguous()) for one, rank in zip(spectra, ranks, strict=True)
    ]
    return cut, error


def _spectra(weights: Sequence[Tensor], shared: Tensor, metrics: Sequence[Tensor] | None) -> list[LowRankSpectrum]:
    return [
        calibrated_spectrum(weight - shared, None if metrics is None else metrics[number])
        for number, weight in enumerate(weights)
    ]


def _mean(weights: Sequence[Tensor], metrics: Sequence[Tensor] | None) -> Tensor:
    if metrics is None:
        return torch.stack(list(weights)).mean(0)
    total = torch.stack([weight @ metric for weight, metric in zip(weights, metrics, strict=True)]).sum(0)
    return torch.cholesky_solve(total.T, cholesky_factor(torch.stack(list(metrics)).sum(0))).T


def _checked(
    weights: Sequence[Tensor], moments: Sequence[Tensor] | None, damping: float
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Weights in float64, and the moments with one damping for all."""
    if not weights or (moments is not None and len(moments) != len(weights)):
        raise ValueError(f"{len(weights)} weights and {len(moments or ())} moments: one moment each, and at least one")
    if damping <= 0:
        raise ValueError(f"damping={damping}: it must be positive")
    checked = [checked_matrix(weight, None if moments is None else moments[n]) for n, weight in enumerate(weights)]
    for number, weight in enumerate(checked):
        if weight.shape != checked[0].shape:
            raise ValueError(f"weight {number} is {tuple(weight.shape)}, the first {tuple(checked[0].shape)}")
    if moments is None:
        return checked, None
    metrics = [(moment.double() + moment.double().T) / 2 for moment in moments]
    energy = sum(float(metric.diagonal().mean()) for metric in metrics) / len(metrics)
    if not energy > 0:
        return checked, None
    identity = torch.eye(checked[0].shape[1], dtype=torch.float64, device=checked[0].device)
    return checked, [metric + damping * energy * identity for metric in metrics]


def _fitting(shared: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """A shared weight in float64.

    :raises ValueError: if it has not the layers' shape.
    """
    if shared.shape != weights[0].shape:
        raise ValueError(f"the shared weight is {tuple(shared.shape)}, the layers' are {tuple(weights[0].shape)}")
    return checked_matrix(shared)
