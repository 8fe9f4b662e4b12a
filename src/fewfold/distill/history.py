"""What happened in a run: the loss curve, measurements on held-out texts, time and tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class History:
    """One phase of distillation.

    :param curve: points with ``step``, ``seconds``, ``tokens``, ``learning_rate``, ``loss`` and the weighted losses
        by name, each the mean since the point before.
    :param held_out: points with ``step``, ``seconds`` and the same losses on held-out texts.
    :param steps: optimizer steps.
    :param tokens: real tokens trained on.
    :param seconds: all time spent, earlier runs of a resumed training included.
    :param training_seconds: time in training steps alone.
    :param stopped: why it ended: ``steps``, ``time``, or ``no gain``.
    :param local: by layer, what local recovery won before the first step, as of :class:`LocalGain`.
    """

    curve: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    stopped: str = ""
    local: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_a_second(self) -> float:
        """Throughput of the training steps."""
        return self.tokens / self.training_seconds if self.training_seconds else 0.0

    @property
    def first_and_last(self) -> tuple[float, float]:
        """Loss before and after: on held-out texts where there are some, else at the ends of the curve."""
        points = self.held_out or self.curve
        return (points[0]["loss"], points[-1]["loss"]) if points else (float("nan"), float("nan"))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "tokens_a_second": self.tokens_a_second}
