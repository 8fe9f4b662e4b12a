"""What the report's tables and pictures are made of, whatever file it came from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Metrics of which less is better, by a word in their names; of all others more is.
_LESS_IS_BETTER = ("perplexity", "error", "loss")
# What an entry costs in single numbers, by the names of its fields.
COSTS = ("bytes", "parameters", "macs", "live", "load", "memory", "peak", "activations")


@dataclass(frozen=True)
class Score:
    """A figure of quality, with its interval where one is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Entry:
    """One measured model.

    :param name: what tables call it.
    :param origin: the file that it was read from.
    :param quality: scores by metric.
    :param bytes: stored bytes of the whole model.
    :param parameters: unique parameters.
    :param macs: multiply-accumulates a token; 0 marks a floor, which does no work.
    :param latency: milliseconds by grid point, such as ``1x16`` (batch × length).
    :param live: parameters that a forward reads, shared ones at every use.
    :param load: seconds to load.
    :param memory: bytes that the loaded model takes.
    :param peak: the most bytes that loading takes.
    :param activations: bytes of intermediate results at the largest measured input.
    :param minutes: wall time of what made or judged it.
    :param calibration: name of the texts it was fitted to.
    :param folder: of the model, by which entries of one model are joined.
    """

    name: str
    origin: str
    quality: dict[str, Score] = field(default_factory=dict)
    bytes: int | None = None
    parameters: int | None = None
    macs: float | None = None
    latency: dict[str, Score] = field(default_factory=dict)
    live: int | None = None
    load: float | None = None
    memory: int | None = None
    peak: int | None = None
    activations: int | None = None
    minutes: float | None = None
    calibration: str | None = None
    folder: str | None = None

    @property
    def is_floor(self) -> bool:
        """Whether this is a row that a good model has to beat, and no model."""
        return self.macs == 0

    @property
    def family(self) -> str:
        """What the name says up to its first comma, colon or bracket."""
        return re.split(r",|:| \(", self.name)[0].strip()


def more_is_better(metric: str) -> bool:
    """The direction of a metric, by its name."""
    return not any(word in metric.lower() for word in _LESS_IS_BETTER)


def metrics_of(entries: Iterable[Entry]) -> list[str]:
    """All metrics, those that most entries have first."""
    counted = Counter(metric for entry in entries for metric in entry.quality)
    return [metric for metric, _ in counted.most_common()]


def joined(entries: Sequence[Entry]) -> list[Entry]:
    """Entries without repetitions; those of one model's folder become one, as far as they agree."""
    found: dict[Any, list[Entry]] = {}
    for entry in entries:
        key = entry.folder or (entry.name, entry.bytes, tuple(sorted((k, v.value) for k, v in entry.quality.items())))
        same = found.setdefault(key, [])
        place = next((number for number, other in enumerate(same) if _agree(other, entry)), None)
        if place is None:  # judged once more in one metric, in another way: no result is lost
            same.append(replace(entry, name=f"{entry.name} ({entry.origin})") if same else entry)
        elif entry.folder:
            same[place] = _join(same[place], entry)
    return [entry for same in found.values() for entry in same]


def _agree(first: Entry, second: Entry) -> bool:
    both = first.quality.keys() & second.quality.keys()
    return all(first.quality[name].value == second.quality[name].value for name in both)


def _join(first: Entry, second: Entry) -> Entry:
    origins = dict.fromkeys([*first.origin.split(", "), *second.origin.split(", ")])
    missing = {
        name: getattr(second, name) for name in (*COSTS, "minutes", "calibration") if getattr(first, name) is None
    }
    return replace(
        first, origin=", ".join(origins), quality={**first.quality, **second.quality},
        latency={**first.latency, **second.latency}, **missing,
    )  # fmt: skip


def front(points: Sequence[tuple[float, float]], more: bool = True) -> list[int]:
    """The Pareto front: the points that no other point beats in one coordinate without losing in the other.

    :param points: pairs of a cost, of which less is better, and a value.
    :param more: whether more of the value is better.
    :return: places of the front's points, cheapest first.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1] if more else points[i][1]))
    kept: list[int] = []
    for place in order:
        value = points[place][1]
        if not kept or (value > points[kept[-1]][1] if more else value < points[kept[-1]][1]):
            kept.append(place)
    return kept
