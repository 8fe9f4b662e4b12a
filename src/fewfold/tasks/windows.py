"""Long paragraphs in overlapping windows: a question with each, and where its answer lies in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewfold.errors import TaskError
from fewfold.progress import track
from fewfold.tasks.squad import Question

MAX_QUESTION = 64  # tokens; longer ones are cut, as in BERT


@dataclass(frozen=True)
class Window:
    """A question and a window of its paragraph.

    :param question: Place of the question in the list that was given.
    :param inputs: The model's inputs, lists of one number a token; not padded.
    :param offsets: Where each token stands in the paragraph, in characters; None where it is not of the paragraph.
    :param start: Token where the answer begins; the first token where the window does not hold all of it.
    :param end: Token where it ends, that token included.
    """

    question: int
    inputs: dict[str, list[int]]
    offsets: list[tuple[int, int] | None]
    start: int = 0
    end: int = 0


def windows(
    tokenizer: Any, questions: Sequence[Question], max_length: int = 384, stride: int = 128, with_answers: bool = False
) -> list[Window]:
    """Cut paragraphs into windows that the tokenizer joins with their questions.

    :param tokenizer: A fast tokenizer (it must know where tokens stand in the text).
    :param questions: The questions.
    :param max_length: Tokens a window, question and special tokens included.
    :param stride: Tokens that neighbouring windows of a paragraph have in common.
    :param with_answers: Find the first answer's tokens, to train on.
    :return: Windows, question after question, each paragraph from its beginning to its end.
    :raises TaskError: If the tokenizer is slow or the lengths leave no room for a paragraph.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TaskError(f"{type(tokenizer).__name__} does not tell where tokens stand: load a fast tokenizer")
    found: list[Window] = []
    for place, question in enumerate(track(questions, "cutting windows")):
        text = _cut_question(tokenizer, question.question.strip())
        used = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + tokenizer.num_special_tokens_to_add(True)
        if max_length - used <= stride:
            raise TaskError(
                f"max_length={max_length}, stride={stride}: question {question.id} takes {used} tokens and leaves "
                f"{max(0, max_length - used)} for its paragraph, which must be more than the stride"
            )
        encoded = tokenizer(
            text, question.context, truncation="only_second", max_length=max_length, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True, padding=False,
        )  # fmt: skip
        for part in range(len(encoded["input_ids"])):
            inputs = {name: encoded[name][part] for name in tokenizer.model_input_names if name in encoded}
            of_context = encoded.sequence_ids(part)
            offsets = [
                span if sequence == 1 else None
                for span, sequence in zip(encoded["offset_mapping"][part], of_context, strict=True)
            ]
            start, end = answer_tokens(offsets, question) if with_answers else (0, 0)
            found.append(Window(place, inputs, offsets, start, end))
    return found


def answer_tokens(offsets: Sequence[tuple[int, int] | None], question: Question) -> tuple[int, int]:
    """Find the tokens of the first answer.

    :param offsets: As in a `Window`.
    :param question: The question.
    :return: First and last token, both included; (0, 0) where the window does not hold all of the answer.
    """
    first = question.starts[0]
    last = first + len(question.answers[0]) - 1
    inside = [place for place, span in enumerate(offsets) if span and span[0] <= last and span[1] > first]
    if not inside:
        return 0, 0
    spans = [span for span in offsets if span]
    if spans[0][0] > first or spans[-1][1] <= last:
        return 0, 0
    return inside[0], inside[-1]


def _cut_question(tokenizer: Any, text: str) -> str:
    """A question of at most `MAX_QUESTION` tokens."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= MAX_QUESTION else text[: offsets[MAX_QUESTION - 1][1]]
