"""The learning curve of every recorded recovery, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from fewfold.report.plots import COLOURS
from fewfold.report.runs import RunRecord

COLUMNS = 3


def group_of(plan: str) -> str:
    """What a plan is compared with: a ratio, the whole model by its bytes, or nothing of the kind."""
    _, _, last = plan.rpartition(", ")
    if "whole model" in last:
        return "whole model"
    return last if last != plan else "cut to fewer layers"


def order(run: RunRecord) -> tuple[Fraction, str, float]:
    """Where a run stands among others: groups of large budgets first, those that are no ratio last."""
    plan, group = run.settings["plan"], group_of(run.settings["plan"])
    ratio = Fraction(group) if "/" in group else Fraction(0)
    return -ratio, f"{group} {plan}", run.settings["minutes"]


def draw_curves(runs: Sequence[RunRecord], path: Path) -> None:
    """A panel a group, and one for all longer runs; lines are losses in training, dots those on held-out texts.

    :param runs: those without a curve are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups: dict[str, list[RunRecord]] = {}
    curves = sorted((run for run in runs if run.series.get("curve")), key=order)
    short = min((run.settings["minutes"] for run in curves), default=0)
    for run in sorted(curves, key=lambda run: run.settings["minutes"]):
        longer = run.settings["minutes"] > short
        groups.setdefault("longer" if longer else group_of(run.settings["plan"]), []).append(run)
    if not groups:
        return
    rows = -(-len(groups) // COLUMNS)
    figure = Figure(figsize=(5.2 * COLUMNS, 5.2 * rows), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis, (title, members) in zip(axes, groups.items(), strict=False):
        _panel(axis, title, members)
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    figure.savefig(partial)
    partial.replace(path)


def _panel(axis: Any, title: str, runs: Sequence[RunRecord]) -> None:
    from matplotlib.ticker import LogLocator

    for place, run in enumerate(runs):
        colour = COLOURS[place % len(COLOURS)]
        line = "-" if place < len(COLOURS) else "--"
        label = f"{run.settings['plan'].removesuffix(f', {title}')}, {run.settings['minutes']:g} min"
        pace = run.settings["minutes"] / run.settings["minutes here"]
        curve, held_out = run.series["curve"], run.series.get("held_out", [])
        axis.plot(*_points(curve, pace), color=colour, linestyle=line, linewidth=1.2, label=label)
        axis.plot(*_points(held_out, pace), color=colour, linestyle="none", marker="o", markersize=4)
    axis.set(title=title, xlabel="minutes of the first machine", ylabel="loss", yscale="log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if high < 30 * low else "")
    axis.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14))
    axis.grid(visible=True, which="both", color="#E3E3E3", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _points(points: Sequence[dict[str, Any]], pace: float) -> tuple[list[float], list[float]]:
    return [point["seconds"] / 60 * pace for point in points], [point["loss"] for point in points]
