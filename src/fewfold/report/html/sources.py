"""What the report is given: records, tables, evaluations and compressed folders, told apart by their content."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from fewfold.errors import FewfoldError
from fewfold.report.html.entries import Entry, joined
from fewfold.report.html.layers import Study, study
from fewfold.report.html.records import entries_in, folder_key

ACCEPTED = (
    "records of runs, tables of quality, results of `fewfold evaluate --out`, `fewfold measure --json` and "
    "`fewfold distill`, folders of them, and folders of compressed models"
)


class ReportError(FewfoldError):
    """Something that the report cannot be drawn from."""


@dataclass
class Sources:
    """Everything that was read.

    :param entries: measured models.
    :param studies: compressed folders.
    :param recipes: (name, recipe in its JSON form), of records that have one.
    :param recoveries: (name, the content of a ``distill.json``).
    :param environments: versions and hardware by file.
    :param skipped: files in given folders that hold nothing of the kind.
    """

    entries: list[Entry] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    recipes: list[tuple[str, Any]] = field(default_factory=list)
    recoveries: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def read_sources(places: Sequence[str | PathLike[str]], dense: str | PathLike[str] | None = None) -> Sources:
    """Read what a report is made of.

    :param places: files and folders; a folder of records is read with everything below it.
    :param dense: folder of the dense model, for errors of the weights.
    :raises ReportError: if a place is missing, cannot be read, or holds nothing that can be shown.
    """
    if not places:
        raise ReportError(f"nothing to report on: give {ACCEPTED}")
    sources = Sources()
    for place in map(Path, places):
        if not place.exists():
            raise ReportError(f"{place} does not exist; give {ACCEPTED}")
        if (place / "config.json").is_file():
            _read_model(place, Path(dense) if dense is not None else None, sources)
        elif place.is_dir():
            _read_folder(place, sources)
        else:
            _read_file(place, sources)
    sources.entries = joined(sources.entries)
    return sources


def _read_model(folder: Path, dense: Path | None, sources: Sources) -> None:
    config = _parse(folder / "config.json")
    carried = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(carried, dict) or carried.get("quant_method") != "fewfold":
        raise ReportError(f"{folder} holds a model that fewfold did not compress; give a dense model as --dense")
    found = study(folder, dense)
    sources.studies.append(found)
    sources.entries.append(
        Entry(folder.name, str(folder), bytes=found.bytes, parameters=found.parameters, folder=folder_key(str(folder)))
    )
    if (folder / "distill.json").is_file():
        _read_file(folder / "distill.json", sources)


def _read_folder(folder: Path, sources: Sources) -> None:
    before = len(sources.entries) + len(sources.recoveries)
    for file in sorted(folder.rglob("*.json")):
        try:
            _read_file(file, sources)
        except ReportError:
            sources.skipped.append(str(file))
    if len(sources.entries) + len(sources.recoveries) == before:
        raise ReportError(f"{folder} holds nothing to report on; give {ACCEPTED}")


def _read_file(file: Path, sources: Sources) -> None:
    content = _parse(file)
    taken = {entry.origin for entry in sources.entries} | sources.environments.keys()
    origin = next(told for told in _names(file) if told not in taken)
    if isinstance(content, dict) and isinstance(content.get("phases"), list) and "data" in content:
        sources.recoveries.append((file.parent.name if file.stem == "distill" else file.stem, content))
    else:
        try:
            found = entries_in(content, origin)
        except (KeyError, TypeError, AttributeError) as error:
            raise ReportError(f"{file} is damaged: {type(error).__name__} at {error}") from None
        if not found:
            raise ReportError(f"{file} holds nothing to report on; give {ACCEPTED}")
        sources.entries += found
    if isinstance(content, dict):
        if content.get("recipe"):
            sources.recipes.append((str(content.get("name", file.stem)), content["recipe"]))
        if isinstance(content.get("environment"), dict):
            sources.environments[origin] = content["environment"]


def _names(file: Path) -> Iterator[str]:
    """What a file may be called, shortest first: as much of its path as tells it from others."""
    parts = file.absolute().parts
    yield from ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))
    yield from (f"{file} ({number})" for number in itertools.count(2))  # given twice


def _parse(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ReportError(f"{file} is no JSON: {error}") from None
