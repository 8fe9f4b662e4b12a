"""Pictures of measured rows."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from fewfold.measure.quality import QualityRow
from fewfold.optional import require

# Okabe and Ito's palette: distinct to colour-blind eyes; yellow is left out, being faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def size_quality_plot(rows: Sequence[QualityRow], path: str | PathLike[str]) -> Path:
    """Draw stored size against quality: neighbours kept and, where scored, STS with its interval.

    Rows whose names agree up to the first comma share a colour and a marker, and are joined by a line. A
    floor (no work per token) is grey, with a dashed line that a good encoder has to stay above.

    :param rows: The rows, at least one.
    :param path: The picture to write; its ending (png, svg, pdf) tells the format.
    :return: The path.
    :raises ValueError: If there is no row.
    :raises ImportError: If matplotlib is missing.
    """
    if not rows:
        raise ValueError("size_quality_plot needs at least one row")
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 2 if any(row.sts for row in rows) else 1
    figure = Figure(figsize=(6.4 * panels, 4.6), layout="constrained", dpi=150)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    size = rows[0].neighbours
    _panel(axes[0], rows, [row.neighbour_overlap for row in rows])
    axes[0].set(title=f"Nearest neighbours kept (nn{size})", ylabel=f"share of {size} neighbours in common")
    if panels == 2:
        scored = [row for row in rows if row.sts]
        _panel(axes[1], scored, [row.sts.spearman for row in scored if row.sts])
        axes[1].set(title="Semantic similarity (STS)", ylabel="Spearman, 95 % interval")
    canvas.draw()
    for axis in axes:
        _label_points(axis, canvas.get_renderer())
    target = Path(path)
    figure.savefig(target)
    return target


def _panel(axis: Any, rows: Sequence[QualityRow], heights: list[float]) -> None:
    """Draw one panel and leave the points to be labelled on `axis.fewfold_points`."""
    sizes = [row.bytes / 1e6 for row in rows]
    families = list(dict.fromkeys(_family(row) for row in rows if row.macs))
    for family in families:
        members = sorted((s, h) for s, h, row in zip(sizes, heights, rows, strict=True) if _is(row, family))
        number = families.index(family)
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        axis.plot(*zip(*members, strict=True), linewidth=1.2, markersize=7, zorder=3, **style)
    for row, size, height in zip(rows, sizes, heights, strict=True):
        colour = COLOURS[families.index(_family(row)) % len(COLOURS)] if row.macs else "#777777"
        if not row.macs:
            axis.axhline(height, color=colour, linestyle="--", linewidth=1, zorder=1)
            axis.plot(size, height, marker="X", color=colour, markersize=7, zorder=3)
        if row.sts and height == row.sts.spearman:
            axis.vlines(size, row.sts.low, row.sts.high, color=colour, linewidth=1.2, alpha=0.6, zorder=2)
    _scale(axis, sizes)
    axis.fewfold_points = list(zip((row.name for row in rows), sizes, heights, strict=True))


def _family(row: QualityRow) -> str:
    return row.name.split(",")[0]


def _is(row: QualityRow, family: str) -> bool:
    return bool(row.macs) and _family(row) == family


def _scale(axis: Any, sizes: list[float]) -> None:
    """Set a logarithmic scale in megabytes with room for labels, and readable ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.set_xlim(min(sizes) / 1.8, max(sizes) * 1.8)
    axis.margins(y=0.15)
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("stored size (MB, logarithmic)")
    axis.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _label_points(axis: Any, renderer: Any) -> None:
    """Write each point's name beside it, in the first place that covers no other name and no point."""
    points = [axis.transData.transform((size, height)) for _, size, height in axis.fewfold_points]
    frame = axis.get_window_extent(renderer)
    taken: list[Any] = []
    for (name, size, height), _ in sorted(
        zip(axis.fewfold_points, points, strict=True), key=lambda pair: -pair[1][1]
    ):
        best, least = None, float("inf")
        for dx, dy, side, base in _PLACES:
            label = axis.annotate(
                name, (size, height), (dx, dy), textcoords="offset points",
                ha=side, va=base, fontsize=8, color="#222222", zorder=4,
            )  # fmt: skip
            box = label.get_window_extent(renderer)
            hidden = sum(box.overlaps(other) for other in taken)
            hidden += sum(box.padded(4).contains(*point) for point in points)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            cost = hidden + 2 * outside
            if cost < least:
                if best is not None:
                    best[0].remove()
                best, least = (label, box), cost
            else:
                label.remove()
            if not least:
                break
        if best is not None:
            taken.append(best[1])


_PLACES = (
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (7, 9, "left", "bottom"),
    (-7, 9, "right", "bottom"),
    (7, -9, "left", "top"),
    (-7, -9, "right", "top"),
    (0, 20, "center", "bottom"),
    (0, -20, "center", "top"),
)
