"""Small helpers around symmetric eigen-decompositions, always in float64."""

import torch
from torch import Tensor

from fewfold.linalg.finite import is_finite

# Sums of fp32 products are noisy below about 1e-7 of the largest eigenvalue: nothing smaller is inverted.
SMALLEST_EIGENVALUE = 1e-8


def eigh_descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigen-decomposition of a symmetric positive semi-definite matrix, largest eigenvalue first.

    The matrix is symmetrised and taken to float64; rounding below zero is clipped; the sign of each
    vector makes its entry of largest magnitude positive, so that equal input gives equal output.

    :param matrix: ``(n, n)``.
    :return: eigenvalues ``(n,)`` and eigenvectors ``(n, n)``, one a column.
    :raises ValueError: if the matrix is not square, or holds an infinity or a NaN.
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"expected a square matrix, got shape {tuple(matrix.shape)}")
    matrix = matrix.to(torch.float64)
    if not is_finite(matrix):
        raise ValueError("the matrix holds an infinity or a NaN: check the statistics it was built from")
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.flip(0).clamp_min(0.0), fix_signs(vectors.flip(1))


def fix_signs(vectors: Tensor) -> Tensor:
    """Flip columns so that each one's entry of largest magnitude is positive.

    :param vectors: ``(n, k)``, one vector a column.
    :return: the same vectors with settled signs.
    """
    return vectors * column_signs(vectors) if vectors.numel() else vectors


def column_signs(vectors: Tensor) -> Tensor:
    """The sign of every column's entry of largest magnitude, ``(k,)`` of 1 and −1; 1 where two signs are as large.

    :param vectors: ``(n, k)``, ``n`` at least 1.
    """
    return torch.where(-vectors.amin(0) > vectors.amax(0), -1.0, 1.0).to(vectors.dtype)


def damped(metric: Tensor, damping: float) -> Tensor:
    """Add ``damping`` times the mean eigenvalue to the diagonal, in float64.

    A metric that is all zero becomes the identity, so that the result can always be inverted
    when ``damping`` is positive.

    :param metric: symmetric positive semi-definite ``(n, n)``.
    :param damping: relative to the mean eigenvalue; not negative.
    :return: ``(n, n)`` float64.
    :raises ValueError: if ``damping`` is negative.
    """
    if damping < 0:
        raise ValueError(f"damping={damping}: it must not be negative")
    metric = metric.to(torch.float64)
    mean = float(metric.diagonal().mean())
    identity = torch.eye(metric.shape[0], dtype=torch.float64, device=metric.device)
    return metric + damping * mean * identity if mean > 0 else identity


def cholesky_factor(metric: Tensor) -> Tensor:
    """Lower triangular ``S`` with ``S S^T`` the metric, its smallest eigenvalues raised where it is singular.

    :param metric: symmetric positive semi-definite ``(n, n)``.
    :return: ``(n, n)`` float64.
    """
    metric = metric.to(torch.float64)
    metric = (metric + metric.T) / 2
    smallest = max(float(metric.diagonal().max()) * SMALLEST_EIGENVALUE, torch.finfo(torch.float64).tiny)
    identity = torch.eye(metric.shape[0], dtype=torch.float64, device=metric.device)
    raised = 0.0
    for _ in range(12):
        factor, failed = torch.linalg.cholesky_ex(metric + raised * identity)
        if not int(failed) and float(factor.diagonal().min()) ** 2 >= 0.5 * smallest:
            return factor
        raised = max(10 * raised, smallest)
    raise ValueError("the metric is not positive semi-definite: check the statistics it was built from")
