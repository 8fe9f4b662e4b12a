"""How far a run is, in steps or on the clock, and what the learning rate is there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from fewfold.distill.config import DistillConfig


class Clock:
    """Time spent and left, over all runs that a resumed training is made of.

    ``seen`` is the time at the start of the present step, the same in all processes: learning rates and the end
    follow it, so that processes never disagree.

    :param steps: end after so many steps.
    :param minutes: end before so many minutes are over.
    :param started: when the work began (``time.perf_counter()``), preparations included.
    """

    def __init__(self, steps: int | None, minutes: float | None, started: float | None = None) -> None:
        self.steps = steps
        self.limit = None if minutes is None else 60 * minutes
        self.started = time.perf_counter() if started is None else started
        self.before = 0.0  # seconds of earlier runs
        self.began = 0.0  # when training began, after all preparations of the first run
        self.seen = 0.0
        self.pace = 0.0  # seconds a step, lately
        self.reserve = 0.0  # seconds that are needed after the last step

    def now(self) -> float:
        """Seconds spent so far."""
        return self.before + time.perf_counter() - self.started

    @property
    def left(self) -> float | None:
        """Seconds until the limit; None where there is none."""
        return None if self.limit is None else self.limit - self.now()

    def see(self, seconds: float) -> None:
        """A step starts at this time."""
        step = seconds - self.seen
        self.pace = max(step, 0.8 * self.pace + 0.2 * step) if self.pace else step
        self.seen = seconds

    def begin(self, seconds: float) -> None:
        """Training starts at this time; a resumed one keeps its first start."""
        self.began = self.began or seconds
        self.seen, self.pace = seconds, 0.0

    def fraction(self, step: float) -> float:
        """How far the run is after ``step`` steps, 0…1."""
        shares = [0.0]
        if self.steps is not None:
            shares.append(step / self.steps)
        if self.limit is not None:
            shares.append((self.seen - self.began) / max(self.limit - self.reserve - self.began, 1e-9))
        return min(1.0, max(shares))

    def is_over(self, step: int) -> bool:
        """Whether the step that just ended was the last: another one would not end in time."""
        if self.steps is not None and step >= self.steps:
            return True
        return self.limit is not None and self.seen + 2 * self.pace + self.reserve > self.limit


def rate_factor(config: DistillConfig) -> Callable[[float], float]:
    """The learning rate's factor at a fraction of the run: warm-up, then linear, cosine or none.

    :return: a function of 0…1 to 0…1.
    """

    def factor(fraction: float) -> float:
        if fraction < config.warmup:
            return fraction / config.warmup
        left = (1 - fraction) / (1 - config.warmup)
        if config.schedule == "linear":
            return left
        return 0.5 * (1 - math.cos(math.pi * left)) if config.schedule == "cosine" else 1.0

    return factor
