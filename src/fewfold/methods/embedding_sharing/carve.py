"""Carving: a block of columns of the expanded table, computed by itself and seen as a weight.

Hu, Cavicchioli, Berardinelli, Capotondi, *ShareBERT: Embeddings Are Capable of Learning Hidden Layers* (AAAI 2024).
The expanded table ``A = E · Pᵀ + b`` never exists: each slot's columns are ``E · P[c0:c1]ᵀ + b[c0:c1]``, which is
contiguous, so that its first numbers are the weight without a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewfold.methods.embedding_sharing.slots import Slot


class _Expand(torch.autograd.Function):
    """``table · projectionᵀ + bias`` whose node holds its inputs for as long as it lives.

    Several graphs may hang on one such node, and each of them be run backward by itself, any number of times: nothing
    is freed in between. Inputs that changed since are refused, as autograd refuses them.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, projection: Tensor, bias: Tensor | None, dtype: torch.dtype, spent: Callable[[], None]
    ) -> Tensor:
        ctx.held, ctx.spent = (table, projection, bias), spent
        ctx.versions = [_version(tensor) for tensor in (table, projection)]
        with torch.autocast(table.device.type, enabled=False):
            return _expanded(table, projection, bias, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        table, projection, bias = ctx.held
        if ctx.versions != [_version(tensor) for tensor in (table, projection)]:
            raise RuntimeError(
                "the table or its expansion was modified by an inplace operation between the forward pass that carved "
                "weights out of it and this backward pass: run backward before the optimizer's step"
            )
        (grad,), needs = grads, ctx.needs_input_grad
        of_table = of_projection = of_bias = None
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.to(table.dtype)  # the slots' contributions are summed: autocast's dtype is too coarse
            if needs[0]:
                of_table = grad @ projection.to(grad.dtype)
            if needs[1]:
                of_projection = grad.t() @ table
            if bias is not None and needs[2]:
                of_bias = grad.sum(0)
        ctx.spent()
        return of_table, of_projection, of_bias, None, None


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _expanded(table: Tensor, projection: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return F.linear(table.to(dtype), projection.to(dtype), None if bias is None else bias.to(dtype))


def carving_dtype(table: Tensor) -> torch.dtype:
    """The dtype that weights are carved in: autocast's, where that is on and would cast the table."""
    kind = table.device.type
    if table.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return table.dtype


def carve(
    slot: Slot,
    table: Tensor,
    projection: Tensor | None = None,
    bias: Tensor | None = None,
    spent: Callable[[], None] | None = None,
) -> Tensor:
    """The weight in ``slot``, of the slot's shape: a view of one block ``(rows, slot.columns)``.

    :param table: ``(rows, width)``.
    :param projection: ``(columns, width)`` and its ``bias`` ``(columns,)`` expand the table; without them the table
        itself is carved (its columns are copied: they do not lie together).
    :param spent: called when a backward pass has reached the block. With it the result may serve several backward
        passes; without it, and in traced graphs, the graph is autograd's own.
    """
    dtype = carving_dtype(table)
    columns = slice(slot.offset, slot.end)
    if projection is None:
        block = table[:, columns].to(dtype).contiguous()
        if spent is not None and block.requires_grad:
            block.register_hook(lambda _: spent())
    else:
        projection, bias = projection[columns], None if bias is None else bias[columns]
        if spent is not None:
            block = _Expand.apply(table, projection, bias, dtype, spent)
        else:
            block = _expanded(table, projection, bias, dtype)
    return block.reshape(-1)[: slot.numel].view(slot.shape)
