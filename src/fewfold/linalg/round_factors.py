"""Round both factors of a low-rank matrix to few bits, the second making good what the first lost."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewfold.linalg.low_rank import LowRankFactors
from fewfold.linalg.quantize import QuantizedMatrix, quantize_with_feedback
from fewfold.linalg.spectra import column_signs, damped, eigh_descending


@dataclass(frozen=True)
class RoundedFactors:
    """``weight ~ up @ down`` with both factors in few bits."""

    up: QuantizedMatrix
    down: QuantizedMatrix

    def dequantize(self, dtype: torch.dtype = torch.float32) -> LowRankFactors:
        """The factors that the codes stand for."""
        return LowRankFactors(self.up.dequantize(dtype), self.down.dequantize(dtype))


def balance(factors: LowRankFactors) -> LowRankFactors:
    """Turn a product into the form ``(U sqrt(S)) (sqrt(S) V^T)`` of its SVD; the product stays.

    :param factors: ``up`` ``(out, rank)``, ``down`` ``(rank, in)``, rank at most ``min(out, in)``.
    :return: float64 factors, the largest singular value first.
    """
    up, down = factors.up.to(torch.float64), factors.down.to(torch.float64)
    left, left_rest = torch.linalg.qr(up)
    del up  # as large as a table of a whole vocabulary
    right, right_rest = torch.linalg.qr(down.T)
    inner_left, values, inner_right = torch.linalg.svd(left_rest @ right_rest.T)
    turned = left @ inner_left
    signed_root = values.sqrt() * column_signs(turned)
    return LowRankFactors(turned.mul_(signed_root), signed_root[:, None] * (inner_right @ right.T))


def refit_up(factors: LowRankFactors, down: Tensor, input_moment: Tensor, damping: float = 1e-3) -> Tensor:
    """Least-squares ``up`` for a changed ``down``: ``min E|up_0 down_0 x - up down x|^2``.

    Pulled towards the old ``up`` where the changed ``down`` carries little energy.

    :param factors: the product to come close to.
    :param down: ``(rank, in)``, for example the old one after rounding.
    :param input_moment: ``(in, in)``, second moment or covariance of ``x``.
    :param damping: relative to the mean energy of ``down x``.
    :return: ``(out, rank)`` float64.
    """
    down, moment = down.to(torch.float64), input_moment.to(torch.float64)
    old_up, old_down = factors.up.to(torch.float64), factors.down.to(torch.float64)
    inner = down @ moment @ down.T
    strength = damping * float(inner.diagonal().mean())
    if strength <= 0:
        return old_up
    identity = torch.eye(len(inner), dtype=torch.float64, device=inner.device)
    right = old_up @ (old_down @ moment @ down.T + strength * identity)
    values, vectors = eigh_descending(inner)
    return (right @ vectors / (values + strength)) @ vectors.T


def round_factors(
    factors: LowRankFactors,
    input_moment: Tensor,
    bits: int,
    group_size: int | None = None,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> RoundedFactors:
    """Balance, round ``down`` with error feedback, refit ``up`` to the result, round it with feedback.

    :param factors: the product to round.
    :param input_moment: ``(in, in)``, second moment or, if the bias is corrected afterwards, covariance.
    :param bits: 2 … 8, of both factors.
    :param group_size: columns per scale in either factor; a whole row if absent.
    :param scale_dtype: dtype of the stored scales.
    :return: both factors in few bits; correct the bias for their product with `corrected_bias`.
    :raises ValueError: as `quantize_with_feedback`.
    """
    factors = balance(factors)
    down = quantize_with_feedback(factors.down, input_moment, bits, group_size, scale_dtype)
    rounded = down.dequantize(torch.float64)
    up = refit_up(factors, rounded, input_moment)
    inner_moment = damped(rounded @ input_moment.to(torch.float64) @ rounded.T, 1e-3)
    return RoundedFactors(quantize_with_feedback(up, inner_moment, bits, group_size, scale_dtype), down)
