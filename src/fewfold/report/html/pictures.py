"""Which pictures a report shows, in the order in which questions come: is it good, is it fast, how was it done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewfold.optional import require
from fewfold.report.html.entries import Entry, Score, metrics_of, more_is_better
from fewfold.report.html.scatter import Axis, Picture, scatter
from fewfold.report.html.svg import SETTINGS, svg

METRICS = 6
COSTS = (
    ("macs", "work", "MACs a token (M)", 1e6),
    ("memory", "memory", "memory of the loaded model (MB)", 1e6),
    ("load", "load time", "load time (s)", 1.0),
)


def quality_pictures(entries: Sequence[Entry]) -> list[Picture]:
    """Size against each metric that at least two entries of known size have; the six commonest."""
    found: list[Picture] = []
    for metric in metrics_of(entries):
        told = [(entry, entry.quality[metric]) for entry in entries if entry.bytes and metric in entry.quality]
        if len(told) > 1 and len(found) < METRICS:
            axis = Axis(metric, more_is_better(metric))
            found.append(_scatter(f"quality-{len(found)}", f"Size against {metric}", told, axis))
    return found


def speed_pictures(entries: Sequence[Entry]) -> list[Picture]:
    """Size against each measured latency, then against work a token, memory and load time."""
    found: list[Picture] = []
    for point in dict.fromkeys(point for entry in entries for point in entry.latency):
        told = [(entry, entry.latency[point]) for entry in entries if entry.bytes and point in entry.latency]
        label = "latency (ms)" if point == "latency" else f"latency at {point.replace('x', '×')} (ms)"
        if len(told) > 1:
            axis = Axis(label, more=False, logarithmic=True)
            found.append(_scatter(f"speed-{len(found)}", f"Size against {label.split(' (')[0]}", told, axis))
    for cost, title, label, unit in COSTS:
        known = [entry for entry in entries if entry.bytes and getattr(entry, cost)]
        if len(known) > 1:
            told = [(entry, Score(getattr(entry, cost) / unit)) for entry in known]
            found.append(_scatter(cost, f"Size against {title}", told, Axis(label, more=False, logarithmic=True)))
    return found


def recovery_picture(name: str, title: str, phases: Sequence[dict[str, Any]]) -> Picture:
    """The losses of a recovery over its minutes.

    :param phases: as in ``distill.json``.
    :raises ImportError: if matplotlib is missing.
    """
    require("matplotlib", "report")
    import matplotlib

    from fewfold.report.curves import draw_losses

    with matplotlib.rc_context(SETTINGS):
        markup = svg(draw_losses(phases), name, f"Losses of {title} over minutes", {})
    told = "; ".join(
        f"{phase['config'].get('name', 'custom')}: {phase['steps']:,} steps, {phase['tokens']:,} tokens"
        for phase in phases
    )
    return Picture(name, title, markup, told + ".")


def _scatter(name: str, title: str, told: Sequence[tuple[Entry, Score]], axis: Axis) -> Picture:
    return scatter(name, title, [entry for entry, _ in told], [score for _, score in told], axis)
