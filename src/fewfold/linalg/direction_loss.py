"""The loss that trains a table's auto-encoder for direction (Bałazy et al., RepL4NLP 2021, as in the authors' code).

``cosine/5 · mean(1 − cos) + magnitude · mean |residual|^exponent + squared · rms(residual)``: direction first, and a
little of the magnitude, which the cosine alone leaves open.
"""

import torch
from torch import Tensor

ANNEALED_EPOCHS = 20  # epochs over which the exponent falls
LAST_EXPONENT = 0.1
COSINE_SCALE = 5.0  # the cosine term's coefficient is divided by this
SMALLEST_NORMS = 1e-6  # that a product of two norms is divided by
SMALLEST_RESIDUAL = 1e-10  # added before the power, whose slope at zero is infinite


def magnitude_exponent(epoch: int) -> float:
    """Power of the residuals in an epoch: from 1, a mean of absolutes, down in a line to 0.1, nearly a count.

    :param epoch: 0-based.
    :return: ``1 − 0.9 · epoch / 20``, and 0.1 from epoch 20 on.
    :raises ValueError: for a negative epoch.
    """
    if epoch < 0:
        raise ValueError(f"epoch={epoch}: epochs are counted from 0")
    if epoch >= ANNEALED_EPOCHS:
        return LAST_EXPONENT
    return 1.0 - (1.0 - LAST_EXPONENT) * epoch / ANNEALED_EPOCHS


def cosine_distances(reconstruction: Tensor, rows: Tensor) -> Tensor:
    """``1 − cos`` of every row, 0 … 2; 1 without gradient where either row is all zeros.

    :param reconstruction: ``(rows, dim)``.
    :param rows: ``(rows, dim)``.
    :return: ``(rows,)``, fp32 at least.
    """
    reconstruction, rows = _wide(reconstruction), _wide(rows)
    norms = torch.linalg.vector_norm(reconstruction, dim=-1) * torch.linalg.vector_norm(rows, dim=-1)
    products = torch.where(norms > 0, (reconstruction * rows).sum(-1), 0.0)
    return 1.0 - products / norms.clamp_min(SMALLEST_NORMS)


def direction_loss(
    reconstruction: Tensor,
    rows: Tensor,
    exponent: float = LAST_EXPONENT,
    *,
    cosine: float = 0.9975,
    magnitude: float = 0.0025,
    squared: float = 0.0,
    row_weights: Tensor | None = None,
) -> Tensor:
    """The loss of a batch of rows. A term whose coefficient is 0 is not evaluated.

    :param reconstruction: ``(rows, dim)``.
    :param rows: ``(rows, dim)``, what is reconstructed.
    :param exponent: of the residuals, see `magnitude_exponent`.
    :param cosine: coefficient of the mean cosine distance (divided by 5, as published).
    :param magnitude: coefficient of the mean of ``(|residual| + 1e-10) ^ exponent``.
    :param squared: coefficient of the root of the mean squared residual.
    :param row_weights: ``(rows,)``, not negative; means over rows are weighted by them (None: alike; all zero: the loss
        is 0).
    :return: a scalar, fp32 at least.
    """
    reconstruction, rows = _wide(reconstruction), _wide(rows)
    share = None
    if row_weights is not None:
        share = row_weights.to(rows) / row_weights.to(rows).sum().clamp_min(torch.finfo(rows.dtype).tiny)
    loss = reconstruction.new_zeros(())
    if cosine:
        loss = loss + cosine / COSINE_SCALE * _mean(cosine_distances(reconstruction, rows), share)
    if magnitude:
        powers = ((reconstruction - rows).abs() + SMALLEST_RESIDUAL).pow(exponent)
        loss = loss + magnitude * _mean(powers.mean(-1), share)
    if squared:
        loss = loss + squared * _mean((reconstruction - rows).square().mean(-1), share).sqrt()
    return loss


def _wide(tensor: Tensor) -> Tensor:
    """Half precision as fp32: small residuals to a small power need it."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _mean(values: Tensor, share: Tensor | None) -> Tensor:
    return values.mean() if share is None else share @ values
