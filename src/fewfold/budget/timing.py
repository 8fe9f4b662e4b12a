"""Milliseconds of dense and assembled modules, measured where and as the model runs, for latency budgets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.budget.budget import Limit
from fewfold.measure.inputs import dummy_inputs
from fewfold.measure.modes import evaluating
from fewfold.methods.base import Unit
from fewfold.methods.registry import method_named
from fewfold.store import stores_behind
from fewfold.surgery.operators import tensor_of
from fewfold.surgery.targets import Target

POINTS = 7  # sizes that are timed on one curve; the others are interpolated by their multiply-accumulates
ROUNDS = 15


class TimingTable:
    """Measured milliseconds at one batch, length and number of threads.

    ``records`` holds every measurement by what was run; the structure keeps it.
    """

    def __init__(self, model: nn.Module, limit: Limit) -> None:
        self.model, self.limit = model, limit
        self.threads = limit.threads or torch.get_num_threads()
        self.on_cuda = any(parameter.is_cuda for parameter in model.parameters())
        self.records: dict[str, float] = {}

    def dense(self, target: Target) -> float:
        """One dense weight."""
        if target.kind != "linear":
            return 0.0
        name = f"dense {target.rows}x{target.columns}"
        if name not in self.records:
            like = self._like(target)
            module = nn.Linear(target.columns, target.rows, target.bias, like.device, like.dtype).eval()
            self.records[name] = self._time({name: lambda: module(self._input(target))})[name]
        return self.records[name]

    def curve(self, unit: Unit, sizes: Sequence[Mapping[str, Any] | None]) -> list[float]:
        """One unit at every size: a few are timed, interleaved, the others interpolated."""
        method = method_named(unit.method)
        total = [0.0] * len(sizes)
        for target in unit.targets:
            if target.kind != "linear":
                continue
            dense = self.dense(target)
            real = [(index, size) for index, size in enumerate(sizes) if size is not None]
            macs = {index: float(method.cost(unit, size).macs) for index, size in real}
            picked = sorted({round(i * (len(real) - 1) / max(POINTS - 1, 1)) for i in range(min(POINTS, len(real)))})
            timed = self._timed(unit, target, [real[i] for i in picked])
            rising = all(macs[one] < macs[other] for (one, _), (other, _) in pairwise(real))
            place = macs if rising else {index: float(index) for index, _ in real}  # sizes may differ in more than MACs
            points = sorted((place[index], timed[index]) for index in timed)
            for index, size in enumerate(sizes):
                total[index] += dense if size is None else min(_between(points, place[index]), dense * 1.05)
        return total

    def _timed(self, unit: Unit, target: Target, sizes: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[int, float]:
        timed, runs = {}, {}
        for index, size in sizes:
            name = f"{unit.method} {target.rows}x{target.columns} {dict(size)}"
            if name in self.records:
                timed[index] = self.records[name]
                continue
            runs[name] = (index, self._empty(unit, target, size))
        measured = self._time(
            {name: (lambda m=module: m(self._input(target))) for name, (_, module) in runs.items()}  # type: ignore[misc]
        )
        for name, (index, _) in runs.items():
            self.records[name] = timed[index] = measured[name]
        return timed

    def rest(self, units: Sequence[Unit]) -> float:
        """A whole forward pass less the dense weights that units replace."""
        if "whole model" not in self.records:
            inputs = dummy_inputs(self.model, self.limit.batch, self.limit.length)
            with evaluating(self.model):
                self.records["whole model"] = self._time({"whole": lambda: self.model(**inputs)})["whole"]
        return self.records["whole model"] - sum(self.dense(t) for unit in units for t in unit.targets)

    def report(self) -> dict[str, Any]:
        """Every measurement, for the record."""
        milliseconds = {name: round(value, 4) for name, value in self.records.items()}
        return {
            "batch": self.limit.batch, "length": self.limit.length, "threads": self.threads,
            "milliseconds": milliseconds,
        }  # fmt: skip

    def _empty(self, unit: Unit, target: Target, size: Mapping[str, Any]) -> nn.Module:
        """The module of one size, where and as the dense weight is."""
        like = self._like(target)
        with torch.device(like.device):
            module = method_named(unit.method).modules(unit, size)[target.name].to(like.dtype).eval()
        for store in stores_behind([module]):
            store.to(like.dtype).eval()
        return module

    def _like(self, target: Target) -> Tensor:
        return tensor_of(self.model.get_submodule(target.module))

    def _input(self, target: Target) -> Tensor:
        return self._like(target).new_zeros(self.limit.batch, self.limit.length, target.columns)

    def _time(self, runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        """Median milliseconds of each run, interleaved, after a warm-up."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        times: dict[str, list[float]] = {name: [] for name in runs}
        try:
            with torch.inference_mode():
                for round_number in range(ROUNDS + 3):
                    for name, run in runs.items():
                        self._wait()
                        start = time.perf_counter()
                        run()
                        self._wait()
                        if round_number >= 3:
                            times[name].append((time.perf_counter() - start) * 1e3)
        finally:
            torch.set_num_threads(before)
        return {name: statistics.median(values) for name, values in times.items()}

    def _wait(self) -> None:
        """Until an accelerator has done what it was given."""
        if self.on_cuda:
            torch.cuda.synchronize()


def _between(points: Sequence[tuple[float, float]], macs: float) -> float:
    """Linear interpolation, level outside of the timed points."""
    if macs <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if macs <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (macs - x0) / (x1 - x0)
    return points[-1][1]
