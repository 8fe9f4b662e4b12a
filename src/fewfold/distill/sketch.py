"""What a model gives for a few texts, in a few numbers: enough to tell one model from another of the same shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewfold.distill.outputs import Needs, Outputs, run
from fewfold.measure.modes import evaluating

NUMBERS, TEXTS = 8, 4
PART = 2**17  # numbers that are projected at once
NEAR = 0.01  # the same fit on other threads differs by far less, another fit by more


def sketch(model: Any, batch: Mapping[str, Tensor], needs: Needs) -> list[float]:
    """Random projections of what a model gives for a batch, the same ones every time.

    :param needs: what is kept of its forward pass.
    :return: so many numbers for every kept tensor.
    """
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        outputs = run(model, {name: tensor.to(device) for name, tensor in batch.items()}, needs)
    found: list[float] = []
    for values in _kept(outputs):
        found += _projected(values.flatten()).tolist()
    return found


def _projected(values: Tensor) -> Tensor:
    """Random projections of ``(count,)`` numbers, part by part: random numbers for all take eight times the memory."""
    generator, sums = torch.Generator().manual_seed(0), torch.zeros(NUMBERS)
    for part in values.split(PART):
        sums += torch.randn(NUMBERS, len(part), generator=generator) @ part.float().cpu()
    return sums / max(1, len(values)) ** 0.5


def is_near(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two sketches are of one model, rounding apart."""
    if len(first) != len(second):
        return False
    one, other = torch.tensor([first, second], dtype=torch.float64)
    return float((one - other).norm()) <= NEAR * float(torch.maximum(one.norm(), other.norm()))


def _kept(outputs: Outputs) -> Iterator[Tensor]:
    if outputs.encoder is not None:
        yield from _kept(outputs.encoder)
    yield from (
        part for part in (outputs.last, outputs.logits, outputs.spans, *outputs.hidden[-1:]) if part is not None
    )
