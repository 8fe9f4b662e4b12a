"""Real English that every Python brings along: the prose of its own reference manual."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence


def pydoc_sentences() -> list[str]:
    """Collect clean sentences from `pydoc_data.topics`, the manual behind Python's `help()`.

    Headings, code, grammar and tables are left out, markup is stripped, and a sentence has 5…60 words. They
    need no download, and differ a little between versions of Python.

    :return: Distinct sentences, sorted by topic and then in reading order: always the same for one Python.
    :raises ImportError: If this Python was built without its documentation.
    """
    from pydoc_data.topics import topics

    found: dict[str, str] = {}
    for _, text in sorted(topics.items()):
        for paragraph in _paragraphs(text):
            for sentence in _sentences(paragraph):
                found.setdefault(sentence.casefold(), sentence)
    return list(found.values())


def calibration_and_held_out(sentences: Sequence[str], held_out: float = 0.25) -> tuple[list[str], list[str]]:
    """Split sentences in two that share none, by a checksum of each: adding a sentence moves no other.

    :param sentences: Any texts.
    :param held_out: Share of them to hold out, about; 0…1.
    :return: The texts to calibrate on and the texts held out, each in the order given.
    :raises ValueError: If the share is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: give a share between 0 and 1")
    kept: list[str] = []
    held: list[str] = []
    for sentence in sentences:
        share = zlib.crc32(sentence.casefold().encode()) / 2**32
        (held if share < held_out else kept).append(sentence)
    return kept, held


_BULLET = re.compile(r"^(\*|-|\d+\.|#\.) +")
_RULE = re.compile(r"^[*=~^+|\-\s]+$")
_VERSION = re.compile(r"^(New|Changed|Added|Deprecated)( since| in)? version [\d.]+(, [^:]*)?: *")
_STRAY = re.compile(r"[_{}\[\]<>=|\\#@^~`/%$&+…]|\w\(|--|::|\.\w+\.|\*")
_ENDS = re.compile(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\betc\.)(?<!\bvs\.)\s+(?=[A-Z])")


def _paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs as one line each, without headings, tables and grammar.

    Indented ones come too: descriptions of classes and methods are indented like code, and code does not
    read as sentences.
    """
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.strip().split("\n")]
        if any(_RULE.match(line) for line in lines) or "::=" in block or ">>>" in block:
            continue
        yield " ".join([_BULLET.sub("", lines[0]), *lines[1:]])


def _sentences(paragraph: str) -> Iterator[str]:
    """Yield the clean sentences of a paragraph."""
    text = _VERSION.sub("", paragraph)
    text = re.sub(r"\[[^\]]{1,12}\]", "", text)
    text = re.sub(r"\*\*?(\S|\S[^*]*?\S)\*\*?", r"\1", text)
    text = re.sub(r'"([^"\s]+)"', r"\1", text)
    text = text.translate(str.maketrans("’‘“”", "''\"\"")).replace('"', "")
    text = re.sub(r"\s+", " ", text).strip()
    for sentence in _ENDS.split(text):
        if _is_clean(sentence):
            yield sentence


def _is_clean(sentence: str) -> bool:
    """Say whether a sentence reads as English: whole, long enough, and without code in it."""
    words = sentence.split()
    letters = sum(character.isalpha() or character == " " for character in sentence)
    return (
        5 <= len(words) <= 60
        and sentence[0].isupper()
        and sentence[-1] in ".!?"
        and sentence.count("(") == sentence.count(")")
        and letters >= 0.9 * len(sentence)
        and not _STRAY.search(sentence)
    )
