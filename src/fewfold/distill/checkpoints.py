"""Checkpoints of a running distillation: complete or not there, and of this run or refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fewfold.checkpoint.folders import write_whole
from fewfold.distill.config import DistillConfig
from fewfold.distill.sketch import is_near
from fewfold.errors import DistillError
from fewfold.training.complete import newest

STATE = "distill_state.json"
LIMITS = ("steps", "minutes", "epochs", "checkpoint_minutes", "evaluate_minutes", "patience", "log_steps")


def run_key(config: DistillConfig, data: str, student: str) -> str:
    """What has to be the same for a run to go on: all but its limits, the data and the student's shapes."""
    return _hash(f"{_settings(config)}|{data}|{student}")


def work_key(config: DistillConfig, data: str) -> str:
    """What of that is known before there is a student."""
    return _hash(f"{_settings(config)}|{data}")


def _settings(config: DistillConfig) -> str:
    return json.dumps({k: v for k, v in config.model_dump(mode="json").items() if k not in LIMITS})


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def phase_folder(checkpoints: Path | None, number: int) -> Path | None:
    """Where a run's phase (from 1) keeps its checkpoints."""
    return None if checkpoints is None else checkpoints / f"phase-{number}"


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Mark a checkpoint complete and say where the run was; written last, in one step."""
    write_whole(folder / STATE, json.dumps(state) + "\n")


def last_checkpoint(
    folder: Path, key: str, begun: dict[str, list[float]] | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest complete checkpoint and its state.

    :param key: of this run.
    :param begun: sketches of the models that this run begins with.
    :raises DistillError: if it belongs to another run.
    """
    found = newest(folder, STATE)
    if found is None:
        return None
    state = _state(found)
    if state["key"] != key:
        raise DistillError(
            f"{folder} holds checkpoints of a run with other settings, data or student: remove that folder, or start "
            "anew with resume=False (--fresh)"
        )
    known = state.get("sketches", {})
    for name, numbers in (begun or {}).items():
        if name in known and not is_near(known[name], numbers):
            raise DistillError(
                f"{folder} holds checkpoints of a run that began with another {name} of the same shape: remove that "
                "folder, or start anew with resume=False (--fresh)"
            )
    return found, state


def refuse_others(folder: Path, work: str) -> None:
    """Find out before there is a student whether a folder's checkpoints can be this run's.

    :raises DistillError: if they learn otherwise, or from other data.
    """
    found = newest(folder, STATE)
    if found is not None and _state(found).get("work", work) != work:
        raise DistillError(
            f"{folder} holds checkpoints of a run with other settings or data: remove that folder, or give another one"
        )


def _state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
