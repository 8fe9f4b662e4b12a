"""Read what the user distils on: texts, or rows with texts and labels; and keep evaluation sentences out."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Examples:
    """Texts to learn on.

    :param texts: one an example.
    :param pairs: the second text of every example, or None.
    :param labels: class numbers or scores, or None.
    :param excluded: how many examples were left out because they hold an evaluation sentence.
    """

    texts: list[str]
    pairs: list[str] | None = None
    labels: list[float] | None = None
    excluded: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: Sequence[int], excluded: int = 0) -> Examples:
        """Some of the examples."""
        return Examples(
            [self.texts[place] for place in places],
            None if self.pairs is None else [self.pairs[place] for place in places],
            None if self.labels is None else [self.labels[place] for place in places],
            excluded,
        )


def read_examples(data: Any, needs_labels: bool, exclude: Iterable[str] = ()) -> Examples:
    """Examples from a list of texts, of dictionaries, of named tuples, or a datasets.Dataset.

    :param needs_labels: whether a loss asks for labels.
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
    rows = [row._asdict() if hasattr(row, "_asdict") else row for row in data]
    if not rows:
        raise DistillError("data is empty: pass texts like those that the model will see")
    if all(isinstance(row, str) for row in rows):
        examples = Examples([row for row in rows if row.strip()])
    elif all(isinstance(row, Mapping) for row in rows):
        examples = _columns(rows)
    else:
        kinds = sorted({type(row).__name__ for row in rows})
        raise DistillError(f"data holds {', '.join(kinds)}; pass texts, or rows as dictionaries")
    if not len(examples):
        raise DistillError("every text of the data is blank")
    if needs_labels and examples.labels is None:
        raise DistillError(f"a loss asks for labels, and the data has no column {' or '.join(LABEL_COLUMNS)}")
    return _without(examples, exclude)


def _columns(rows: Sequence[Mapping[str, Any]]) -> Examples:
    names = set(rows[0])
    columns = next((known for known in TEXT_COLUMNS if set(known) <= names), None)
    if columns is None:
        known = ", ".join("+".join(column) for column in TEXT_COLUMNS)
        raise DistillError(f"data has the columns {', '.join(sorted(names))}; name the text's one of {known}")
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    wanted = [*columns, *([label] if label else [])]
    for number, row in enumerate(rows):
        missing = [name for name in wanted if row.get(name) is None]
        if missing:
            raise DistillError(f"row {number} of the data has no {missing[0]!r}")
    return Examples(
        [str(row[columns[0]]) for row in rows],
        [str(row[columns[1]]) for row in rows] if len(columns) == 2 else None,
        [float(row[label]) for row in rows] if label else None,
    )


def normalised(sentence: str) -> str:
    """A sentence without case, punctuation and extra spaces, so that trivial variants compare equal."""
    folded = unicodedata.normalize("NFKC", sentence).casefold()
    return " ".join(re.sub(r"[^\w\s]", "", folded).split())


def _without(examples: Examples, exclude: Iterable[str]) -> Examples:
    forbidden = {normalised(sentence) for sentence in exclude} - {""}
    if not forbidden:
        return examples
    kept = [
        place
        for place, texts in enumerate(zip(examples.texts, examples.pairs or examples.texts, strict=True))
        if not any(_holds(text, forbidden) for text in texts)
    ]
    if not kept:
        raise DistillError(f"all {len(examples)} texts hold sentences that are excluded: give other data")
    return examples.take(kept, len(examples) - len(kept))


def _holds(text: str, forbidden: set[str]) -> bool:
    """Whether a text, or one of its sentences, is among those forbidden."""
    if normalised(text) in forbidden:
        return True
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return len(sentences) > 1 and any(normalised(sentence) in forbidden for sentence in sentences)
