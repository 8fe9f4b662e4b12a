"""Running text as one stream of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from fewfold.errors import TaskError
from fewfold.progress import track
from fewfold.tasks.data import lines

_LINES = 2000  # handed to the tokenizer at a time


@dataclass(frozen=True)
class Text:
    """A text in tokens.

    :param name: What records call it.
    :param ids: ``(tokens,)``, int64; every line ends with the tokenizer's end-of-text token.
    :param words: Words, split at white space, and one for each line's end.
    :param unknown: Tokens that stand for words which the vocabulary lacks.
    """

    name: str
    ids: np.ndarray[Any, Any]
    words: int
    unknown: int = 0


def read_text(path: str | PathLike[str]) -> list[str]:
    """Read the lines of a text, plain or packed (`.gz`, `.xz`), empty ones too.

    :param path: The file.
    :return: Its lines.
    :raises TaskError: If there is no such file, it is no UTF-8 text, or it holds no word.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise TaskError(f"{path}: no such file; give a text file (.txt, also packed as .gz or .xz)")
    try:
        found = lines(path)
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is no UTF-8 text: {error}") from error
    if not any(line.strip() for line in found):
        raise TaskError(f"{path} is empty: give a file with text")
    return found


def line_end(tokenizer: Any) -> int:
    """Find the token that ends a line and stands before a text: end of text, or else the separator.

    :raises TaskError: If the tokenizer has neither.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise TaskError(f"{type(tokenizer).__name__} has no token for a line's end: set its eos_token")
    return int(end)


def unknown_word(tokenizer: Any) -> int | None:
    """Find the token of words that a vocabulary lacks; None without one, or where it is the line's end (as GPT-2's)."""
    unknown = tokenizer.unk_token_id
    return None if unknown is None or unknown == line_end(tokenizer) else int(unknown)


def encode(tokenizer: Any, text: Sequence[str], name: str = "text") -> Text:
    """Turn lines into one stream of tokens.

    :param tokenizer: Any tokenizer with an end-of-text (or separator) token.
    :param text: Lines.
    :param name: What records and errors call it.
    :return: The stream.
    :raises TaskError: If the tokenizer has no such token, or no id for a word; or if there is nothing to encode.
    """
    end = line_end(tokenizer)
    parts = []
    for start in track(range(0, len(text), _LINES), f"tokenising {name}"):
        for found in _ids(tokenizer, list(text[start : start + _LINES]), name):
            parts.append(np.array([*found, end], dtype=np.int64))
    if not parts:
        raise TaskError(f"{name} is empty: give a text")
    ids = np.concatenate(parts)
    missing = unknown_word(tokenizer)
    unknown = 0 if missing is None else int((ids == missing).sum())
    return Text(name, ids, sum(len(line.split()) + 1 for line in text), unknown)


def _ids(tokenizer: Any, text: list[str], name: str) -> list[list[int]]:
    """The tokens of some lines, special ones not added."""
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    try:
        return list(tokenizer(text, verbose=False, **options)["input_ids"])
    except Exception as error:
        # The tokenizers package raises a bare Exception where a word has no id and no <unk> stands for it.
        if tokenizer.unk_token_id is not None:
            raise
        known = tokenizer.get_vocab()
        missing = next((word for line in text for word in line.split() if word not in known), "?")
        raise TaskError(
            f"{name}: the vocabulary has no {missing!r} and no <unk> to stand for it: build the vocabulary from this "
            f"text too, or take a tokenizer with <unk> ({error})"
        ) from error
