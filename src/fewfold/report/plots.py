"""Pictures of measured rows."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from fewfold.measure.quality import QualityRow
from fewfold.optional import require
from fewfold.report.labels import label_points

# Okabe and Ito's palette: distinct to colour-blind eyes; yellow is left out, being faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "h")
FLOOR = "#777777"


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
    figure, _ = draw_size_quality(rows)
    figure.savefig(path)
    return Path(path)


def draw_size_quality(rows: Sequence[QualityRow]) -> tuple[Any, list[list[Any]]]:
    """Draw `size_quality_plot` without writing it.

    :param rows: The rows, at least one.
    :return: The matplotlib figure and, panel by panel, the boxes of the names in display coordinates.
    :raises ImportError: If matplotlib is missing.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = [row for row in rows if row.sts]
    panels = 2 if scored else 1
    figure = Figure(figsize=(6.8 * panels, 5.2), layout="constrained", dpi=150)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    size = rows[0].neighbours
    drawn = [_panel(axes[0], rows, [row.neighbour_overlap for row in rows], _families(rows))]
    axes[0].set(title=f"Nearest neighbours kept (nn{size})", ylabel=f"share of {size} neighbours in common")
    if scored:
        drawn.append(_panel(axes[1], scored, [r.sts.spearman for r in scored if r.sts], _families(rows)))
        axes[1].vlines(
            [row.bytes / 1e6 for row in scored],
            [row.sts.low for row in scored if row.sts],
            [row.sts.high for row in scored if row.sts],
            colors=[_colour(row, _families(rows)) for row in scored], linewidth=1, alpha=0.35, zorder=2,
        )  # fmt: skip
        axes[1].set(title="Semantic similarity (STS)", ylabel="Spearman's correlation, 95 % interval")
    canvas.draw()
    renderer = canvas.get_renderer()
    return figure, [label_points(axis, points, renderer) for axis, points in zip(axes, drawn, strict=True)]


def _panel(
    axis: Any, rows: Sequence[QualityRow], heights: list[float], families: list[str]
) -> list[tuple[str, float, float]]:
    """Draw the points and lines of one panel; return what is to be named."""
    sizes = [row.bytes / 1e6 for row in rows]
    for number, family in enumerate(families):
        members = [i for i, row in enumerate(rows) if row.macs and _family(row) == family]
        members.sort(key=lambda i: sizes[i])
        marker = MARKERS[number % len(MARKERS)]
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(
            [sizes[i] for i in members], [heights[i] for i in members],
            color=colour, marker=marker, markersize=7, linewidth=0.9, zorder=3,
        )  # fmt: skip
    for row, size, height in zip(rows, sizes, heights, strict=True):
        if not row.macs:
            axis.axhline(height, color=FLOOR, linestyle="--", linewidth=0.9, zorder=1)
            axis.plot(size, height, color=FLOOR, marker="X", markersize=7, zorder=3)
    _scale(axis, sizes)
    return [(row.name, size, height) for row, size, height in zip(rows, sizes, heights, strict=True)]


def _family(row: QualityRow) -> str:
    return row.name.split(",")[0]


def _families(rows: Sequence[QualityRow]) -> list[str]:
    return list(dict.fromkeys(_family(row) for row in rows if row.macs))


def _colour(row: QualityRow, families: list[str]) -> str:
    return COLOURS[families.index(_family(row)) % len(COLOURS)] if row.macs else FLOOR


def _scale(axis: Any, sizes: list[float]) -> None:
    """Set a logarithmic scale in megabytes with room for names, and readable ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.set_xlim(min(sizes) / 2.2, max(sizes) * 2.2)
    axis.margins(y=0.12)
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("stored size (MB, logarithmic)")
    axis.grid(visible=True, color="#E3E3E3", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
