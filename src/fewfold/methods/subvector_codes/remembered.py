"""What takes long in coding a large table, remembered on disk: an interrupted fit goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewfold.calibration.cache import cache_folder, kept_if_possible
from fewfold.linalg.kmeans import kmeans
from fewfold.linalg.subvectors import Coded

LARGE = 2**19  # numbers in all points, from which on k-means takes longer than looking up
VERSION = "2"


def remembered_kmeans(points: Tensor, words: int, weights: Tensor | None = None, seed: int = 0) -> Tensor:
    """As :func:`kmeans`; what is large is kept in the cache's folder under a hash of all that it depends on.

    :param points: ``(count, width)``.
    :return: ``(words, width)`` fp32.
    """
    if points.numel() < LARGE:
        return kmeans(points, words, weights, seed=seed)
    file = _file("words", f"{words} {seed}", [points] if weights is None else [points, weights])
    found = _read(file).get("words")
    if found is None or tuple(found.shape) != (words, points.shape[1]):
        found = kmeans(points, words, weights, seed=seed)
        _write(file, {"words": found})
    return found


class RememberedCodes:
    """Codes of groups of columns, kept until the fit of the whole table is done."""

    def __init__(self) -> None:
        self.files: list[Path] = []

    def __call__(self, settings: str, inputs: Sequence[Tensor], make: Callable[[], Coded]) -> Coded:
        """Codes from the disk, or made now and kept there.

        :param settings: all that the codes depend on besides ``inputs``.
        """
        file = _file("codes", settings, inputs)
        self.files.append(file)
        found = _read(file)
        if found:
            count = sum(name.startswith("codes_") for name in found)
            codes = [found[f"codes_{number}"] for number in range(count)]
            books = [found[f"books_{number}"] for number in range(count)]
            return Coded(codes, books, found["partial"].tolist(), None, found.get("order"))
        coded = make()
        tensors = {"partial": torch.tensor(coded.partial)}
        tensors |= {f"codes_{number}": codes for number, codes in enumerate(coded.codes)}
        tensors |= {f"books_{number}": books.contiguous() for number, books in enumerate(coded.books)}
        _write(file, tensors if coded.order is None else {**tensors, "order": coded.order})
        return coded

    def forget(self) -> None:
        """Remove what was kept: the table is done."""
        for file in self.files:
            file.unlink(missing_ok=True)


def _file(kind: str, settings: str, inputs: Sequence[Tensor]) -> Path:
    """Where a result is kept."""
    digest = hashlib.blake2b(f"{VERSION} {settings}".encode(), digest_size=16)
    for tensor in inputs:
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return cache_folder().parent / kind / f"{digest.hexdigest()}.safetensors"


def _read(file: Path) -> dict[str, Tensor]:
    """What is kept there; empty where nothing is, or nothing that can be read."""
    try:
        return load_file(file) if file.exists() else {}
    except (SafetensorError, OSError):
        return {}


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Whole or not at all."""
    partial = file.with_suffix(f".{os.getpid()}.partial")
    with kept_if_possible(partial):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial)
        partial.replace(file)
