"""Softmax cross-entropy over a large vocabulary: exact, with logits of only a chunk of tokens at a time.

Gradients are worked out in the forward pass, chunk by chunk, right where the logits are; the backward pass only scales
them. Nothing of size tokens × vocabulary outlives its chunk, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fewfold.linalg.gather_sum import TRAINED_BATCH, GatherSum, partial_products


def dense_softmax_loss(
    states: Tensor, table: Tensor, bias: Tensor | None, labels: Tensor, chunk: int, scale: float
) -> Tensor:
    """``scale · Σ_t −log softmax(states_t · tableᵀ + bias)[labels_t]``.

    bf16 and fp16 are multiplied as they are, everything else is in fp32.

    :param states: ``(tokens, dim)``.
    :param table: ``(vocab, dim)``.
    :param bias: ``(vocab,)`` or None.
    :param labels: ``(tokens,)`` int64, ``0 … vocab - 1``.
    :param chunk: tokens whose logits exist at one time.
    """
    states, table, bias = _wanted(states, table, bias)
    kind = states.device.type
    if torch.is_autocast_enabled(kind):
        lower = torch.get_autocast_dtype(kind)
        states, table = states.to(lower), table.to(lower)
    with torch.autocast(kind, enabled=False):
        return _DenseLoss.apply(states, table, bias, labels, chunk, scale)  # type: ignore[no-any-return]


def coded_softmax_loss(
    states: Tensor,
    book: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    plan: GatherSum,
    positions: int,
    chunk: int,
    scale: float,
) -> Tensor:
    """As :func:`dense_softmax_loss` for a table of shared sub-vectors that is never built.

    Logits are sums of partial products; their gradients are spread back over the same sub-vectors by the transposed
    sum (Li et al., AAAI 2018, read backwards).

    :param book: ``(positions · words, width)``, ``positions · width == dim``.
    :param plan: which partial products every word's logit sums.
    """
    states, book, bias = _wanted(states, book, bias)
    with torch.autocast(states.device.type, enabled=False):
        return _CodedLoss.apply(states, book, bias, labels, plan, positions, chunk, scale)  # type: ignore[no-any-return]


def _wanted(states: Tensor, matrix: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Without what a gradient would be worked out for, where none is wanted: a function is not told of no_grad."""
    if torch.is_grad_enabled():
        return states, matrix, bias
    return states.detach(), matrix.detach(), None if bias is None else bias.detach()


class _Sums:
    """A loss and its gradients, added up over chunks."""

    def __init__(self, ctx: Any, states: Tensor, matrix: Tensor, bias: Tensor | None, places: tuple[int, int]) -> None:
        wide = torch.float64 if states.dtype == torch.float64 else torch.float32
        needs = ctx.needs_input_grad
        self.wide = wide
        self.loss = torch.zeros((), dtype=wide, device=states.device)
        self.states = torch.empty_like(states) if needs[places[0]] else None
        self.matrix = torch.zeros_like(matrix, dtype=wide) if needs[places[1]] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
        self.any = any(part is not None for part in (self.states, self.matrix, self.bias))

    def save(self, ctx: Any, matrix: Tensor, bias: Tensor | None) -> None:
        """Keep the gradients, in their tensors' dtypes, for the backward pass."""
        ctx.gradients = (
            self.states,
            None if self.matrix is None else self.matrix.to(matrix.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )


def _scaled(ctx: Any, gradient: Tensor) -> list[Tensor | None]:
    """The kept gradients times the loss's own; a factor of 1 costs nothing.

    :raises RuntimeError: the second time, as they are given away.
    """
    factor, kept = float(gradient), ctx.gradients
    if kept is None:
        raise RuntimeError(
            "the chunked loss gives its gradients away in the first backward pass: call the model again in place of "
            "backward(retain_graph=True) twice"
        )
    ctx.gradients = None
    return [part if part is None or factor == 1.0 else part.mul_(factor) for part in kept]


class _DenseLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        states, table, bias, labels, chunk, scale = args
        sums = _Sums(ctx, states, table, bias, (0, 1))
        for start in range(0, len(states), chunk):
            run = slice(start, start + chunk)
            part, wanted = states[run], labels[run]
            logs = F.log_softmax(_logits(part, table, bias).to(sums.wide), -1)
            rows = torch.arange(len(part), device=part.device)
            sums.loss -= logs[rows, wanted].sum() * scale
            if not sums.any:
                continue
            errors = logs.exp_()
            errors[rows, wanted] -= 1.0
            if sums.bias is not None:
                sums.bias.add_(errors.sum(0), alpha=scale)
            errors = errors.to(part.dtype)
            if sums.states is not None:
                sums.states[run] = (errors @ table) * scale
            if sums.matrix is not None:
                _add_product(sums.matrix, errors.t(), part * scale)
        sums.save(ctx, table, bias)
        return sums.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*_scaled(ctx, gradients[0]), None, None, None)


class _CodedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        states, book, bias, labels, plan, positions, chunk, scale = args
        sums = _Sums(ctx, states, book, bias, (0, 1))
        cube = book.unflatten(0, (positions, -1)).to(sums.wide)
        cube_sums = None if sums.matrix is None else sums.matrix.unflatten(0, (positions, -1))
        step = min(chunk, TRAINED_BATCH)
        for start in range(0, len(states), step):
            run = slice(start, start + step)
            part, wanted = states[run].to(sums.wide), labels[run]
            logits = plan.sum_of(partial_products(part, cube, positions))
            if bias is not None:
                logits += bias[:, None]
            errors, shift, totals = _exponentials(logits, wanted)
            columns = torch.arange(len(part), device=part.device)
            sums.loss += (totals.log() + shift).sum() * scale
            if not sums.any:
                continue
            errors[wanted, columns] -= totals  # every column still lacks its factor scale / total
            factors = scale / totals
            if sums.bias is not None:
                sums.bias.addmv_(errors, factors)
            spread = plan.spread(errors).unflatten(0, (positions, -1))
            if sums.states is not None:
                found = torch.bmm(spread.transpose(1, 2), cube).transpose(0, 1).flatten(1)
                sums.states[run] = found * factors[:, None]
            if cube_sums is not None:
                scaled = (part * factors[:, None]).view(len(part), positions, -1)
                cube_sums.baddbmm_(spread, scaled.transpose(0, 1))
        sums.save(ctx, book, bias)
        return sums.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*_scaled(ctx, gradients[0]), None, None, None, None, None)


def _exponentials(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``exp(logits − shift)`` in place, with the shift left over in the loss, and the sums of the columns.

    The label's own logit is the shift, which needs no search for the largest one (slow along columns). Only where
    another word is so much likelier that the sum overflows, the largest logit is.

    :param logits: ``(vocab, tokens)``.
    :return: exponentials, ``shift − logit of the label`` ``(tokens,)``, sums ``(tokens,)``.
    """
    columns = torch.arange(logits.shape[1], device=logits.device)
    own = logits[labels, columns]
    ones = logits.new_ones(logits.shape[0])
    errors = (logits - own).exp_()
    totals = torch.mv(errors.t(), ones)
    if bool(totals.isfinite().all()):
        return errors, torch.zeros_like(own), totals
    largest = logits.amax(0)
    errors = (logits - largest).exp_()
    return errors, largest - own, torch.mv(errors.t(), ones)


def called_softmax_loss(
    states: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor, chunk: int, scale: float
) -> Tensor:
    """As :func:`dense_softmax_loss` for any output layer, which is called; its logits are computed again backwards.

    :param head: ``(tokens, dim)`` to ``(tokens, vocab)``.
    """
    from torch.utils.checkpoint import checkpoint

    def loss_of(part: Tensor, wanted: Tensor) -> Tensor:
        logits = head(part)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, wanted, reduction="sum")

    total: Any = 0.0
    for part, wanted in zip(states.split(chunk), labels.split(chunk), strict=True):
        total = total + checkpoint(loss_of, part, wanted, use_reentrant=False)
    return total * scale


def _logits(states: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(states, table, None if bias is None else bias.to(states.dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left · right``, also where they are of fewer bits."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
