"""Where the data comes from: a local data root, else the Hugging Face Hub."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from fewfold.errors import TaskError
from fewfold.optional import require


class DataUnavailable(TaskError):
    """Data that is neither under the data root nor to be had from the Hub; the message says how to get it."""


class SentencePair(NamedTuple):
    """Two sentences and how alike people find them, 0 (unlike) … 5 (same)."""

    first: str
    second: str
    score: float


def data_root() -> Path | None:
    """Find the folder of local data: `FEWFOLD_DATA`, else `shared/data` beside the repository, else none.

    :return: An existing folder, or None.
    :raises DataUnavailable: If `FEWFOLD_DATA` names something that is not a folder.
    """
    named = os.environ.get("FEWFOLD_DATA")
    if named:
        root = Path(named).expanduser()
        if not root.is_dir():
            raise DataUnavailable(f"FEWFOLD_DATA={named} is not a folder: correct it or unset it")
        return root
    repository = Path(__file__).resolve().parents[3]
    for base in (repository, Path.cwd()):
        beside = base.parent / "shared" / "data"
        if beside.is_dir():
            return beside.resolve()
    return None


def lines(path: str | PathLike[str]) -> list[str]:
    """Read the lines of a text file, plain or packed (`.gz`, `.xz`), UTF-8, without their line ends.

    :param path: The file.
    :return: Its lines; spaces at either end stay.
    :raises TaskError: If a packed file cannot be unpacked.
    """
    path = Path(path)
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            return [line.rstrip("\r\n") for line in file]
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise TaskError(f"{path} is no {path.suffix} file, or is damaged: {error}") from error


def stsb(split: str = "dev") -> list[SentencePair]:
    """Read the semantic textual similarity benchmark (STS-B).

    :param split: "train" (5,749 pairs) or "dev" (1,500 pairs).
    :return: The pairs, in file order.
    :raises ValueError: If the split is another.
    :raises DataUnavailable: If it cannot be had.
    """
    hub_split = one_of(split, {"train": "train", "dev": "validation"})
    file = local_file(f"glue/stsb/{split}.tsv.gz")
    if file is not None:
        # Sentences hold bare quotation marks, so a CSV reader would join lines: split at tabs alone.
        columns = (line.split("\t") for line in lines(file))
        return [SentencePair(row[5], row[6], float(row[4])) for row in columns]
    rows = from_hub("nyu-mll/glue", "stsb", hub_split)
    return [SentencePair(row["sentence1"], row["sentence2"], float(row["label"])) for row in rows]


def distinct_sentences(pairs: list[SentencePair]) -> list[str]:
    """List every sentence of the pairs once, in order of first appearance.

    :param pairs: The pairs.
    :return: Distinct sentences.
    """
    return list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))


def wikitext2(split: str = "valid") -> list[str]:
    """Read WikiText-2, the tokenised version with `<unk>`.

    :param split: "train", "valid" or "test".
    :return: Its lines as they stand, empty ones and the spaces at their ends included.
    :raises ValueError: If the split is another.
    :raises DataUnavailable: If it cannot be had.
    """
    hub_split = one_of(split, {"train": "train", "valid": "validation", "test": "test"})
    file = local_file(f"wikitext-2/{split}.txt.gz")
    if file is not None:
        return lines(file)
    rows = from_hub("Salesforce/wikitext", "wikitext-2-v1", hub_split)
    return [row["text"].rstrip("\n") for row in rows]


def calibration_texts(name: str = "mixed-512") -> list[str]:
    """Read a fixed calibration text, a text a line; results name the one they used.

    :param name: "mixed-512" (Wikipedia, novels, film reviews, captions) or "wiki-512".
    :return: The texts, none empty.
    :raises DataUnavailable: If the data root has no such file.
    """
    file = local_file(f"calibration/{name}.txt")
    if file is None:
        raise DataUnavailable(
            f"calibration/{name}.txt is not under the data root ({data_root()}): set FEWFOLD_DATA to the "
            "folder that has it, or calibrate on fewfold.tasks.pydoc_text.pydoc_sentences()"
        )
    return [line for line in lines(file) if line.strip()]


def one_of(split: str, names: dict[str, str]) -> str:
    """Look a split up.

    :param split: Its name.
    :param names: Names on the Hub by the names used here.
    :return: The name on the Hub.
    :raises ValueError: If there is no such split.
    """
    if split not in names:
        raise ValueError(f"split {split!r}: choose one of {', '.join(names)}")
    return names[split]


def local_file(*names: str) -> Path | None:
    """Find a file under the data root.

    :param names: Names relative to the root, the first that is there wins.
    :return: The file, or None where the root has none of them.
    """
    root = data_root()
    files = [root / name for name in names] if root is not None else []
    return next((file for file in files if file.is_file()), None)


def from_hub(repository: str, config: str | None, split: str) -> Any:
    """Load one split of a data set from the Hub or its cache.

    :param repository: Its official name.
    :param config: The part of it, None where it has only one.
    :param split: The split's name there.
    :return: Rows, each a mapping.
    :raises DataUnavailable: If it cannot be had.
    """
    try:
        return require("datasets").load_dataset(repository, config, split=split)
    except Exception as error:
        raise DataUnavailable(
            f"{repository} ({config or 'whole'}, {split}) cannot be had: set FEWFOLD_DATA to a folder that has it, "
            'or pip install "fewfold[tasks]" and let datasets fetch it from the Hub. '
            f"{type(error).__name__}: {error}"
        ) from error
