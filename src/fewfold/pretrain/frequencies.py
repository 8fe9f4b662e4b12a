"""What knowing how frequent tokens are, and nothing of their neighbours, would score: the floor of pretraining."""

from __future__ import annotations

import torch
from torch import Tensor

from fewfold.pretrain.masking import IGNORED, Masking

LITTLE = 0.05  # nats below the floor that say that context is used


def counts_of(masking: Masking, rows: Tensor) -> Tensor:
    """How often each token occurs in windows, `(vocab,)`; special tokens, which are never asked for, 0 times."""
    counts = torch.bincount(rows.flatten().long(), minlength=masking.vocabulary)
    counts[list(masking.special)] = 0
    return counts


def frequency_loss(masking: Masking, rows: Tensor, judged: Tensor) -> float:
    """Mean cross-entropy of masked tokens under their frequencies in the text to learn from, each counted once more.

    Models stay here for some time before they begin to look at a token's neighbours, narrow ones for long.

    :param rows: Windows to learn from, `(windows, length)`.
    :param judged: Windows that the loss is measured on; masked as `held_out_loss` masks them.
    :return: Nats a masked token.
    """
    counts = counts_of(masking, rows).double() + 1
    counts[list(masking.special)] = 0
    labels = [masking(row, torch.Generator().manual_seed(place))[1] for place, row in enumerate(judged)]
    asked = torch.cat(labels)
    return -float((counts[asked[asked != IGNORED]] / counts.sum()).log().mean())
