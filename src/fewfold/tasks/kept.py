"""Finished seeds of an evaluation on disk, and a place for the one that is trained."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fewfold.checkpoint.folders import write_whole
from fewfold.tasks.finetune import Training
from fewfold.tasks.judged import Judged
from fewfold.tasks.metrics import Score
from fewfold.tasks.result import Run


class KeptRuns:
    """A folder with a folder a seed; an evaluation with other models, data or settings finds nothing in it.

    :param folder: Where they stand; made where it is not there.
    :param settings: Whatever changes a judgement beside what `run_key` knows of a training, the examples too.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Any) -> None:
        self.folder, self.settings = Path(folder), settings

    def place(self, seed: int, key: str) -> Path:
        """A seed's folder.

        :param key: Of its training.
        """
        digest = hashlib.blake2b(repr((key, self.settings)).encode(), digest_size=6).hexdigest()
        return self.folder / f"seed-{seed}-{digest}"

    @staticmethod
    def found(place: Path) -> tuple[Run, dict[str, Any]] | None:
        """A finished seed, and how its model was described; None where it is not finished."""
        file = place / "run.json"
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        judged, training = content["judged"], content["training"]
        metrics = {name: Score(**score) for name, score in judged.pop("metrics").items()}
        run = Run(content["seed"], Training(**training), Judged(metrics=metrics, **judged))
        return run, content["described"]

    @staticmethod
    def keep(place: Path, run: Run, described: dict[str, Any]) -> None:
        """Write a finished seed down, and let go of its checkpoints."""
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / "run.json", json.dumps({**asdict(run), "described": described}, ensure_ascii=False))
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
