"""What the records of recovery say: tasks beside the dense model, and methods beside rivals of as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common import check, row_of
from recover_curves import group_of
from recover_plans import plans
from recover_tasks import TITLES

from fewfold.measure.quality import QualityRow
from fewfold.report.runs import RunRecord

DENSE = "dense"
BARS = {"1/7": 0.99, "1/48": 0.967}  # shares of the dense model's mean over the tasks, as published
OF_DENSE = "a share of dense"  # what claims say of the tasks' mean
RIVALS = ("int3", "int4", "cut to")  # how their plans begin
SLACK = 1.01  # the size of a model that counts as no larger than a rival


def score(run: RunRecord, task: str) -> float | None:
    """A task's main metric; None before it is measured."""
    found = run.numbers.get("tasks", {}).get(task)
    return None if found is None else float(next(iter(found["metrics"].values()))["mean"])


def mean_of_tasks(run: RunRecord) -> float | None:
    """The mean of the tasks' metrics; None before all are measured."""
    scores = [score(run, task) for task in TITLES]
    return None if None in scores else sum(value for value in scores if value is not None) / len(scores)


def task_table(runs: Sequence[RunRecord]) -> list[str]:
    """Lines of a table: what is measured of the tasks, and its mean as a share of dense; none where nothing is."""
    measured = [run for run in runs if run.numbers.get("tasks")]
    if not measured:
        return []
    whole = _dense_mean(runs)
    lines = [
        "Fine-tuned after recovery, one seed:", "",
        f"| model | MB | {' | '.join(TITLES.values())} | mean | of dense |", f"| --- |{' ---: |' * (len(TITLES) + 3)}",
    ]  # fmt: skip
    for run in sorted(measured, key=lambda run: run.settings["plan"] != DENSE):
        mean = mean_of_tasks(run)
        shares = ["-" if value is None else f"{value:.3f}" for value in (*(score(run, task) for task in TITLES), mean)]
        share = "-" if mean is None or whole is None else f"{100 * mean / whole:.1f} %"
        title = run.settings["plan"] + (f": {run.settings['minutes']:g} min" if run.settings["minutes"] else "")
        lines.append(f"| {title} | {_after(run).bytes / 1e6:.2f} | {' | '.join(shares)} | {share} |")
    return [*lines, ""]


def claims(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Shares of dense at the published ratios, then every rival beside the best of ours that is no larger."""
    return _of_dense(runs) + _beside_rivals(runs)


def _of_dense(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    whole, found = _dense_mean(runs), []
    for run in runs:
        bar_name = group_of(run.settings["plan"])
        bar, mean = BARS.get(bar_name), mean_of_tasks(run)
        if whole and bar and mean is not None:
            counted = plans()[run.settings["plan"]].counted
            what = f"{run.name} ({bar_name} of the {counted}): mean over {', '.join(TITLES.values())}, as {OF_DENSE}"
            found.append(check(what, mean / whole, bar))
    return found


def _beside_rivals(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    found = []
    for rival in runs:
        if not rival.settings["plan"].startswith(RIVALS):
            continue
        theirs = _after(rival)
        ours = [
            run for run in runs
            if run.settings["minutes"] == rival.settings["minutes"] and not run.settings["plan"].startswith(RIVALS)
            and _after(run).bytes <= SLACK * theirs.bytes
        ]  # fmt: skip
        for what, measure in (("nn10", _overlap), ("STS-B", _spearman)):
            best = max(ours, key=measure, default=None)
            if best is not None:
                title = f"{best.name} ({_after(best).bytes / 1e6:.2f} MB)"
                against = f"{rival.settings['plan']} ({theirs.bytes / 1e6:.2f} MB)"
                found.append(check(f"{what} of {title}, beside {against}", measure(best), round(measure(rival), 4)))
    return found


def _dense_mean(runs: Sequence[RunRecord]) -> float | None:
    return next((mean_of_tasks(run) for run in runs if run.settings["plan"] == DENSE), None)


def _after(run: RunRecord) -> QualityRow:
    return row_of(run.numbers["after"])


def _overlap(run: RunRecord) -> float:
    return float(_after(run).neighbour_overlap or 0)


def _spearman(run: RunRecord) -> float:
    sts = _after(run).sts
    return sts.spearman if sts else 0.0
