"""Dropout of vectors, of whole words, and with one mask for all steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sequence_dropout(hidden_states: Tensor, rate: float, training: bool, variational: bool) -> Tensor:
    """Dropout of ``(batch, length, width)``; ``variational``: one mask for all steps (Gal and Ghahramani, 2016)."""
    if not training or rate == 0.0:
        return hidden_states
    if not variational:
        return F.dropout(hidden_states, rate)
    return hidden_states * F.dropout(torch.ones_like(hidden_states[:, :1]), rate)


def word_dropout(embedded: Tensor, input_ids: Tensor, vocab_size: int, rate: float, training: bool) -> Tensor:
    """Drop whole words: all occurrences of a word in a batch together (Gal and Ghahramani, 2016).

    :param embedded: ``(batch, length, width)``, the vectors of ``input_ids``.
    """
    if not training or rate == 0.0:
        return embedded
    kept = F.dropout(torch.ones(vocab_size, dtype=embedded.dtype, device=embedded.device), rate)
    return embedded * kept[input_ids][..., None]
