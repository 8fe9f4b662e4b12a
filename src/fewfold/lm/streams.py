"""Continuous streams for truncated backpropagation through time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewfold.errors import TaskError


class Window(NamedTuple):
    """What one step learns from.

    :param inputs: tokens, ``(streams, length)``.
    :param labels: the token after each, ``(streams, length)``.
    :param fresh: whether the streams start here, so that no state is carried in.
    """

    inputs: Tensor
    labels: Tensor
    fresh: bool


class Streams:
    """A text cut into as many equal stretches as there are rows in a batch, read side by side, a window at a time.

    The state at the end of a window goes into the next one, where the gradient ends. Which window a step reads depends
    on the step alone. The last tokens, fewer than one a stream, are left out.

    :param ids: tokens of the text, ``(tokens,)``.
    :param batch: streams.
    :param length: tokens of a stream that a window reads; the last window of an epoch may be shorter.
    :param name: what errors call the text.
    :raises TaskError: if the text is too short for so many streams.
    """

    def __init__(self, ids: np.ndarray[Any, Any], batch: int, length: int, name: str = "text") -> None:
        each = (len(ids) - 1) // batch
        if each < 1:
            raise TaskError(f"{name} has {len(ids)} tokens, too few for {batch} streams: give a longer text, or fewer")
        self.length = length
        self._inputs = torch.from_numpy(ids[: each * batch].reshape(batch, each))
        self._labels = torch.from_numpy(ids[1 : each * batch + 1].reshape(batch, each))

    def __len__(self) -> int:
        """Windows of an epoch."""
        return -(-self._inputs.shape[1] // self.length)

    @property
    def tokens(self) -> int:
        """Tokens that are foretold in an epoch."""
        return self._labels.numel()

    def window(self, step: int) -> Window:
        """What the given step reads, the first being 0."""
        start = step % len(self) * self.length
        part = slice(start, start + self.length)
        return Window(self._inputs[:, part].contiguous(), self._labels[:, part].contiguous(), start == 0)
