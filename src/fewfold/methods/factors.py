"""What the modules of several methods need of their stored children."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewfold.assembled import must_be_called
from fewfold.stored import StoredDtype, StoredEmbedding, StoredLinear, make_embedding, make_linear
from fewfold.stored.modules import encode


def matrix_of(child: nn.Module) -> Tensor:
    """A stored child's matrix, ``(out, in)`` or ``(rows, columns)``.

    Where the child is packed it is dequantized; where it is more than its matrix (an adapter, another quantizer's
    module), it is called on the unit vectors, so that what is read is what it computes.
    """
    if must_be_called(child):
        return _effective_matrix(child)
    return child.matrix() if isinstance(child, StoredLinear | StoredEmbedding) else child.weight  # type: ignore[return-value]


def _effective_matrix(child: nn.Module) -> Tensor:
    base: Any = getattr(child, "base_layer", child)
    if isinstance(base, nn.Embedding):
        return child(torch.arange(base.num_embeddings, device=base.weight.device))
    bias = bias_of(child)
    like = next((t for t in (*child.parameters(), *child.buffers()) if t.is_floating_point()), None)
    like = torch.empty(0) if like is None else like
    columns = child(torch.eye(base.in_features, dtype=like.dtype, device=like.device))
    return (columns if bias is None else columns - bias).t()


def bias_of(child: nn.Module) -> Any:
    """A stored child's bias, also where it is wrapped by an adapter or kept by another quantizer's module."""
    bias = getattr(getattr(child, "base_layer", child), "bias", None)
    return bias() if callable(bias) and not isinstance(bias, Tensor) else bias


def resized(table: nn.Module, rows: int, padding_idx: int | None) -> tuple[nn.Embedding, int | None]:
    """A table with another number of rows: kept rows stay equal, new ones get the mean row.

    :return: the new table and its padding row (None if that was cut off).
    """
    old = matrix_of(table).detach()
    padding = padding_idx if padding_idx is not None and padding_idx < rows else None
    with torch.device(old.device):
        fresh = make_embedding(rows, old.shape[1], padding, getattr(table, "stored", StoredDtype())).to(old.dtype)
    _take_rows(fresh, table, old)
    return fresh, padding


def resized_linear(linear: nn.Module, rows: int) -> nn.Linear:
    """A linear map with another number of outputs: kept ones stay equal, new ones get the mean row and bias."""
    old, bias = matrix_of(linear).detach(), bias_of(linear)
    with torch.device(old.device):
        stored = getattr(linear, "stored", StoredDtype())
        fresh = make_linear(old.shape[1], rows, bias is not None, stored).to(old.dtype)
    if bias is not None:
        fresh.bias.copy_(_with_rows(bias.detach(), rows))
        fresh.bias.requires_grad_(bias.requires_grad)
    _take_rows(fresh, linear, old)
    return fresh


def _with_rows(old: Tensor, rows: int) -> Tensor:
    """The first rows of ``old``, and its mean where there are more."""
    kept = old[:rows]
    return torch.cat([kept, old.mean(0, keepdim=True).expand(rows - kept.shape[0], *old.shape[1:])])


def _take_rows(fresh: Any, old: nn.Module, matrix: Tensor) -> None:
    """Fill ``fresh`` with the rows of ``old``, on the same grid, packed and trainable as that is."""
    packed = isinstance(old, StoredLinear | StoredEmbedding) and old.is_packed
    rows = _with_rows(matrix, fresh.weight.shape[0])
    if isinstance(fresh, StoredLinear | StoredEmbedding) and fresh.stored.is_integer and not rows.is_meta:
        kept = min(len(rows), len(matrix))
        codes, scales = encode(rows, fresh.stored)
        if isinstance(old, StoredLinear | StoredEmbedding):
            codes[:kept], scales[:kept] = (tensor[:kept] for tensor in old.grid())
        fresh.set_grid_(codes, scales)
    else:
        fresh.weight.copy_(rows)
        if isinstance(fresh, StoredLinear | StoredEmbedding):
            fresh.round_()
    trains = old.trains if packed else any(parameter.requires_grad for parameter in old.parameters())
    fresh.weight.requires_grad_(trains)
    fresh.train(old.training)
    if packed:
        fresh.pack_()
