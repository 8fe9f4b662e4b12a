"""The texts of a training in the tokens of one tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewfold.errors import TaskError
from fewfold.lm.texts import Text, encode, line_end
from fewfold.lm.vocabulary import UNKNOWN, build_vocabulary, unseen_words, word_tokenizer
from fewfold.progress import step


@dataclass(frozen=True)
class Corpus:
    """Texts in the tokens of one tokenizer.

    :param train: what is learned from.
    :param valid: what training is judged on, or None.
    :param test: what the finished model is judged on, or None.
    """

    tokenizer: Any
    train: Text
    valid: Text | None = None
    test: Text | None = None

    @property
    def boundary(self) -> int:
        """The token of a line's end, which also stands before a text."""
        return line_end(self.tokenizer)


def word_corpus(
    train: Sequence[str], valid: Sequence[str] | None = None, test: Sequence[str] | None = None, *,
    size: int | None = None, min_count: int = 1, names: tuple[str, str, str] = ("train", "valid", "test"),
) -> Corpus:  # fmt: skip
    """Build the vocabulary of a text, and encode it and its companions.

    :param train: Lines of the text that the vocabulary is of.
    :param valid: Lines of the text to judge training on.
    :param test: Lines of the text to judge the finished model on.
    :param size: The most words to keep.
    :param min_count: How often a word has to occur.
    :param names: What records and errors call the three.
    :return: All of it in tokens.
    :raises TaskError: If a text is empty, or has words that the vocabulary lacks while no `<unk>` occurs to learn from.
    """
    with step("building the vocabulary"):
        vocabulary = build_vocabulary(train, size, min_count)
        tokenizer = word_tokenizer(vocabulary)
    corpus = token_corpus(tokenizer, train, valid, test, names)
    for lines, text in ((valid, corpus.valid), (test, corpus.test)):
        missing = unseen_words(lines or (), vocabulary)
        if text is not None and missing and not corpus.train.unknown:
            shown = ", ".join(repr(word) for word, _ in missing[:3])
            raise TaskError(
                f"{text.name} has {len(missing)} words that {names[0]} lacks ({shown}, …), and {names[0]} has no "
                f"{UNKNOWN} to learn them from: cut rare words with min_count=2 (--min-count 2) or size (--vocab-size)"
            )
    return corpus


def token_corpus(
    tokenizer: Any, train: Sequence[str], valid: Sequence[str] | None = None, test: Sequence[str] | None = None,
    names: tuple[str, str, str] = ("train", "valid", "test"),
) -> Corpus:  # fmt: skip
    """Encode texts by any tokenizer; see `word_corpus`.

    :raises TaskError: If it has no token for a line's end, or none for a word.
    """
    texts = [
        encode(tokenizer, part, name) if part else None for part, name in zip((train, valid, test), names, strict=True)
    ]
    assert texts[0] is not None
    return Corpus(tokenizer, texts[0], texts[1], texts[2])
