"""What the decoder of an encoder–decoder is taught on: target texts, or the texts themselves behind a noisy source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Padded = Callable[[int], int]


def longest(tokens: int) -> int:
    """The length of a batch: that of its longest text."""
    return tokens


@dataclass(frozen=True)
class Targets:
    """Token ids of all targets in one array.

    :param offsets: where each begins, ``(texts + 1,)``.
    :param start: the token that a decoder begins with.
    :param pad: the padding token.
    """

    ids: NDArray
    offsets: NDArray
    start: int
    pad: int

    @property
    def lengths(self) -> NDArray:
        """Tokens of every target."""
        return np.diff(self.offsets)

    def part(self, places: Sequence[int]) -> Targets:
        """Some of the targets, in this order."""
        rows = [self.ids[self.offsets[place] : self.offsets[place + 1]] for place in places]
        offsets = np.concatenate([[0], np.cumsum(self.lengths[list(places)])])
        return Targets(np.concatenate(rows), offsets, self.start, self.pad)

    def batch(self, places: Sequence[int], padded: Padded = longest) -> dict[str, Tensor]:
        """Padded ``targets``, and the same moved on by one behind the start token as ``decoder_input_ids``."""
        lengths = self.lengths[list(places)]
        shape = len(places), padded(int(lengths.max()))
        ids, read = torch.full(shape, self.pad), torch.full(shape, self.pad)
        mask = torch.zeros(shape, dtype=torch.long)
        for row, (place, length) in enumerate(zip(places, lengths.tolist(), strict=True)):
            own = torch.from_numpy(self.ids[self.offsets[place] : self.offsets[place + 1]].astype(np.int64))
            ids[row, :length], mask[row, :length] = own, 1
            read[row, 0], read[row, 1:length] = self.start, own[:-1]
        return {"targets": ids, "decoder_input_ids": read, "decoder_attention_mask": mask}


def noisy(ids: NDArray, offsets: NDArray, special: NDArray, most: float, seed: int) -> tuple[NDArray, NDArray]:
    """Leave tokens out of every text, a share of up to ``most`` that is drawn text by text.

    Tokens that stay are not changed, so no mask token is needed; a text keeps one token at least.

    :param special: ids that always stay.
    :return: the ids and offsets of what is left.
    """
    random = np.random.default_rng(seed)
    shares = np.repeat(random.uniform(0, most, len(offsets) - 1), np.diff(offsets))
    kept = (random.random(len(ids)) >= shares) | np.isin(ids, special)
    left = np.add.reduceat(kept, offsets[:-1])
    kept[offsets[:-1][left == 0]] = True
    return ids[kept], np.concatenate([[0], np.cumsum(np.maximum(left, 1))])
