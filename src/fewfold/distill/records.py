"""Write down what a recovery did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.folders import write_whole
from fewfold.distill.outcome import Outcome
from fewfold.report.curves import loss_plot

FILES = ("distill.json", "distill.png")


def write_history(outcome: Outcome, folder: Path) -> None:
    """``distill.json`` (config, data, versions, hardware, curves) and ``distill.png`` into an existing folder."""
    content = outcome.to_dict()
    loss_plot(content["phases"], folder / FILES[1])
    write_whole(folder / FILES[0], json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def keep_history(work: Path, folder: Path) -> None:
    """Move what was written into the folder of a run's checkpoints beside the saved model, and drop the rest."""
    for name in FILES:
        shutil.move(work / name, folder / name)
    shutil.rmtree(work)


def note_recovery(student: Any, outcome: Outcome) -> None:
    """Let a compressed student's structure tell how it was recovered."""
    structure = structure_of(student)
    if structure is None:
        return
    for phase, history in zip(outcome.phases, outcome.histories, strict=True):
        before, after = history.first_and_last
        structure.provenance.setdefault("recoveries", []).append(
            {
                "config": phase.name, "source": phase.source, "data": outcome.data["name"], "steps": history.steps,
                "tokens": history.tokens, "minutes": round(history.seconds / 60, 2), "loss_before": before,
                "loss_after": after, "fewfold": outcome.environment["fewfold"],
            }
        )  # fmt: skip
