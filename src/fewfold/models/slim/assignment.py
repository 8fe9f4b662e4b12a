"""Which sub-vectors a row is made of: balanced, at random, and different for every row."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 100  # of exchanging codes between equal rows and others


def balanced_codes(rows: int, positions: int, words: int, free: bool, seed: int) -> Tensor:
    """Codes that use all words of a pool equally often, give or take one; no two rows are equal.

    Drawn with a generator of its own. Where two rows come out equal, one of them exchanges a code with another row,
    which leaves the balance as it is.

    :param free: one pool for all positions, instead of one for each.
    :return: ``(rows, positions)`` int64, ``0 … words - 1``.
    """
    generator = torch.Generator().manual_seed(seed)
    if free:
        codes = (torch.randperm(rows * positions, generator=generator) % words).view(rows, positions)
    else:
        drawn = [torch.randperm(rows, generator=generator) % words for _ in range(positions)]
        codes = torch.stack(drawn, 1)
    for _ in range(ROUNDS):
        twins = _later_twins(codes)
        if not len(twins):
            break
        others = torch.randint(rows, (len(twins),), generator=generator)
        places = torch.randint(positions, (len(twins),), generator=generator)
        for twin, other, place in zip(twins.tolist(), others.tolist(), places.tolist(), strict=True):
            codes[[twin, other], place] = codes[[other, twin], place]
    return codes


def _later_twins(codes: Tensor) -> Tensor:
    """Rows that an earlier row equals."""
    _, group, counts = codes.unique(dim=0, return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    later = torch.ones(len(codes), dtype=torch.bool)
    later[starts] = False
    return order[later]
