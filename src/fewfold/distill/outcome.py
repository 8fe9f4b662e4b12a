"""What a finished recovery is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fewfold.distill.config import DistillConfig
from fewfold.distill.history import History


@dataclass
class Outcome:
    """A finished recovery.

    :param student: the trained model, the same object that was given.
    :param histories: one a phase.
    :param phases: their configs, limits as they were applied.
    :param data: what was learned on: ``texts``, ``tokens`` (of one pass), ``held_out`` and ``excluded`` texts.
    :param environment: versions and hardware.
    """

    student: Any
    histories: list[History] = field(default_factory=list)
    phases: list[DistillConfig] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the student left out."""
        return {
            "environment": self.environment,
            "data": self.data,
            "minutes": sum(history.seconds for history in self.histories) / 60,
            "tokens": sum(history.tokens for history in self.histories),
            "phases": [
                {"config": phase.model_dump(mode="json"), **history.to_dict()}
                for phase, history in zip(self.phases, self.histories, strict=True)
            ],
        }
