"""What the demo does when nobody says otherwise: the one place that holds its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewfold.methods.dense.config import Dense
from fewfold.methods.low_rank.config import LowRank


def _recipe() -> list[Any]:
    return [Dense(targets="embeddings", stored_dtype="int4"), LowRank(targets="linears", stored_dtype="int8")]


DEFAULT_BUDGETS = ("bytes=12MB",)  # of the whole file: the linears' ranks are what is chosen


@dataclass(frozen=True)
class Settings:
    """The demo's choices.

    :param recipe: anything that ``fewfold.compress`` takes as a recipe; None for the demo's own.
    :param budgets: what it may cost.
    :param calibration_texts: sentences to fit on.
    :param shapes: forward passes that are timed, as batch × length.
    :param repeats: timed rounds of each.
    :param seed: of everything random.
    """

    recipe: Any = None
    budgets: tuple[str, ...] = DEFAULT_BUDGETS
    calibration_texts: int = 512
    shapes: tuple[tuple[int, int], ...] = ((1, 16), (8, 128))
    repeats: tuple[int, ...] = (40, 10)
    seed: int = 0

    @property
    def steps(self) -> Any:
        """The recipe that is carried out."""
        return _recipe() if self.recipe is None else self.recipe
