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


def mean_weight(
    weights: Sequence[Tensor],
    moments: Sequence[Tensor] | None = None,
    damping: float = DAMPING,
    counts: Sequence[float] | None = None,
) -> Tensor:
    """The one weight with the smallest error: ``(sum_l W_l C_l)(sum_l C_l)^-1``; the mean where all ``C_l`` are equal.

    :param weights: ``(out, in)`` each.
    :param moments: ``(in, in)`` each, ``E[x x^T]`` of the layer's inputs; all the identity if absent.
    :param damping: share of the moments' mean eigenvalue that is added to every moment's diagonal; positive.
    :param counts: how many times each layer's error counts, damping included; positive, all once if absent.
    :return: ``(out, in)`` float64.
    :raises ValueError: if shapes disagree, a number is not finite, or ``damping`` or a count is not positive.
    """
    checked, metrics = _checked(weights, moments, damping)
    if counts is not None:
        if len(counts) != len(checked) or not all(count > 0 for count in counts):
            raise ValueError(f"counts={list(counts)}: {len(checked)} weights need a positive count each")
        if metrics is None:
            identity = torch.eye(checked[0].shape[1], dtype=torch.float64, device=checked[0].device)
            metrics = [identity] * len(checked)
        metrics = [metric * count for metric, count in zip(metrics, counts, strict=True)]
    return _Layers(checked, metrics).mean(checked)


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
    layers = _Layers(*_checked(weights, moments, damping))
    shared = _fitting(shared, layers.weights)
    return [layers.spectrum(number, shared) for number in range(len(weights))]


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

    A sweep goes over the layers: each one's difference becomes ``(W_l - shared)`` cut to its rank, and ``shared`` the
    mean of all ``W_l - left_l right_l``, every step the optimum with all else as it is. Layer by layer, as differences
    that are all cut at once from the mean of two layers are each other's negatives and stay so. With ``sweeps=0`` the
    differences are fitted once, to ``start``.

    :param weights: ``(out, in)`` each.
    :param ranks: of every layer's difference, or one for all; 0 … min(out, in).
    :param moments: ``(in, in)`` each, ``E[x x^T]`` of the layer's inputs; all the identity if absent.
    :param start: the shared weight to begin with, ``(out, in)``; the mean weight if absent.
    :param sweeps: at most this many, 0 or more.
    :param tolerance: stop once a sweep lowers the error by less than this share of it.
    :param damping: see :func:`mean_weight`.
    :raises ValueError: if shapes disagree or a number is out of range.
    """
    layers = _Layers(*_checked(weights, moments, damping))
    full = min(layers.weights[0].shape)
    chosen = [ranks] * len(weights) if isinstance(ranks, int) else list(ranks)
    if len(chosen) != len(weights) or not all(0 <= rank <= full for rank in chosen):
        raise ValueError(
            f"ranks={ranks}: {len(weights)} weights {tuple(weights[0].shape)} need one rank each, of 0…{full}"
        )
    if sweeps < 0:
        raise ValueError(f"sweeps={sweeps}: it must not be negative")
    shared = layers.mean(layers.weights) if start is None else _fitting(start, layers.weights)
    none = [(shared.new_zeros(shared.shape[0], 0), shared.new_zeros(0, shared.shape[1]))] * len(weights)
    found = _Fit(shared, [layers.cut(number, shared, rank) for number, rank in enumerate(chosen)])
    errors = [layers.error(found)]
    for number in range(sweeps):
        after = layers.sweep(found, chosen)
        if number == 0:
            after = min(after, layers.sweep(_Fit(shared, none), chosen), key=layers.error)
        error = layers.error(after)
        if error > errors[-1]:  # at the limit of float64
            break
        found = after
        errors.append(error)
        if error >= (1 - tolerance) * errors[-2]:
            break
    return SharedWithDifferences(found.shared, found.differences, errors)


class _Fit(NamedTuple):
    shared: Tensor
    differences: list[tuple[Tensor, Tensor]]


class _Layers:
    """Weights with their moments, and the steps on them."""

    def __init__(self, weights: list[Tensor], metrics: list[Tensor] | None) -> None:
        self.weights = weights
        self.metrics: Sequence[Tensor | None] = [None] * len(weights) if metrics is None else metrics
        self.factor = None if metrics is None else cholesky_factor(sum(metrics[1:], metrics[0]))

    def mean(self, weights: Sequence[Tensor]) -> Tensor:
        """The shared weight that suits these best."""
        total = torch.zeros_like(weights[0])
        for weight, metric in zip(weights, self.metrics, strict=True):
            total += weight if metric is None else weight @ metric
        return total / len(weights) if self.factor is None else torch.cholesky_solve(total.T, self.factor).T

    def spectrum(self, number: int, shared: Tensor) -> LowRankSpectrum:
        """One layer's difference, decomposed."""
        return calibrated_spectrum(self.weights[number] - shared, self.metrics[number])

    def cut(self, number: int, shared: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """One layer's best difference of a rank."""
        full = self.spectrum(number, shared)
        return full.up[:, :rank].contiguous(), full.down[:rank].contiguous()

    def sweep(self, fit: _Fit, ranks: Sequence[int]) -> _Fit:
        """Every layer's difference anew, and the shared weight after each."""
        shared, differences = fit.shared, list(fit.differences)
        rest = [weight - left @ right for weight, (left, right) in zip(self.weights, differences, strict=True)]
        for number, rank in enumerate(ranks):
            left, right = differences[number] = self.cut(number, shared, rank)
            rest[number] = self.weights[number] - left @ right
            shared = self.mean(rest)
        return _Fit(shared, differences)

    def error(self, fit: _Fit) -> float:
        """What a fit leaves."""
        total = 0.0
        for weight, metric, (left, right) in zip(self.weights, self.metrics, fit.differences, strict=True):
            gap = weight - fit.shared - left @ right
            total += float(((gap if metric is None else gap @ metric) * gap).sum())
        return total


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
