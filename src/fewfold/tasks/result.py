"""The record of an evaluation: numbers and everything that they depend on, as JSON."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.folders import write_whole
from fewfold.measure.environment import environment
from fewfold.measure.parameters import stored_bytes
from fewfold.summary import stored_numbers, summary
from fewfold.tasks.finetune import Training
from fewfold.tasks.judged import Judged


@dataclass(frozen=True)
class Run:
    """One seed: how the model was trained, if it was, and how it was judged."""

    seed: int
    training: Training | None
    judged: Judged

    def to_dict(self) -> dict[str, Any]:
        """JSON form, predictions left out."""
        judged = {**asdict(self.judged), "seconds_per_1000": self.judged.seconds_per_1000}
        judged.pop("predictions")
        training = None
        if self.training is not None:
            training = {**asdict(self.training), "seconds_per_1000": self.training.seconds_per_1000}
        return {"seed": self.seed, "metrics": judged.pop("metrics"), "training": training, "evaluation": judged}


@dataclass(frozen=True)
class TaskResult:
    """An evaluation of one model on one task.

    :param task: The task's name.
    :param runs: One a seed.
    :param model: What was judged: class, sizes, recipes and structure in short.
    :param data: Sources and sizes of the splits.
    :param settings: Everything that was chosen: fine-tuning, lengths, batch, limits, resamples.
    :param minutes: Wall time of it all; of an evaluation that was killed and went on, all trainings and judgements.
    :param environment: Versions and hardware.
    """

    task: str
    runs: list[Run]
    model: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    minutes: float
    environment: dict[str, Any] = field(default_factory=environment)

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """By name, the main one first: `mean` and `std` over the seeds (None for one seed) and the `values`."""
        return over_seeds([{name: score.value for name, score in run.judged.metrics.items()} for run in self.runs])

    @property
    def tokens(self) -> int:
        """Tokens that all runs trained on and predicted, padding left out."""
        return sum(run.judged.tokens + (run.training.tokens if run.training else 0) for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, predictions left out."""
        return {
            "task": self.task,
            "metrics": self.metrics,
            "model": self.model,
            "data": self.data,
            "settings": self.settings,
            "runs": [run.to_dict() for run in self.runs],
            "tokens": self.tokens,
            "minutes": self.minutes,
            "environment": self.environment,
        }

    def save(self, file: str | PathLike[str]) -> Path:
        """Write the JSON form.

        :param file: The file; its folder is made.
        :return: The file.
        """
        return write_json(self.to_dict(), file)

    def save_predictions(self, file: str | PathLike[str]) -> Path:
        """Write every prediction of every seed, a JSON object a line.

        :param file: The file; its folder is made.
        :return: The file.
        """
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        records = ({"seed": run.seed, **record} for run in self.runs for record in run.judged.predictions)
        write_whole(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return file


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Summarize metrics over runs.

    :param runs: The same metrics of each run.
    :return: By name: `mean`, `std` (of the sample; None for a single run) and `values`.
    """
    found = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        std = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "std": std, "values": values}
    return found


def describe(model: nn.Module) -> dict[str, Any]:
    """Describe a model for a record: class, device, sizes; if it is compressed, recipes and structure in short.

    :param model: Any model, dense or compressed.
    :return: Ready for JSON; parameters are unique ones, bytes those on disk.
    """
    found: dict[str, Any] = {
        "class": type(model).__name__,
        "device": _device(model),
        "parameters": stored_numbers(model),
        "bytes": stored_bytes(model),
        "compressed": False,
    }
    structure = structure_of(model)
    if structure is None:
        return found
    kinds = Counter(f"{record.method} in {record.stored_dtype}" for record in structure.targets)
    return {
        **found,
        "compressed": True,
        "dense_parameters": summary(model).dense_parameters,
        "replaced": dict(kinds),
        "stores": len(structure.stores),
        "steps": structure.provenance.get("steps", []),
    }


def write_json(content: Mapping[str, Any], file: str | PathLike[str]) -> Path:
    """Write a record.

    :param content: Ready for JSON.
    :param file: The file; its folder is made.
    :return: The file.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return file


def _device(model: nn.Module) -> str:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
