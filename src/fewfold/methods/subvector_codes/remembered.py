"""Codebooks of large tables, remembered on disk: an interrupted fit goes on where it stopped."""

from __future__ import annotations

import hashlib
import os

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewfold.calibration.cache import cache_folder
from fewfold.linalg.kmeans import kmeans

LARGE = 2**19  # numbers in all points, from which on k-means takes longer than looking up
VERSION = "1"


def remembered_kmeans(points: Tensor, words: int, weights: Tensor | None = None, seed: int = 0) -> Tensor:
    """As :func:`kmeans`; what is large is kept in the cache's folder under a hash of all that it depends on.

    :param points: ``(count, width)``.
    :return: ``(words, width)`` fp32.
    """
    if points.numel() < LARGE:
        return kmeans(points, words, weights, seed=seed)
    digest = hashlib.blake2b(f"{VERSION} {words} {seed} {tuple(points.shape)}".encode(), digest_size=16)
    for tensor in (points, weights):
        if tensor is not None:
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    path = cache_folder().parent / "words" / f"{digest.hexdigest()}.safetensors"
    if path.exists():
        try:
            found = load_file(path).get("words")
        except (SafetensorError, OSError):
            found = None
        if found is not None and tuple(found.shape) == (words, points.shape[1]):
            return found
    found = kmeans(points, words, weights, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({"words": found}, partial)
    partial.replace(path)
    return found
