"""The endless sequence of training examples: the k-th one depends on the seed and on k alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator
from torch.utils.data import Dataset

from fewfold.errors import TaskError


class Drawn(Dataset[Any]):
    """Passes over examples, each in an order of its own; every draw has random numbers of its own.

    A run that goes on, or that is spread over more processes, reads what an uninterrupted one on one process does.

    :param count: examples of one pass.
    :param make: place of an example and random numbers (for masks, crops, …) to what the model is fed.
    :param total: draws.
    :param seed: of orders and random numbers.
    :raises TaskError: without an example.
    """

    def __init__(self, count: int, make: Callable[[int, Generator], Any], total: int, seed: int) -> None:
        if count < 1:
            raise TaskError("there is no example to train on: give more text")
        self.count, self.make, self.total, self.seed = count, make, total, seed
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, number: int) -> Any:
        turn, place = divmod(number, self.count)
        if self._order[0] != turn:
            generator = torch.Generator().manual_seed(_mixed(self.seed, turn, 1))
            self._order = (turn, torch.randperm(self.count, generator=generator).tolist())
        return self.make(self._order[1][place], torch.Generator().manual_seed(_mixed(self.seed, number, 2)))


def _mixed(seed: int, number: int, salt: int) -> int:
    """A seed of 63 bits from three numbers (the finaliser of SplitMix64)."""
    mask = 2**64 - 1
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + salt) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) >> 1
