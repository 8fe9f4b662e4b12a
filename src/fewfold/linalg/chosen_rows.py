"""Rows of a small table, each chosen many times: the gradient is summed where it goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewfold.linalg.gather_sum import users_of


class ChosenRows:
    """Rows of a table, the same choice at every call.

    It holds its choice as int32, and as much again who chose which row once there was a gradient: torch's own gradient
    adds the rows one after another, which takes many times as long on a CPU.

    :param numbers: of rows, any shape.
    :param size: rows of the table.
    """

    def __init__(self, numbers: Tensor, size: int) -> None:
        with torch.inference_mode(False):
            self.numbers, self.size = numbers.to(torch.int32), size
        self._users: tuple[Tensor, Tensor] | None = None

    def __call__(self, table: Tensor) -> Tensor:
        """``(size, width)`` to ``(…, width)``."""
        return _Choose.apply(table, self)  # type: ignore[no-any-return, no-untyped-call]

    def spread(self, gradient: Tensor) -> Tensor:
        """``(…, width)`` to ``(size, width)``: of every row, the sum of what was made of it, in a fixed order."""
        if self._users is None:
            with torch.inference_mode(False):
                self._users = users_of(self.numbers.flatten(), 1, self.size)
        places, offsets = self._users
        flat = gradient.reshape(-1, gradient.shape[-1])
        return F.embedding_bag(places, flat, offsets, mode="sum", include_last_offset=True)


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(table: Tensor, chosen: ChosenRows) -> Tensor:
        return F.embedding(chosen.numbers, table)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ChosenRows], output: Tensor) -> None:
        ctx.chosen = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.chosen.spread(gradient), None
