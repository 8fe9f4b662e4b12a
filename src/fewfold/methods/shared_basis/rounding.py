"""Bases and coefficients in few bits, each rounded so that what it is multiplied with suffers least."""

from __future__ import annotations

import torch
from torch import Tensor

from fewfold.linalg.quantize import quantize_with_feedback
from fewfold.linalg.shared_basis import Side
from fewfold.linalg.spectra import damped
from fewfold.stored import StoredDtype
from fewfold.stored.modules import decode, encode


def is_coarse(stored: StoredDtype) -> bool:
    """Whether rounding costs so much that the coefficients should make it good."""
    return stored.bits is not None and stored.bits < 8


def kept(matrix: Tensor, metric: Tensor | None, stored: StoredDtype) -> tuple[dict[str, Tensor], Tensor]:
    """A matrix as the tensors that fill its leaf, and the matrix that these stand for.

    :param metric: ``(columns, columns)`` second moment of what it is multiplied with, or None where that is unknown.
    :return: ``weight``, or ``codes`` and ``scales`` of few bits; and the matrix, float64.
    """
    if not is_coarse(stored):
        return {"weight": matrix}, matrix
    if metric is None:
        codes, scales = encode(matrix, stored)
        return {"codes": codes, "scales": scales}, decode(codes, scales, matrix.shape[1], stored, torch.float64)
    assert stored.bits is not None
    rounded = quantize_with_feedback(matrix, metric, stored.bits, stored.group, stored.scale_dtype)
    return {"codes": rounded.packed(), "scales": rounded.scales}, rounded.dequantize(torch.float64)


def met_by_coefficients(basis: Tensor, moment: Tensor | None, side: Side) -> Tensor | None:
    """Second moment of what coefficients are multiplied with: what the basis read, or the inputs themselves."""
    if moment is None or side == "out":
        return moment
    return damped(basis @ moment.double() @ basis.t(), 1e-3)
