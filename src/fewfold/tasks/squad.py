"""SQuAD v1.1: questions on Wikipedia paragraphs, answered by spans of them (Rajpurkar et al. 2016)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from fewfold.errors import TaskError
from fewfold.tasks.data import from_hub, lines, local_file


class Question(NamedTuple):
    """A question, its paragraph, and the answers that people gave.

    :param answers: Spans of the paragraph; one in the training split.
    :param starts: Where they begin, in characters.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


class SquadSplit(NamedTuple):
    """The questions of a split and where they were read: a file's path under the data root or a name on the Hub."""

    questions: list[Question]
    source: str


def read_squad(split: str) -> SquadSplit:
    """Read a split of SQuAD v1.1: from the data root (`squad/dev-v1.1.json`, also packed), else from the Hub.

    :param split: "train" (87,599 questions) or "dev" (10,570).
    :return: The questions in file order, and their source.
    :raises DataUnavailable: If they are nowhere to be had.
    :raises TaskError: If the file is of another format, a question has no answer or an answer is not in its paragraph.
    """
    hub_split = {"train": "train", "dev": "validation"}.get(split)
    if hub_split is None:
        raise TaskError(f"squad has no split {split!r}: choose one of train, dev")
    file = local_file(*(f"squad/{split}-v1.1.json{packing}" for packing in ("", ".gz", ".xz")))
    if file is None:
        source = f"rajpurkar/squad {split}"
        rows = from_hub("rajpurkar/squad", None, hub_split)
        found: Iterator[Question] = (
            _question(row, row["answers"]["text"], row["answers"]["answer_start"], source) for row in rows
        )
    else:
        source = f"{file.parent.name}/{file.name}"
        found = _from_json("\n".join(lines(file)), source)
    try:
        questions = list(found)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise TaskError(
            f"{source} is not in the format of SQuAD v1.1 ({type(error).__name__}: {error}): "
            "data, paragraphs, qas, answers, answer_start, text"
        ) from error
    if not questions:
        raise TaskError(f"{source} holds no question")
    return SquadSplit(questions, source)


def _from_json(text: str, source: str) -> Iterator[Question]:
    for article in json.loads(text)["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                texts = [answer["text"] for answer in asked["answers"]]
                starts = [answer["answer_start"] for answer in asked["answers"]]
                yield _question({**asked, "context": paragraph["context"]}, texts, starts, source)


def _question(row: dict[str, Any], texts: list[str], starts: list[int], source: str) -> Question:
    if not texts:
        raise TaskError(f"{source}: question {row['id']} has no answer, as in SQuAD v2; give the files of v1.1")
    for text, start in zip(texts, starts, strict=True):
        if not text or row["context"][start : start + len(text)] != text:
            raise TaskError(
                f"{source}: question {row['id']} has the answer {text!r} at {start}, where its paragraph says "
                f"{row['context'][max(0, start) : start + len(text)]!r}"
            )
    return Question(str(row["id"]), row["question"], row["context"], tuple(texts), tuple(starts))
