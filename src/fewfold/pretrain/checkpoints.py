"""Checkpoints of a running pretraining: complete or not there, and of this run or refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fewfold.checkpoint.folders import write_whole
from fewfold.errors import CheckpointError
from fewfold.training.history import TrainingHistory
from fewfold.training.identity import config_of

RUN, MARK = "run.json", "history.json"


def identity_of(model: Any) -> dict[str, Any]:
    """What a model is, for `pretrain`'s `identity`: class, config and shapes."""
    return {
        "class": type(model).__name__, "config": config_of(model),
        "parameters": [list(parameter.shape) for parameter in model.parameters()],
    }  # fmt: skip


def last_complete(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a history is the last thing that comes into one."""
    return next(iter(_complete(folder)), None)


def _complete(folder: Path) -> list[Path]:
    """Complete checkpoints, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / MARK).is_file()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def go_on(folder: Path, checkpoint: Path, run: dict[str, Any], history: TrainingHistory) -> None:
    """Take over what a run had written down, if it is this one."""
    file = folder / RUN
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != run:
        raise CheckpointError(
            f"{folder} holds checkpoints of a run with another model, other data or settings: remove it, or start anew "
            "with resume=False (--fresh)"
        )
    written = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
    for name, value in written.items():
        setattr(history, name, value)


def begin(folder: Path, run: dict[str, Any]) -> None:
    """Clear what another run has left, and write down which one this folder is of."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("checkpoint-*"):
        shutil.rmtree(stale)
    write_whole(folder / RUN, json.dumps(run))


def complete(checkpoint: Path, history: TrainingHistory, kept: int) -> None:
    """Mark a checkpoint as complete, in one step; it and the newest other complete ones are kept, so many in all."""
    write_whole(checkpoint / MARK, json.dumps(asdict(history)))
    others = [path for path in _complete(checkpoint.parent) if path != checkpoint]
    for old in {*checkpoint.parent.glob("checkpoint-*")} - {checkpoint, *others[: kept - 1]}:
        shutil.rmtree(old)
