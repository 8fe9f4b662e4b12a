"""Products of prepared steps: matrices laid out for the processor, and biases that ride along in them.

Two things cost a narrow factor on a CPU as much as its arithmetic. A matrix kept as ``(out, in)`` multiplies few tokens
up to five times as slowly as one kept as ``(in, out)``. And ``addmm`` copies its bias into every row of the output
before it begins; as one more row below the matrix, met by a column of ones, the bias costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Step = Callable[[Tensor], Tensor]


def product(matrix: Tensor) -> Step:
    """The step ``states @ matrix``: ``(…, in)`` to ``(…, out)``."""
    return lambda states: torch.matmul(states, matrix)


def product_and_one(matrix: Tensor) -> Step:
    """As :func:`product`, with a column of ones at the end: ``(…, in)`` to ``(…, out + 1)``."""

    def step(states: Tensor) -> Tensor:
        found = torch.matmul(states, matrix)
        return torch.cat((found, found.new_ones((*found.shape[:-1], 1))), -1)

    return step


def product_plus(matrix: Tensor, bias: Tensor | None) -> Step:
    """The step ``states @ matrix + bias``."""
    weight = matrix.t()
    return lambda states: F.linear(states, weight, bias)


def bias_below(matrix: Tensor, bias: Tensor | None) -> Tensor:
    """``(in + 1, out)``: what :func:`product_and_one` is multiplied with to add a bias (zero where there is none)."""
    row = matrix.new_zeros(matrix.shape[1]) if bias is None else bias.detach().to(matrix.dtype)
    return torch.cat((matrix, row[None]))
