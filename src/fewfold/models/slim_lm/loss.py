"""Losses of a language model that never hold all logits, for any output layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.assembled import AssembledLinear, must_be_called
from fewfold.errors import ModelError
from fewfold.linalg.chunked_softmax import called_softmax_loss, coded_softmax_loss, dense_softmax_loss
from fewfold.models.slim import SlimSoftmax
from fewfold.models.slim_lm.noise import Noise, nce_loss, sampled_softmax_loss, with_one
from fewfold.stored.modules import StoredLinear
from fewfold.surgery.ties import TiedHead

IGNORED = -100


@dataclass(frozen=True)
class LossOptions:
    """How the loss is computed.

    :param kind: ``full`` softmax, ``sampled`` softmax or ``nce``.
    :param chunk: tokens whose logits exist at one time.
    :param samples: noise words of a batch.
    :param counts: ``(vocab,)`` how often words occur, for noise after them; None for log-uniform noise.
    :param log_normalizer: log Z of NCE; None for log(vocab).
    """

    kind: str = "full"
    chunk: int = 256
    samples: int = 1024
    counts: Tensor | None = None
    log_normalizer: float | None = None


def lm_loss(
    hidden_states: Tensor, labels: Tensor, head: nn.Module, options: LossOptions | None = None, divisor: Any = None
) -> Tensor:
    """Mean cross-entropy of the words that ``head`` predicts.

    :param hidden_states: ``(…, dim)``.
    :param labels: ``(…)``, -100 where nothing is asked.
    :param head: the output layer: slim, dense, replaced by any method, or wrapped by an adapter.
    :param divisor: what to divide the sum by, in place of the number of labels.
    :raises ModelError: if a label is no word.
    """
    options = options or LossOptions()
    states, labels = hidden_states.reshape(-1, hidden_states.shape[-1]), labels.reshape(-1)
    kept = labels != IGNORED
    if not bool(kept.all()):
        states, labels = states[kept], labels[kept]
    words = int(head.out_features)  # type: ignore[arg-type]
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= words):
        found = f"{int(labels.min())}…{int(labels.max())}"
        raise ModelError(f"labels hold {found}; they must be 0…{words - 1}, or {IGNORED} to be left out")
    scale = 1.0 / float(max(1, len(labels)) if divisor is None else divisor)
    if not len(labels):
        return states.sum() * 0.0
    if options.kind != "full":
        return noise_loss(states, labels, head, options) * scale
    return softmax_loss(states, labels, head, options.chunk, scale)


def softmax_loss(states: Tensor, labels: Tensor, head: nn.Module, chunk: int, scale: float) -> Tensor:
    """``scale · Σ`` of the full softmax's losses, in the way that suits ``head``."""
    bias: Any = getattr(head, "bias", None)
    if isinstance(head, SlimSoftmax):
        coded = head.matrix
        if head.chained_loss(len(states)):
            book, plan = coded.book(0), coded.plan()
            return coded_softmax_loss(states, book, bias, labels, plan, coded.positions(0), chunk, scale)
        return dense_softmax_loss(states, coded(), bias, labels, chunk, scale)
    table = table_of(head)
    if table is None:
        return called_softmax_loss(states, head, labels, chunk, scale)
    return dense_softmax_loss(states, table, bias, labels, chunk, scale)


def noise_loss(states: Tensor, labels: Tensor, head: nn.Module, options: LossOptions) -> Tensor:
    """The sum of sampled-softmax or NCE losses; of a slim table only the words at hand are built.

    :raises ModelError: if the output layer can only be called as a whole.
    """
    noise = Noise(int(head.out_features), options.counts)  # type: ignore[arg-type]
    drawn = noise.draw(options.samples, states.device)
    rows = _rows(head, torch.cat([labels, drawn])).to(states.dtype)
    args = (with_one(states), rows[: len(labels)], rows[len(labels) :], labels, drawn, noise)
    if options.kind == "sampled":
        return sampled_softmax_loss(*args)
    fixed = options.log_normalizer
    return nce_loss(*args, math.log(noise.words) if fixed is None else fixed)


def _rows(head: nn.Module, ids: Tensor) -> Tensor:
    """Rows of an output layer with their biases as last column, ``(ids, dim + 1)``."""
    if isinstance(head, SlimSoftmax):
        rows = head.matrix.look_up(ids)
    else:
        table = table_of(head)
        if table is None:
            raise ModelError(
                f"loss='sampled' and 'nce' read rows of the output layer, a {type(head).__name__}: use loss='full'"
            )
        rows = F.embedding(ids, table)
    bias: Any = getattr(head, "bias", None)
    last = rows.new_zeros(len(ids), 1) if bias is None else F.embedding(ids, bias[:, None])
    return torch.cat([rows, last], 1)


def table_of(head: nn.Module) -> Tensor | None:
    """The table of an output layer that is no more than that and its bias; None where it has to be called."""
    if must_be_called(head):
        return None
    if isinstance(head, StoredLinear):
        return head.matrix()
    if type(head) is nn.Linear:
        return head.weight
    assembled = head.table if isinstance(head, TiedHead) else head
    if isinstance(assembled, AssembledLinear) or isinstance(head, TiedHead):
        if any(must_be_called(leaf) for leaf in assembled.leaves()):  # type: ignore[operator]
            return None
        return assembled.assembled_weight()  # type: ignore[operator, no-any-return]
    return None
