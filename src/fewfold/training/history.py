"""What a training did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainingHistory:
    """What a training did, all runs of a resumed one together.

    :param curve: Points with `step`, `seconds`, `learning_rate` and the mean `loss` since the point before.
    :param held_out: Points with `step`, `seconds` and the held-out `loss`.
    :param steps: Optimizer steps.
    :param tokens: Tokens trained on, padding left out, over all processes; in translation those of the target.
    :param seconds: Wall time.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    held_out: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_a_second(self) -> float:
        """Throughput."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "tokens_a_second": self.tokens_a_second}
