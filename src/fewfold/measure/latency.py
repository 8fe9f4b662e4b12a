"""Time the forwards of several models side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fewfold.measure.inputs import dummy_inputs
from fewfold.measure.modes import evaluating
from fewfold.progress import track


@dataclass(frozen=True)
class Timing:
    """The time of one forward, in milliseconds.

    :param median: Median over the rounds.
    :param low: 10th percentile.
    :param high: 90th percentile.
    :param speedup: For each model of the run, how many times faster this one is: the median over the rounds
        of (its time / this time), so that what slows a whole round cancels out.
    :param rounds: Timed rounds.
    :param batch: Sequences per forward.
    :param length: Tokens per sequence asked for (models with fewer positions ran fewer).
    :param threads: CPU threads that torch used.
    """

    median: float
    low: float
    high: float
    speedup: dict[str, float]
    rounds: int
    batch: int
    length: int
    threads: int


def latency(
    models: Mapping[str, nn.Module],
    batch: int = 1,
    length: int = 128,
    repeats: int = 20,
    warmup: int = 3,
    threads: int | None = None,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Timing]:
    """Time one forward of each model, interleaved (A B A B …) so that all see the same machine.

    Models run in inference mode and in eval mode; both, and the number of threads, are restored afterwards.

    :param models: Models by name.
    :param batch: Sequences or images per forward.
    :param length: Tokens per sequence, clipped to each model's positions.
    :param repeats: Timed rounds over all models.
    :param warmup: Rounds before those, not timed.
    :param threads: CPU threads for the run; torch's present number where not given.
    :param inputs: Keyword arguments of the forward by model name; dummies for the models it leaves out.
    :return: Timings by name, in the order given.
    :raises ValueError: If there is no model or no repeat.
    """
    if not models or repeats < 1:
        raise ValueError(f"latency needs at least one model and one repeat, not {len(models)} and {repeats}")
    given = inputs or {}
    feeds = {name: given.get(name) or dummy_inputs(model, batch, length) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    with evaluating(*models.values()), torch.inference_mode(), _threads(threads):
        used = torch.get_num_threads()
        for turn in track(range(warmup + repeats), "timing", total=warmup + repeats):
            for name, model in models.items():
                elapsed = _milliseconds(model, feeds[name])
                if turn >= warmup:
                    times[name].append(elapsed)
    return {name: _timing(name, times, batch, length, used) for name in models}


def _milliseconds(model: nn.Module, inputs: Mapping[str, Any]) -> float:
    """Time one forward, waiting for the accelerator where there is one."""
    is_cuda = any(isinstance(v, torch.Tensor) and v.is_cuda for v in inputs.values())
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    model(**inputs)
    if is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def _timing(name: str, times: dict[str, list[float]], batch: int, length: int, threads: int) -> Timing:
    own = np.array(times[name])
    low, median, high = np.percentile(own, [10, 50, 90])
    speedup = {other: float(np.median(np.array(theirs) / own)) for other, theirs in times.items()}
    return Timing(float(median), float(low), float(high), speedup, len(own), batch, length, threads)


@contextmanager
def _threads(wished: int | None) -> Iterator[None]:
    """Set torch's number of CPU threads for a block."""
    before = torch.get_num_threads()
    if wished is not None:
        torch.set_num_threads(wished)
    try:
        yield
    finally:
        torch.set_num_threads(before)
