"""Pictures of what happened while a model learned."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from fewfold.optional import require
from fewfold.report.plots import COLOURS


def loss_plot(phases: Sequence[dict[str, Any]], path: str | PathLike[str]) -> Path:
    """Draw losses over minutes, one panel a phase: the curve's sum and parts, and held-out texts.

    :param phases: Each with `curve` and `held_out`, lists of points with `seconds` and losses by name, and `config`;
        where there is one, also `levels`, losses by name to compare with.
    :param path: The picture to write; its ending (png, svg, pdf) tells the format.
    :return: The path.
    :raises ValueError: If there is no phase.
    :raises ImportError: If matplotlib is missing.
    """
    if not phases:
        raise ValueError("loss_plot needs at least one phase")
    draw_losses(phases).savefig(path)
    return Path(path)


def draw_losses(phases: Sequence[dict[str, Any]]) -> Any:
    """Draw `loss_plot` without writing it.

    :param phases: As of `loss_plot`.
    :return: The matplotlib figure.
    :raises ImportError: If matplotlib is missing.
    """
    require("matplotlib", "distill")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8 * len(phases), 4.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    for axis, phase in zip(figure.subplots(1, len(phases), squeeze=False)[0], phases, strict=True):
        _panel(axis, phase)
    return figure


_APART = ("step", "seconds", "tokens", "learning_rate", "gradient_norm", "restored")


def _panel(axis: Any, phase: dict[str, Any]) -> None:
    curve, held_out = phase["curve"], phase["held_out"]
    names = [name for name in (curve[0] if curve else {}) if name not in _APART]
    shown = names if len(names) > 2 else names[:1]
    for name, colour in zip(shown, COLOURS, strict=False):
        axis.plot(
            [point["seconds"] / 60 for point in curve], [point[name] for point in curve], color=colour,
            linewidth=1.6 if name == "loss" else 0.9, label="training" if name == "loss" else name.replace("_", ", "),
        )  # fmt: skip
    if held_out:
        axis.plot(
            [point["seconds"] / 60 for point in held_out], [point["loss"] for point in held_out],
            color="#000000", linestyle="none", marker="o", markersize=6, label="held-out texts",
        )  # fmt: skip
    for name, loss in phase.get("levels", {}).items():
        axis.axhline(loss, color="#6E6E6E", linewidth=1.0, linestyle="--", label=name)
    axis.set(title=phase["config"].get("name", "custom"), xlabel="minutes", ylabel="loss", yscale="log")
    axis.legend(frameon=False)
    axis.grid(visible=True, which="both", color="#E3E3E3", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
