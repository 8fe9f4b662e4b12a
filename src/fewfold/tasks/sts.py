"""Semantic textual similarity: do cosines of sentence vectors rank pairs as people do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from fewfold.measure.fidelity import sentence_embeddings
from fewfold.optional import require
from fewfold.tasks.data import SentencePair, distinct_sentences
from fewfold.tasks.interval import correlation_interval, row_correlation


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
    return float(row_correlation(rank(a)[None], rank(b)[None])[0])


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
    low, high = correlation_interval(cosines, scores, resamples, seed, ranks=True)
    return StsScore(spearman(cosines, scores), low, high)
