"""GLUE: its tasks, their data and their official metrics (Wang et al. 2019, https://gluebenchmark.com)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fewfold.errors import TaskError
from fewfold.tasks.data import from_hub, lines, local_file


class Example(NamedTuple):
    """A text or a pair of texts, and its class (0, 1, …) or score."""

    first: str
    second: str | None
    label: float


class GlueSplit(NamedTuple):
    """The examples of a split and where they were read: a file's path under the data root or a name on the Hub."""

    examples: list[Example]
    source: str


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE.

    :param name: As on the Hub.
    :param folder: In the usual layout of the downloaded files.
    :param columns: Names of the text columns and the label column in those files.
    :param hub_columns: The same on the Hub; files may use them too.
    :param labels: Names of the classes, in the Hub's order; none where the label is a score of 0…5.
    :param metrics: The official metrics, the main one first.
    :param places: Where the columns stand in files without a header.
    :param dev: The splits to judge on, by the names of their files.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    hub_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    places: tuple[int, ...] = ()
    dev: tuple[str, ...] = ("dev",)

    @property
    def num_labels(self) -> int:
        """Outputs of the head: a number a class, or one score."""
        return len(self.labels) or 1


_YES_NO = ("0", "1")
_ENTAILS = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2", "label")
_QUESTIONS = ("question1", "question2")
GLUE = {
    task.name: task
    for task in (
        GlueTask("cola", "CoLA", ("sentence", "label"), ("sentence", "label"), _YES_NO, ("mcc",), (3, 1)),
        GlueTask("sst2", "SST-2", ("sentence", "label"), ("sentence", "label"), _YES_NO, ("accuracy",)),
        GlueTask("mrpc", "MRPC", ("#1 String", "#2 String", "Quality"), _PAIR, _YES_NO, ("f1", "accuracy")),
        GlueTask("qqp", "QQP", (*_QUESTIONS, "is_duplicate"), (*_QUESTIONS, "label"), _YES_NO, ("f1", "accuracy")),
        GlueTask("stsb", "STS-B", ("sentence1", "sentence2", "score"), _PAIR, (), ("spearman", "pearson"), (5, 6, 4)),
        GlueTask(
            "mnli", "MNLI", ("sentence1", "sentence2", "gold_label"), ("premise", "hypothesis", "label"),
            ("entailment", "neutral", "contradiction"), ("accuracy",), dev=("dev_matched", "dev_mismatched"),
        ),
        GlueTask("qnli", "QNLI", ("question", "sentence", "label"), ("question", "sentence", "label"), _ENTAILS,
                 ("accuracy",)),
        GlueTask("rte", "RTE", _PAIR, _PAIR, _ENTAILS, ("accuracy",)),
    )
}  # fmt: skip


def read_glue(task: str, split: str) -> GlueSplit:
    """Read a split of a GLUE task: from the data root, in its own or in the usual layout, else from the Hub.

    Files are `glue/sst2/dev.tsv` or `glue/SST-2/dev.tsv`, also without `glue/` and packed (`.gz`, `.xz`).

    :param task: "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli" or "rte".
    :param split: "train" or "dev"; of MNLI "train", "dev_matched" or "dev_mismatched".
    :return: The examples in file order, and their source.
    :raises DataUnavailable: If they are nowhere to be had.
    :raises TaskError: If there is no such task or split, columns are missing, no example is left, or a label is none.
    """
    found = GLUE.get(task)
    if found is None:
        raise TaskError(f"no GLUE task {task!r}: choose one of {', '.join(GLUE)}")
    if split not in ("train", *found.dev):
        raise TaskError(f"{task} has no split {split!r}: choose one of {', '.join(('train', *found.dev))}")
    names = [f"{base}{folder}/{split}.tsv" for base in ("glue/", "") for folder in (found.name, found.folder)]
    file = local_file(*(name + packing for name in names for packing in ("", ".gz", ".xz")))
    if file is None:
        rows = from_hub("nyu-mll/glue", task, split.replace("dev", "validation"))
        source = f"nyu-mll/glue {task} {split}"
        examples = _from_rows(found, rows, found.hub_columns, source)
    else:
        source = f"{file.parent.name}/{file.name}"
        examples = _from_file(found, file)
    if not examples:
        raise TaskError(f"{source} holds no example")
    return GlueSplit(examples, source)


def _from_file(task: GlueTask, file: Path) -> list[Example]:
    """Read a file of tab-separated columns; quotation marks are text like any other."""
    table = [line.split("\t") for line in lines(file) if line.strip()]
    if not table:
        return []
    head = [name.lstrip("\ufeff").strip() for name in table[0]]
    for columns in (task.columns, task.hub_columns):
        if set(columns) <= set(head):
            whole = _whole(table[1:], len(head), file)
            return _from_rows(task, (dict(zip(head, row, strict=False)) for row in whole), columns, str(file))
    if task.places and len(head) > max(task.places):
        whole = _whole(table, max(task.places) + 1, file)
        named = ({column: row[place] for column, place in zip(task.columns, task.places, strict=True)} for row in whole)
        return _from_rows(task, named, task.columns, str(file))
    wanted = ", ".join(task.columns)
    raise TaskError(f"{file}: {task.name} needs the columns {wanted}, tab separated; the first line has {head}")


def _whole(rows: Sequence[list[str]], columns: int, file: Path) -> list[list[str]]:
    """Leave out the few rows that are cut short in the official files of QQP; many mean another format."""
    whole = [row for row in rows if len(row) >= columns]
    if (len(rows) - len(whole)) * 1000 > len(rows):
        place = next(place for place, row in enumerate(rows, start=1) if len(row) < columns)
        raise TaskError(
            f"{file}: {len(rows) - len(whole)} of {len(rows)} rows have fewer than {columns} columns, the first is row "
            f"{place}: is it the right file?"
        )
    return whole


def _from_rows(
    task: GlueTask, rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...], source: str
) -> list[Example]:
    *texts, label = columns
    examples = []
    for place, row in enumerate(rows, start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise TaskError(f"{source}: {task.name} needs the column {missing[0]}; there are {', '.join(row)}")
        second = row[texts[1]] if len(texts) > 1 else None
        examples.append(Example(row[texts[0]], second, _label(task, row[label], f"{source}, example {place}")))
    return examples


def _label(task: GlueTask, value: Any, where: str) -> float:
    """The class's number or the score behind what a column says."""
    if not task.labels:
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not 0 <= score <= 5:
            raise TaskError(f"{where}: {task.name} scores are 0…5, and this one is {value!r}")
        return score
    text = str(value).strip()
    if text in task.labels:
        return task.labels.index(text)
    if text in (numbers := [str(number) for number in range(len(task.labels))]):
        return numbers.index(text)
    raise TaskError(
        f"{where}: {task.name} labels are {', '.join(task.labels)} (or {', '.join(numbers)}), and this one is {value!r}"
        + ("; the Hub's test split has no labels" if text == "-1" else "")
    )
