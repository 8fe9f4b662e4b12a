"""The demo's picture: what the compressed model costs and what it keeps, the dense one being 100 %."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewfold.demo.run import Demo
from fewfold.demo.table import Figure, figures
from fewfold.optional import require

COST, KEPT, FULL, FLOOR = "#0072B2", "#009E73", "#E6E6E6", "#777777"


def draw(demo: Demo, path: Path) -> Path:
    """Draw two panels of bars, costs and quality, with the floor marked where it has a value.

    :param path: the picture to write; its ending (png, svg, pdf) tells the format.
    :return: the path.
    :raises ImportError: if matplotlib is missing.
    """
    require("matplotlib", "demo")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    shown = [figure for figure in figures(demo) if figure.short]
    canvas = Canvas(figsize=(10.5, 3.2), layout="constrained", dpi=150)
    FigureCanvasAgg(canvas)
    left, right = canvas.subplots(1, 2)
    _panel(left, demo, [figure for figure in shown if figure.is_cost], COST, "What it costs (dense = 100 %)")
    _panel(right, demo, [figure for figure in shown if not figure.is_cost], KEPT, "What it keeps (dense = 100 %)")
    canvas.savefig(path)
    return path


def _panel(axis: Any, demo: Demo, shown: list[Figure], colour: str, title: str) -> None:
    widest = 1.0
    for place, figure in enumerate(shown):
        dense, compressed = figure.value(demo.dense), figure.value(demo.compressed)
        if not dense or compressed is None:
            continue
        share = compressed / dense
        widest = max(widest, share)
        axis.barh(place, 1, color=FULL, height=0.62)
        axis.barh(place, share, color=colour, height=0.62)
        text = f"{figure.show(compressed)} of {figure.show(dense)}" if figure.is_cost else figure.show(compressed)
        inside = share > 0.55
        axis.text(
            share - 0.015 if inside else share + 0.015, place, text, va="center", ha="right" if inside else "left",
            color="white" if inside else "#222222", fontsize=9,
        )  # fmt: skip
        floor = None if figure.is_cost else figure.value(demo.floor)
        if floor is not None:
            label = "no encoder at all" if place == 0 else None
            axis.vlines(max(0.0, floor / dense), place - 0.42, place + 0.42, color=FLOOR, linestyle="--", label=label)
    axis.set_yticks(range(len(shown)), [figure.short for figure in shown])
    axis.invert_yaxis()
    axis.set_title(title, fontsize=11)
    axis.set_xlim(0, 1.02 * widest)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower right", fontsize=8, frameon=False, bbox_to_anchor=(1, -0.16))
