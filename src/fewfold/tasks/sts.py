"""Semantic textual similarity: do cosines of sentence vectors rank pairs as people do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fewfold.measure.fidelity import sentence_embeddings
from fewfold.optional import require
from fewfold.tasks.data import SentencePair, distinct_sentences


@dataclass(frozen=True)
class StsScore:
    """Spearman's rank correlation with people's scores, and its 95 % bootstrap interval over the pairs."""

    spearman: float
    low: float
    high: float


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Correlate the ranks of two lists, ties at their mean rank.

    :param a: Numbers, `(n,)`.
    :param b: Numbers, `(n,)`.
    :return: Spearman's correlation, -1…1; NaN if either list is constant.
    :raises ImportError: If scipy is missing.
    """
    rank = require("scipy.stats").rankdata
    return float(_correlation(rank(a)[None], rank(b)[None])[0])


def sts_score(
    model: nn.Module, tokenizer: Any, pairs: Sequence[SentencePair], resamples: int = 1000, seed: int = 0
) -> StsScore:
    """Score a model on pairs of sentences: mean-pooled vectors, cosine, Spearman's correlation.

    :param model: A transformers model.
    :param tokenizer: Its tokenizer.
    :param pairs: The pairs.
    :param resamples: Bootstrap resamples of the pairs.
    :param seed: Seed of the resampling.
    :return: The score and its interval.
    :raises ImportError: If scipy is missing.
    """
    texts = distinct_sentences(list(pairs))
    return score_embeddings(sentence_embeddings(model, tokenizer, texts), texts, pairs, resamples, seed)


def score_embeddings(
    embeddings: Tensor,
    texts: Sequence[str],
    pairs: Sequence[SentencePair],
    resamples: int = 1000,
    seed: int = 0,
) -> StsScore:
    """Score sentence vectors that were computed elsewhere.

    :param embeddings: L2-normalised, `(texts, dim)`.
    :param texts: The texts they stand for, each sentence of the pairs among them.
    :param pairs: The pairs.
    :param resamples: Bootstrap resamples of the pairs.
    :param seed: Seed of the resampling.
    :return: The score and its interval.
    :raises ImportError: If scipy is missing.
    """
    place = {text: index for index, text in enumerate(texts)}
    first = embeddings[[place[pair.first] for pair in pairs]]
    second = embeddings[[place[pair.second] for pair in pairs]]
    cosines = (first * second).sum(dim=1).double().numpy()
    scores = np.array([pair.score for pair in pairs])
    low, high = _interval(cosines, scores, resamples, seed)
    return StsScore(spearman(cosines, scores), low, high)


def _interval(a: NDArray, b: NDArray, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of Spearman's correlation over resampled pairs."""
    rank = require("scipy.stats").rankdata
    picks = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    low, high = np.nanpercentile(_correlation(rank(a[picks], axis=1), rank(b[picks], axis=1)), [2.5, 97.5])
    return float(low), float(high)


def _correlation(a: NDArray, b: NDArray) -> NDArray:
    """Return Pearson's correlation of each row, `(rows, n)` to `(rows,)`."""
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
