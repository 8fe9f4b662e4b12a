"""Texts by name or file: to calibrate on, to distil on, to keep out."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NAMED = ("mixed-512", "wiki-512")
TABLES = {".csv": ",", ".tsv": "\t"}  # with a header
UNREAD = (".json", ".parquet", ".arrow", ".xlsx")
MANUAL = "python-manual"
HELP = (
    "Texts like those the model will see: a file with one a line (.txt), or rows with texts in columns like 'text' "
    "or 'sentence1' and 'sentence2' (.jsonl, or .csv and .tsv with a header); also packed as .gz or .xz; "
    f"'{MANUAL}' (prose of Python's own manual, on every machine), or {' or '.join(NAMED)} from FEWFOLD_DATA."
)
DEV = "-dev"
EVALUATED = "stsb-dev, sst2-dev, … squad-dev (what `fewfold evaluate` judges on)"
ROWS_HELP = (
    "What to learn on: text files with one text a line (.txt, also .gz or .xz), or rows with labels "
    "(.jsonl, .csv, .tsv), or a name as for calibration. Give it several times for several files."
)


def calibration_texts(source: str, option: str = "--calibration") -> tuple[list[str], str]:
    """Read calibration texts.

    :param source: a file's path or one of the names in :data:`HELP`.
    :param option: what errors call it.
    :return: the texts and the name that records call them by.
    :raises CalibrationError: if there is no such file or name, or nothing in it.
    """
    from fewfold.tasks.data import calibration_texts as named_texts

    if source in NAMED:
        return named_texts(source), source
    if source == MANUAL:
        from fewfold.tasks.pydoc_text import pydoc_sentences

        sentences = pydoc_sentences()
        return sentences[:: max(1, len(sentences) // 512)][:512], MANUAL
    path = Path(source).expanduser()
    found = _lines(path, source, option)
    return (_texts(_objects(found, source, option), source, option) if _has_rows(path) else found), path.name


def _has_rows(path: Path) -> bool:
    return _ending(path, (".jsonl", *TABLES)) is not None


def _ending(path: Path, kinds: Iterable[str]) -> str | None:
    """Which of some kinds a file's name speaks of, packed or not."""
    return next((ending.lower() for ending in path.suffixes if ending.lower() in kinds), None)


def _lines(path: Path, source: str, option: str) -> list[str]:
    from fewfold import CalibrationError
    from fewfold.tasks.data import lines

    if not path.is_file():
        raise CalibrationError(f"{option} {source}: no such file; give a text file, {MANUAL}, {' or '.join(NAMED)}")
    table = _ending(path, UNREAD)
    if table is not None:  # it would be learned as text
        raise CalibrationError(
            f"{option} {source} is a table ({table}), and what is read is text with one a line (.txt), objects with "
            "one a line (.jsonl), .csv or .tsv: write it as one of these, as pandas' to_csv(index=False) does"
        )
    try:
        found = lines(path)
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{option} {source} is no UTF-8 text: {error}") from error
    if found:
        found[0] = found[0].removeprefix("\ufeff")  # as spreadsheets and editors write it
    if not any(line.strip() for line in found):
        raise CalibrationError(f"{option} {source} holds no text")
    return found if _ending(path, TABLES) else [line for line in found if line.strip()]  # quoted fields span lines


def _texts(objects: list[dict[str, Any]], source: str, option: str) -> list[str]:
    """All texts of rows, the second ones of pairs too."""
    from fewfold import CalibrationError, DistillError
    from fewfold.distill.examples import read_examples

    try:
        examples = read_examples(objects, needs_labels=False)
    except DistillError as error:
        raise CalibrationError(f"{option} {source}: {error}") from error
    return [text for column in (examples.texts, examples.pairs or []) for text in column if text.strip()]


def rows(sources: list[str]) -> tuple[list[Any], str]:
    """Read what to distil on.

    :param sources: text files, names as of :func:`calibration_texts`, or files of rows (.jsonl, .csv, .tsv).
    :return: texts or dictionaries, and the name that records call them by.
    :raises CalibrationError: if there is no such file or name, or nothing in it.
    """
    from fewfold import CalibrationError

    found: list[Any] = []
    names = []
    plain = [source for source in sources if not _has_rows(Path(source))]
    if plain and len(plain) < len(sources):
        other = next(source for source in sources if source not in plain)
        raise CalibrationError(f"--data {plain[0]} holds texts and {other} holds rows: give files of one kind")
    for source in sources:
        path = Path(source).expanduser()
        if _has_rows(path):
            found += _objects(_lines(path, source, "--data"), source, "--data")
            names.append(path.name)
        else:
            read, name = calibration_texts(source, "--data")
            found += read
            names.append(name)
    return found, ", ".join(names)


def _objects(lines: list[str], source: str, option: str) -> list[dict[str, Any]]:
    from fewfold import CalibrationError

    found: list[dict[str, Any]] = []
    mark = TABLES.get(_ending(Path(source), TABLES) or "", "")
    if mark:
        whole = (f"{line}\n" for line in itertools.dropwhile(lambda line: not line.strip(), lines))
        table = csv.DictReader(whole, delimiter=mark, quoting=csv.QUOTE_MINIMAL if mark == "," else csv.QUOTE_NONE)
        for number, row in enumerate(table, 2):
            if len(row) > len(table.fieldnames or ()):
                raise CalibrationError(f"{option} {source}, row {number} has more fields than the header")
            if any(value and value.strip() for value in row.values()):
                found.append(dict(row))
        return found
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise CalibrationError(f"{option} {source}, line {number} is no JSON: {error.msg}") from None
        if not isinstance(found[-1], dict):
            raise CalibrationError(f"{option} {source}, line {number} is no object with columns: {line[:60]}")
    return found


def excluded(sources: list[str]) -> list[str]:
    """Read evaluation sentences: files as of :func:`calibration_texts`, or a task's by the name ``TASK-dev``.

    :raises CalibrationError: if there is no such file or name, or nothing in it.
    """
    from fewfold import CalibrationError

    found: list[str] = []
    for source in sources:
        task = source.removesuffix(DEV) if source.endswith(DEV) and not Path(source).exists() else ""
        judged = _judged_on(task)
        if not judged and source not in (*NAMED, MANUAL) and not Path(source).expanduser().is_file():
            raise CalibrationError(f"--exclude {source}: no such file; give a text file, or {EVALUATED}")
        found += judged or calibration_texts(source, "--exclude")[0]
    return found


def _judged_on(task: str) -> list[str]:
    """All sentences that a task judges on, each once; none where there is no such task."""
    from fewfold.tasks.glue import GLUE, read_glue
    from fewfold.tasks.squad import read_squad

    if task == "squad":
        found = read_squad("dev").questions
        return list(dict.fromkeys(text for one in found for text in (one.question, one.context)))
    splits = [read_glue(task, split) for split in GLUE[task].dev] if task in GLUE else []
    texts = (text for split in splits for one in split.examples for text in (one.first, one.second) if text)
    return list(dict.fromkeys(texts))
