"""The rounds of mask-predict: predict what is masked, mask again what is least sure (Ghazvininejad et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def mask_predict(
    predict: Callable[[Tensor], Tensor], real: Tensor, mask: int, pad: int, rounds: int
) -> tuple[Tensor, Tensor]:
    """Fill rows of known lengths.

    All tokens are masked at first; after round t of T the N · (T − t) / T least probable ones are masked again, section
    3.2 of the paper. Tokens that are not masked keep their probability from when they were predicted.

    :param predict: Tokens `(rows, length)` to log-probabilities `(rows, length, vocabulary)`.
    :param real: Which places are within each row's length, `(rows, length)`.
    :param mask: Id of the mask token.
    :param pad: Id outside of the lengths.
    :param rounds: T, at least 1.
    :return: Tokens `(rows, length)`, and each row's mean log-probability `(rows,)`.
    """
    lengths = real.sum(dim=1)
    tokens = torch.full_like(real, pad, dtype=torch.long).masked_fill(real, mask)
    sure = torch.zeros(real.shape, device=real.device).masked_fill(~real, torch.inf)
    for number in range(rounds):
        masked = tokens == mask
        best, found = predict(tokens).max(dim=-1)
        tokens, sure = torch.where(masked, found, tokens), torch.where(masked, best.float(), sure)
        if number + 1 < rounds:
            again = lengths * (rounds - number - 1) // rounds
            ranks = sure.argsort(dim=1, stable=True).argsort(dim=1)
            tokens = tokens.masked_fill(real & (ranks < again[:, None]), mask)
    return tokens, sure.masked_fill(~real, 0.0).sum(dim=1) / lengths
