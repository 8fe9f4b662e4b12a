"""A picture of what models cost beside the first one: sharing's savings, and what it does not save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from fewfold.optional import require
from fewfold.report.plots import COLOURS

BARS = {
    "parameters": "unique parameters",
    "weight_file_bytes": "weight files",
    "resident_bytes": "memory when loaded",
    "peak_bytes": "most memory while loading",
    "live_parameters": "parameters that a forward reads",
    "macs_per_token": "work per token",
    "activation_bytes": "activations",
    "load_seconds": "load time",
}


def cost_plot(
    models: Mapping[str, Mapping[str, Any]],
    grid: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | PathLike[str],
) -> Path:
    """Draw every cost as a share of the last model's (the one that is compared with), and latency over the grid.

    :param models: The fields of `Costs` by model; the last one is 100 %.
    :param grid: The result of `time_grid` by model.
    :param path: The picture to write; its ending (png, svg, pdf) tells the format.
    :return: The path.
    :raises ValueError: If there is no model.
    :raises ImportError: If matplotlib is missing.
    """
    if not models:
        raise ValueError("cost_plot needs at least one model")
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_shares(left, models)
    _latency(right, grid)
    figure.savefig(path)
    return Path(path)


def draw_shares(axis: Any, models: Mapping[str, Mapping[str, Any]]) -> list[list[float]]:
    """Draw the bars.

    :return: By model, the shares that the bars show, top to bottom.
    """
    base, height, shown = list(models.values())[-1], 0.8 / len(models), []
    for number, (name, costs) in enumerate(models.items()):
        shares = [costs[key] / base[key] if base[key] > 0 else float("nan") for key in BARS]
        places = [place + number * height for place in range(len(BARS))]
        axis.barh(places, [100 * share for share in shares], height * 0.9, color=COLOURS[number % 7], label=name)
        shown.append(shares)
    axis.set_yticks([place + 0.4 - height / 2 for place in range(len(BARS))], list(BARS.values()))
    axis.invert_yaxis()
    axis.set(xlabel=f"% of {list(models)[-1]}", title="Cost")
    axis.axvline(100, color="#777777", linestyle="--", linewidth=0.9)
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return shown


def _latency(axis: Any, grid: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for number, (name, points) in enumerate(grid.items()):
        middles = [point["median"] for point in points]
        spread = [
            [point["median"] - point["low"] for point in points],
            [point["high"] - point["median"] for point in points],
        ]
        labels = [f"{point['batch']}×{point['length']}" for point in points]
        axis.errorbar(
            labels, middles, spread, color=COLOURS[number % 7], marker="o", capsize=3, linewidth=1, label=name
        )
    axis.set(yscale="log", xlabel="batch × length", ylabel="ms a forward (10th to 90th percentile)", title="Latency")
    axis.grid(visible=True, axis="y", color="#E3E3E3", linewidth=0.6)
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
