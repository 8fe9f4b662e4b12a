"""CIDEr and CIDEr-D: how much a caption says what people say of an image (Vedantam et al., CVPR 2015).

Values are those of the COCO caption evaluation, ten times the paper's: 0…10.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewfold.errors import TaskError

ORDERS, SIGMA, SCALE = 4, 6.0, 10.0
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")

Gram = tuple[str, ...]


def normalized(text: str) -> str:
    """A caption in lower case without punctuation, words parted by one space: what is learned and compared."""
    return " ".join(_WORD.findall(text.lower()))


@dataclass(frozen=True)
class _Vector:
    """The n-grams of a caption, weighted by term frequency and inverse document frequency, order by order."""

    weights: tuple[dict[Gram, float], ...]
    norms: tuple[float, ...]
    words: int


class Cider:
    """The references of a set of images, with the document frequencies of their n-grams.

    :param references: captions of each image, as `normalized` gives them.
    :raises TaskError: without an image, or where one has no caption.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        if not references or not all(references):
            raise TaskError(f"CIDEr: {len(references)} images, each needs a reference caption: give at least one")
        counted = [[_counts(text) for text in captions] for captions in references]
        self._documents = Counter(gram for captions in counted for gram in set().union(*captions))
        self._log_images = math.log(len(references))
        self._references = [[self._vector(counts) for counts in captions] for captions in counted]

    def scores(self, captions: Sequence[str], strict: bool = True) -> NDArray:
        """Score one caption for each image.

        :param captions: As many as images, as `normalized` gives them.
        :param strict: CIDEr-D: repeated n-grams are clipped and other lengths penalised (Gaussian, σ = 6 words),
            equation 3 of the paper; else CIDEr, equation 2.
        :return: `(images,)`.
        :raises TaskError: If there are more or fewer captions than images.
        """
        if len(captions) != len(self._references):
            raise TaskError(f"CIDEr: {len(captions)} captions for {len(self._references)} images; give one for each")
        return np.array([self.score(text, image, strict) for image, text in enumerate(captions)])

    def score(self, caption: str, image: int, strict: bool = True) -> float:
        """Score one caption for one image."""
        vector, total = self._vector(_counts(caption)), 0.0
        for reference in self._references[image]:
            same = sum(_cosine(vector, reference, order, strict) for order in range(ORDERS)) / ORDERS
            gap = vector.words - reference.words
            total += same * (math.exp(-(gap**2) / (2 * SIGMA**2)) if strict else 1.0)
        return SCALE * total / len(self._references[image])

    def _vector(self, counts: Counter[Gram]) -> _Vector:
        weights: tuple[dict[Gram, float], ...] = tuple({} for _ in range(ORDERS))
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (self._log_images - math.log(max(1, self._documents[gram])))
        norms = tuple(math.sqrt(sum(value * value for value in part.values())) for part in weights)
        return _Vector(weights, norms, sum(count for gram, count in counts.items() if len(gram) == 1))


def _counts(text: str) -> Counter[Gram]:
    """How often each n-gram of 1 to 4 words occurs."""
    words = text.split()
    return Counter(
        tuple(words[start : start + order]) for order in range(1, ORDERS + 1) for start in range(len(words) - order + 1)
    )


def _cosine(found: _Vector, reference: _Vector, order: int, clip: bool) -> float:
    """Of one order; 0 where a side has no n-gram that tells images apart."""
    scale = found.norms[order] * reference.norms[order]
    if not scale:
        return 0.0
    there = reference.weights[order]
    product = sum(
        (min(value, there[gram]) if clip else value) * there[gram]
        for gram, value in found.weights[order].items()
        if gram in there
    )
    return product / scale
