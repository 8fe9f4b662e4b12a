"""What the modules of several methods need of their stored children."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewfold.stored import StoredDtype, StoredEmbedding, StoredLinear, make_embedding


def matrix_of(child: nn.Module) -> Tensor:
    """A stored child's matrix, also where it is packed or wrapped by an adapter."""
    child = getattr(child, "base_layer", child)
    return child.matrix() if isinstance(child, StoredLinear | StoredEmbedding) else child.weight  # type: ignore[return-value]


def resized(table: nn.Module, rows: int, padding_idx: int | None) -> tuple[nn.Embedding, int | None]:
    """A table with another number of rows: kept rows stay equal, new ones get the mean row.

    :return: the new table and its padding row (None if that was cut off).
    """
    old = matrix_of(table)
    keep = min(rows, old.shape[0])
    new = old.mean(0, keepdim=True).expand(rows, -1).clone()
    new[:keep] = old[:keep]
    padding = padding_idx if padding_idx is not None and padding_idx < rows else None
    packed = isinstance(table, StoredEmbedding) and table.is_packed
    with torch.device(old.device):
        fresh = make_embedding(rows, old.shape[1], padding, getattr(table, "stored", StoredDtype())).to(old.dtype)
    fresh.weight.copy_(new)
    fresh.weight.requires_grad_(old.requires_grad or packed)
    if packed:
        fresh.pack_()  # type: ignore[operator]
    return fresh, padding
