"""Records of runs: one JSON file a run, from which tables and pictures are drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from fewfold.checkpoint.folders import write_whole
from fewfold.errors import FewfoldError
from fewfold.measure.environment import environment

FORMAT = 1


class BadRecord(FewfoldError):
    """A file that is no record of a run, or one of a newer fewfold."""


@dataclass(frozen=True)
class RunRecord:
    """What was run, on what, and what came out.

    :param name: what tables call the run; unique among the runs of a ``kind``.
    :param kind: which table it belongs to, as ``"recover"``.
    :param model: the model in a few words.
    :param recipe: recipe in its JSON form, or None.
    :param budget: as it was asked for, or None.
    :param data: texts by their role, as ``{"calibration": "mixed-512"}``.
    :param settings: everything else that was chosen.
    :param numbers: what was measured; numbers, or objects of numbers.
    :param series: curves, by name lists of points.
    :param minutes: wall time; None if not told.
    :param tokens: tokens that were read while training; None if none were.
    :param environment: versions and hardware.
    """

    name: str
    kind: str
    model: str
    recipe: Any = None
    budget: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    series: dict[str, list[Any]] = field(default_factory=dict)
    minutes: float | None = None
    tokens: int | None = None
    environment: dict[str, Any] = field(default_factory=environment)


def write_run(run: RunRecord, folder: str | PathLike[str]) -> Path:
    """Write a record as ``KIND/NAME.json``, whole or not at all; one of the same name is replaced.

    :param folder: of all records; made if missing.
    :return: the file.
    """
    path = run_file(run.kind, run.name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **asdict(run)}, indent=1, ensure_ascii=False)
    write_whole(path, text + "\n")
    return path


def run_file(kind: str, name: str, folder: str | PathLike[str]) -> Path:
    """Where the record of a run stands, or would stand."""
    return Path(folder) / slug(kind) / f"{slug(name)}.json"


def read_run(path: str | PathLike[str]) -> RunRecord:
    """Read one record.

    :raises BadRecord: naming the file and what is wrong with it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRecord(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadRecord(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict) or "format" not in content:
        raise BadRecord(f"{path} is no record of a run: it has no 'format'")
    if content["format"] != FORMAT:
        raise BadRecord(f"{path} has format {content['format']}, this fewfold reads {FORMAT}: update fewfold")
    known = {one.name for one in fields(RunRecord)}
    missing = {"name", "kind", "model"} - content.keys()
    if missing:
        raise BadRecord(f"{path} is no record of a run: it has no {', '.join(sorted(missing))}")
    return RunRecord(**{key: value for key, value in content.items() if key in known})


def read_runs(places: Iterable[str | PathLike[str]], kind: str | None = None) -> list[RunRecord]:
    """Read records from files, and from folders with everything below them, by name.

    :param kind: only those.
    :raises BadRecord: if a place is not there, or a file is no record.
    """
    found = []
    for place in map(Path, places):
        if not place.exists():
            raise BadRecord(f"{place} does not exist")
        files = sorted(place.rglob("*.json")) if place.is_dir() else [place]
        found += [read_run(file) for file in files]
    return [run for run in found if kind in (None, run.kind)]


def slug(name: str) -> str:
    """A name as part of a path: small letters, figures and single hyphens."""
    plain = name.lower().replace("×", "x").replace("/", "-of-").replace("+", " plus ")
    return re.sub(r"[^a-z0-9.]+", "-", plain).strip("-.") or "run"
