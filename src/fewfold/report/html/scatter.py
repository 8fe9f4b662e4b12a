"""One picture of entries as points: what they cost against what they give, with the front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewfold.optional import require
from fewfold.report.html.entries import Entry, Score, front
from fewfold.report.html.svg import SETTINGS, svg
from fewfold.report.labels import label_points
from fewfold.report.plots import COLOURS, FLOOR, MARKERS

FAMILIES = len(COLOURS) - 1  # in colours of their own; black is the front's
LABELLED = 6


@dataclass(frozen=True)
class Picture:
    """A drawn figure: markup, a heading and the sentence below it."""

    name: str
    title: str
    markup: str
    caption: str


@dataclass(frozen=True)
class Axis:
    """What a scatter's height is.

    :param label: with its unit.
    :param more: whether more is better.
    :param logarithmic: for times and work.
    """

    label: str
    more: bool
    logarithmic: bool = False


def scatter(name: str, title: str, entries: Sequence[Entry], heights: Sequence[Score], axis: Axis) -> Picture:
    """Draw entries by stored megabytes and a height; the Pareto front is a line, its points have names.

    :param name: unique on the page.
    :param entries: at least one, all with bytes.
    :param heights: one an entry.
    :raises ImportError: if matplotlib is missing.
    """
    require("matplotlib", "report")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [((entry.bytes or 0) / 1e6, score.value) for entry, score in zip(entries, heights, strict=True)]
    models = [place for place, entry in enumerate(entries) if not entry.is_floor]
    best = [models[place] for place in front([points[place] for place in models], axis.more)]
    hints = {}
    with matplotlib.rc_context({**SETTINGS, "text.parse_math": False}):  # names are no formulas
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        drawn = figure.subplots()
        styles = _styles(entries)
        if len(best) > 1:
            _front(drawn, [points[place] for place in best])
        for place, (entry, score) in enumerate(zip(entries, heights, strict=True)):
            hints[f"point-{place}"] = f"{entry.name}: {points[place][0]:.2f} MB, {axis.label} {score.value:.4g}"
            _point(drawn, points[place], score, styles[entry.family] if not entry.is_floor else None, f"point-{place}")
        _scales(drawn, points, axis)
        _legend(figure, entries, styles)
        canvas.draw()
        named = _named(entries, best)
        label_points(drawn, [(_short(entries[i].name), *points[i]) for i in named], canvas.get_renderer(), points)
        markup = svg(figure, name, f"{title}: {axis.label} against stored size, {len(entries)} models", hints)
    return Picture(name, title, markup, _caption(entries, points, best, axis))


def _styles(entries: Sequence[Entry]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and name in the legend by family; the rarest families are shown alike."""
    counted = Counter(entry.family for entry in entries if not entry.is_floor)
    shown = [family for family, _ in counted.most_common(FAMILIES)]
    return {
        family: (COLOURS[shown.index(family)], MARKERS[shown.index(family)], _short(family))
        if family in shown
        else (FLOOR, "o", "others")
        for family in counted
    }


def _front(drawn: Any, points: Sequence[tuple[float, float]]) -> None:
    drawn.plot(*zip(*points, strict=True), color="#000000", linewidth=1.2, alpha=0.55, zorder=1.5)


def _point(drawn: Any, at: tuple[float, float], score: Score, style: tuple[str, str, str] | None, gid: str) -> None:
    colour, marker = (FLOOR, "X") if style is None else style[:2]
    if style is None:
        drawn.axhline(at[1], color=FLOOR, linestyle="--", linewidth=0.9, zorder=1)
    if score.low is not None and score.high is not None:
        drawn.vlines(at[0], score.low, score.high, colors=colour, linewidth=1, alpha=0.4, zorder=2)
    drawn.plot(*at, color=colour, marker=marker, markersize=6.5, linestyle="none", zorder=3, gid=gid)


def _scales(drawn: Any, points: Sequence[tuple[float, float]], axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    sizes = [size for size, _ in points]
    scaled = [drawn.xaxis] if min(sizes) > 0 else []
    if scaled:
        drawn.set_xscale("log")
        drawn.set_xlim(min(sizes) / 1.8, max(sizes) * 1.8)
    if axis.logarithmic and min(height for _, height in points) > 0:
        drawn.set_yscale("log")
        scaled.append(drawn.yaxis)
    for one in scaled:
        one.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        one.set_major_formatter(plain)
        one.set_minor_formatter(NullFormatter())
    drawn.margins(y=0.12)
    drawn.set(xlabel="stored size (MB)", ylabel=axis.label)
    tidy(drawn)


def tidy(drawn: Any) -> None:
    """A light grid behind the points, and no frame where there is no axis."""
    drawn.grid(visible=True, color="#E3E3E3", linewidth=0.6)
    drawn.set_axisbelow(True)
    drawn.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, entries: Sequence[Entry], styles: dict[str, tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    keys: dict[str, Any] = {
        label: Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=6)
        for colour, marker, label in styles.values()
    }
    if any(entry.is_floor for entry in entries):
        keys["floor: no encoder"] = Line2D([], [], color=FLOOR, marker="X", linestyle="--", markersize=6)
    figure.legend(list(keys.values()), list(keys), loc="outside lower left", ncols=2, frameon=False, columnspacing=1)


def _named(entries: Sequence[Entry], best: Sequence[int]) -> list[int]:
    """Places of points with names: all of few, else those of the front, spread over it."""
    if len(entries) <= LABELLED:
        return list(range(len(entries)))
    if len(best) <= LABELLED:
        return list(best)
    return sorted({best[round(step * (len(best) - 1) / (LABELLED - 1))] for step in range(LABELLED)})


def _short(name: str, width: int = 26) -> str:
    return name if len(name) <= width else name[: width - 1].rstrip() + "…"


def _caption(entries: Sequence[Entry], points: Sequence[tuple[float, float]], best: Sequence[int], axis: Axis) -> str:
    better = "more" if axis.more else "less"
    if len(best) < 2:
        return f"{axis.label}: {better} is better."
    told = [f"{entries[i].name} ({points[i][0]:.2f} MB, {points[i][1]:.4g})" for i in best]
    if len(told) > LABELLED:
        told = [*told[: LABELLED - 1], "…", told[-1]]
    return f"{axis.label}: {better} is better. On the front (line): {'; '.join(told)}."
