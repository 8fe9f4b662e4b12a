"""Adam in one pass over the numbers, where the device has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

FUSED = ("cpu", "cuda", "mps")


def adam(groups: Iterable[Any], decoupled: bool = True, **settings: Any) -> torch.optim.Optimizer:
    """Adam or AdamW, fused: an update reads and writes every number once, not once an operation.

    :param groups: Parameters, or groups of them as torch's optimizers take them.
    :param decoupled: AdamW, whose decay is no part of the gradient.
    :param settings: Of `torch.optim.Adam`.
    """
    given = list(groups)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind(given, fused=_has_fused(_parameters(given)), **settings)


def _parameters(groups: Sequence[Any]) -> list[nn.Parameter]:
    return [parameter for one in groups for parameter in (one["params"] if isinstance(one, dict) else [one])]


def _has_fused(parameters: Sequence[nn.Parameter]) -> bool:
    return all(parameter.is_floating_point() and parameter.device.type in FUSED for parameter in parameters)
