"""What the demo does when nobody says otherwise: the one place that holds its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DEFAULT_RECIPE = "codes-default"
DEFAULT_BUDGETS = ("bytes=8MB",)  # of the whole file


@dataclass(frozen=True)
class Settings:
    """The demo's choices.

    :param recipe: anything that ``fewfold.compress`` takes as a recipe.
    :param budgets: what it may cost.
    :param calibration_texts: sentences to fit on.
    :param shapes: forward passes that are timed, as batch × length.
    :param repeats: timed rounds of each.
    :param seed: of everything random.
    """

    recipe: Any = DEFAULT_RECIPE
    budgets: tuple[str, ...] = DEFAULT_BUDGETS
    calibration_texts: int = 512
    shapes: tuple[tuple[int, int], ...] = ((1, 16), (8, 128))
    repeats: tuple[int, ...] = (40, 10)
    seed: int = 0
