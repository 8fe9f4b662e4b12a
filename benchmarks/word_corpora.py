"""Two corpora of about two million words each, in words of their most frequent ones."""

from __future__ import annotations

import re

from fewfold.lm.corpus import Corpus, word_corpus
from fewfold.tasks.data import DataUnavailable, lines, local_file, wikitext2

CORPORA = {"wikitext-2": "WikiText-2", "novels": "A slice of novels"}
PARTS = ("train", "valid", "test")


def read(corpus: str, vocabulary: int, limit: int | None = None) -> Corpus:
    """Read a corpus by name.

    :param vocabulary: words to keep, `<unk>` and `<eos>` among them.
    :param limit: the first so many lines of each text; None for all.
    """
    texts = novels() if corpus == "novels" else tuple(wikitext2(split) for split in PARTS)
    names = tuple(f"{corpus} {part}" for part in PARTS)
    return word_corpus(*(text[:limit] for text in texts), size=vocabulary, names=names)


def novels() -> tuple[list[str], list[str], list[str]]:
    """Take a third of the novels to learn from and a sixtieth each to judge on.

    Blocks of 50 paragraphs alternate all through the corpus. Some novels are one line: it is cut every 200 words.
    """
    file = local_file("corpus/novels.txt.xz")
    if file is None:
        raise DataUnavailable("corpus/novels.txt.xz is not under the data root: set FEWFOLD_DATA to its folder")
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    pieces = [
        " ".join(words[start : start + 200])
        for words in (line.split() for line in lines(file))
        for start in range(0, len(words), 200)
    ]
    for number, line in enumerate(pieces):
        block = number // 50
        if block % 3 == 0:
            parts[0].append(_words(line))
        elif block % 60 in (1, 31):
            parts[1 if block % 60 == 1 else 2].append(_words(line))
    return parts


def _words(line: str) -> str:
    """Words and punctuation apart, in small letters."""
    return " ".join(re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", line.lower()))
