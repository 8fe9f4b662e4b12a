"""Read what the user distils on: texts, or rows with texts and labels; and keep evaluation sentences out."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewfold.errors import DistillError

TEXT_COLUMNS = (
    ("text", "text_pair"), ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"),
    ("question", "sentence"), ("first", "second"), ("text",), ("sentence",),
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "score")
TARGET_COLUMNS = (
    ("source", "target"), ("src", "tgt"), ("text", "target"), ("text", "summary"), ("document", "summary"),
    ("article", "highlights"), ("input", "output"), ("question", "answer"),
)  # fmt: skip
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’»)\]]*\s+")


@dataclass(frozen=True)
class Examples:
    """Texts to learn on.

    :param texts: one an example.
    :param pairs: the second text of every example, or None.
    :param labels: class numbers or scores, or None.
    :param targets: what an encoder–decoder writes for each text, or None.
    :param excluded: how many examples were left out because they hold an evaluation sentence.
    """

    texts: list[str]
    pairs: list[str] | None = None
    labels: list[float] | None = None
    excluded: int = 0
    targets: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def columns(self) -> list[list[str]]:
        """Texts, and the second texts and targets that there are."""
        return [column for column in (self.texts, self.pairs, self.targets) if column is not None]

    def take(self, places: Sequence[int], excluded: int = 0) -> Examples:
        """Some of the examples."""
        return Examples(
            [self.texts[place] for place in places],
            None if self.pairs is None else [self.pairs[place] for place in places],
            None if self.labels is None else [self.labels[place] for place in places],
            excluded,
            None if self.targets is None else [self.targets[place] for place in places],
        )


def read_examples(data: Any, needs_labels: bool, exclude: Iterable[str] = (), writes: bool = False) -> Examples:
    """Examples from a list of texts, of dictionaries, of named tuples, or a datasets.Dataset.

    :param needs_labels: whether a loss asks for labels; columns of labels are left alone otherwise.
    :param writes: whether the models are encoder–decoders, whose rows may have targets; targets serve as labels.
    :param exclude: evaluation sentences; examples that are one, or hold one, are left out.
    :raises DistillError: if there is nothing to learn on, or columns are missing.
    """
    if isinstance(data, str):
        raise DistillError(
            "data is one string; pass a list of texts (a file's lines: Path(name).read_text().splitlines())"
        )
    if isinstance(data, Mapping):
        raise DistillError(
            "data is a dictionary; pass a list of texts, a list of rows, or one split of a datasets.DatasetDict"
        )
    if isinstance(exclude, str):
        raise DistillError("exclude is one string; pass a list of sentences")
    rows = [row._asdict() if hasattr(row, "_asdict") else row for row in data]
    if not rows:
        raise DistillError("data is empty: pass texts like those that the model will see")
    if all(isinstance(row, str) for row in rows):
        examples = Examples([row for row in rows if row.strip()])
    elif all(isinstance(row, Mapping) for row in rows):
        examples = (_pairs(rows) if writes else None) or _columns(rows, needs_labels)
    else:
        kinds = sorted({type(row).__name__ for row in rows})
        raise DistillError(f"data holds {', '.join(kinds)}; pass texts, or rows as dictionaries")
    if not len(examples):
        raise DistillError("every text of the data is blank")
    if needs_labels and examples.labels is None and examples.targets is None:
        targets = f" and no columns {_named(TARGET_COLUMNS)}" if writes else ""
        raise DistillError(f"a loss asks for labels, and the data has no column {' or '.join(LABEL_COLUMNS)}{targets}")
    return _without(examples, exclude)


def _pairs(rows: Sequence[Mapping[str, Any]]) -> Examples | None:
    """Texts with targets, if there are such columns."""
    columns = next((known for known in TARGET_COLUMNS if set(known) <= set(rows[0])), None)
    if columns is None:
        return None
    _complete(rows, columns)
    text, target = columns
    blank = next((place for place, row in enumerate(rows) if not row[target].strip()), None)
    if blank is not None:
        raise DistillError(f"row {blank} of the data has a blank {target!r}: leave it out")
    return Examples([row[text] for row in rows], targets=[row[target] for row in rows])


def _named(columns: Iterable[tuple[str, ...]]) -> str:
    return ", ".join("+".join(names) for names in columns)


def _complete(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> None:
    for number, row in enumerate(rows):
        missing = [name for name in columns if row.get(name) is None]
        if missing:
            raise DistillError(f"row {number} of the data has no {missing[0]!r}")
        wrong = next((name for name in columns if not isinstance(row[name], str)), None)
        if wrong is not None:
            raise DistillError(
                f"row {number} of the data has {str(row[wrong])[:40]!r} as {wrong!r}, a {type(row[wrong]).__name__}: "
                "give text"
            )


def _columns(rows: Sequence[Mapping[str, Any]], labelled: bool) -> Examples:
    names = set(rows[0])
    columns = next((known for known in TEXT_COLUMNS if set(known) <= names), None)
    if columns is None:
        raise DistillError(
            f"data has the columns {', '.join(sorted(names))}; name the text's one of {_named(TEXT_COLUMNS)}, or, for "
            f"an encoder–decoder, {_named(TARGET_COLUMNS)}"
        )
    label = next((name for name in LABEL_COLUMNS if name in names), None) if labelled else None
    _complete(rows, columns)
    return Examples(
        [row[columns[0]] for row in rows],
        [row[columns[1]] for row in rows] if len(columns) == 2 else None,
        [_number(row.get(label), label, number) for number, row in enumerate(rows)] if label else None,
    )


def _number(value: Any, column: str, row: int) -> float:
    """A label as a number."""
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DistillError(
            f"row {row} of the data has no {column!r}"
            if value is None
            else f"row {row} of the data has the {column} {value!r}: give a class's number (0, 1, …) or a score"
        )
    return number


def normalised(sentence: str) -> str:
    """A sentence without case, punctuation and spaces, so that trivial and tokenised variants compare equal."""
    folded = unicodedata.normalize("NFKC", sentence).casefold()
    return re.sub(r"[\W_]+", "", folded)


def _without(examples: Examples, exclude: Iterable[str]) -> Examples:
    forbidden = {normalised(sentence) for sentence in exclude} - {""}
    if not forbidden:
        return examples
    longest = max(map(len, forbidden))
    kept = [
        place
        for place, texts in enumerate(zip(*examples.columns, strict=True))
        if not any(_holds(text, forbidden, longest) for text in texts)
    ]
    if not kept:
        raise DistillError(f"all {len(examples)} texts hold sentences that are excluded: give other data")
    return examples.take(kept, len(examples) - len(kept))


def _holds(text: str, forbidden: set[str], longest: int) -> bool:
    """Whether a text, or a run of its sentences and lines, is among those forbidden.

    :param longest: length of the longest of them.
    """
    if normalised(text) in forbidden:
        return True
    pieces = [normalised(part) for line in text.splitlines() for part in SENTENCE_END.split(line)]
    for start in range(len(pieces)):
        run = ""
        for piece in pieces[start:]:
            run += piece
            if len(run) > longest:
                break
            if run in forbidden:
                return True
    return False
