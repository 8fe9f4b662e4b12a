"""Parallel text: sentences and their translations, out of the data root, the Hub, or two files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from fewfold.errors import TaskError
from fewfold.tasks.data import from_hub, lines, local_file, one_of

HUB = "bentrevett/multi30k"
LANGUAGES = ("en", "de")


@dataclass(frozen=True)
class Corpus:
    """Sentences and their translations, in file order.

    :param sources: One sentence each, as long a list as `targets`.
    :param targets: Their translations.
    :param languages: Of the sources and of the targets.
    :param source: Where they come from, for records.
    """

    sources: list[str]
    targets: list[str]
    languages: tuple[str, str]
    source: str

    def __len__(self) -> int:
        return len(self.sources)

    def first(self, count: int | None) -> Corpus:
        """Keep the first so many pairs; None keeps all."""
        return Corpus(self.sources[:count], self.targets[:count], self.languages, self.source)


def read_corpus(source_language: str = "en", target_language: str = "de", split: str = "train") -> Corpus:
    """Read Multi30k: captions in English and German (Elliott et al. 2016).

    :param source_language: "en" or "de".
    :param target_language: The other one.
    :param split: "train" (29,000 pairs), "val" (1,014) or "test_2016_flickr" (1,000).
    :return: The pairs, raw and cased.
    :raises ValueError: If the split is another.
    :raises TaskError: If the languages are others, or the two sides do not fit together.
    :raises DataUnavailable: If it cannot be had.
    """
    if {source_language, target_language} != set(LANGUAGES):
        raise TaskError(f"Multi30k from {source_language!r} to {target_language!r}: choose en to de, or de to en")
    hub_split = one_of(split, {"train": "train", "val": "validation", "test_2016_flickr": "test"})
    languages = (source_language, target_language)
    files = [local_file(f"multi30k/{split}.{language}.gz", f"multi30k/{split}.{language}") for language in languages]
    if files[0] is not None and files[1] is not None:
        return _checked(lines(files[0]), lines(files[1]), languages, f"multi30k/{split}")
    rows = list(from_hub(HUB, None, hub_split))
    sides = [[row[language] for row in rows] for language in languages]
    return _checked(sides[0], sides[1], languages, f"{HUB}, {hub_split}")


def read_files(
    source_file: str | PathLike[str], target_file: str | PathLike[str], languages: tuple[str, str] = ("src", "tgt")
) -> Corpus:
    """Read parallel text out of two files, a sentence a line.

    :param source_file: Plain, `.gz` or `.xz`, UTF-8.
    :param target_file: As many lines.
    :param languages: For records.
    :return: The pairs.
    :raises TaskError: If the files differ in length, are empty, or are no UTF-8 text.
    :raises OSError: If a file cannot be read.
    """
    sides = []
    for file in (Path(source_file), Path(target_file)):
        try:
            sides.append(lines(file.expanduser()))
        except UnicodeDecodeError as error:
            raise TaskError(f"{file} is no UTF-8 text: {error}") from error
    return _checked(sides[0], sides[1], languages, f"{Path(source_file).name}, {Path(target_file).name}")


def _checked(sources: Sequence[str], targets: Sequence[str], languages: tuple[str, str], source: str) -> Corpus:
    """Whitespace at either end goes, and pairs that are empty on both sides; what cannot be mended is refused."""
    if len(sources) != len(targets):
        raise TaskError(f"{source}: {len(sources):,} sentences and {len(targets):,} translations; give one for each")
    stripped = [(first.strip(), second.strip()) for first, second in zip(sources, targets, strict=True)]
    for place, (first, second) in enumerate(stripped, start=1):
        if bool(first) != bool(second):
            raise TaskError(f"{source}, line {place}: the {languages[bool(first)]} side is empty: fill it or drop both")
    kept = [pair for pair in stripped if pair[0]]
    if not kept:
        raise TaskError(f"{source} holds no sentence")
    return Corpus([first for first, _ in kept], [second for _, second in kept], languages, source)
