"""BLEU by sacrebleu, with its signature and a bootstrap interval over sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewfold.errors import TaskError
from fewfold.optional import require
from fewfold.tasks.metrics import Score

ORDERS = 4


@dataclass(frozen=True)
class Bleu:
    """Corpus BLEU, 0…100, with its interval and how it was computed.

    :param score: Value and 95 % bootstrap interval over sentences.
    :param signature: sacrebleu's: casing, tokenization, smoothing, version.
    :param length_ratio: Words of the translations over words of the references.
    """

    score: Score
    signature: str
    length_ratio: float


def bleu(
    translations: Sequence[str],
    references: Sequence[str | Sequence[str]],
    lowercase: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Bleu:
    """Score detokenized translations against their references (Papineni et al. 2002; Post 2018).

    :param translations: Plain text.
    :param references: Plain text, as many; of each translation one, or several.
    :param lowercase: Compare lower-cased text.
    :param resamples: Bootstrap resamples of the sentences.
    :param seed: Seed of the resampling.
    :return: The score.
    :raises TaskError: If the lists are empty or differ in length.
    :raises ImportError: If sacrebleu is missing.
    """
    if len(translations) != len(references) or not translations:
        raise TaskError(f"BLEU: {len(translations)} translations and {len(references)} references; give one for each")
    metrics = require("sacrebleu.metrics")
    metric = metrics.BLEU(lowercase=lowercase)
    several = [_listed(given) for given in references]
    streams = [[given[i] if i < len(given) else None for given in several] for i in range(max(map(len, several)))]
    whole = metric.corpus_score(list(translations), streams)
    by_sentence = metrics.BLEU(lowercase=lowercase, effective_order=True)  # the same counts, no warnings
    statistics = sentence_statistics(by_sentence, translations, several)
    rng, count = np.random.default_rng(seed), len(translations)
    drawn = np.stack([statistics[rng.integers(count, size=count)].sum(axis=0) for _ in range(resamples)])
    low, high = np.percentile(bleu_of(drawn), [2.5, 97.5])
    ratio = whole.sys_len / max(whole.ref_len, 1)
    return Bleu(Score(float(whole.score), float(low), float(high)), str(metric.get_signature()), ratio)


def sentence_statistics(metric: Any, translations: Sequence[str], references: Sequence[str | Sequence[str]]) -> NDArray:
    """Count what BLEU is made of, sentence by sentence.

    :param metric: sacrebleu's BLEU.
    :param translations: Plain text.
    :param references: Plain text, of each translation at least one.
    :return: `(sentences, 10)`: matched and all n-grams of orders 1…4, words of the translation and of the reference.
    """
    scores = (metric.sentence_score(text, _listed(other)) for text, other in zip(translations, references, strict=True))
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores], dtype=float)


def _listed(given: str | Sequence[str]) -> list[str]:
    """References of one translation."""
    return [given] if isinstance(given, str) else list(given)


def bleu_of(statistics: NDArray) -> NDArray:
    """Compute BLEU of many corpora at once.

    :param statistics: Sums over sentences, `(corpora, 10)`, as `sentence_statistics` orders them.
    :return: `(corpora,)`, 0…100; orders without a match are smoothed as sacrebleu does by default (halving).
    """
    matched, total = statistics[:, :ORDERS], statistics[:, ORDERS : 2 * ORDERS]
    words, reference = statistics[:, -2], statistics[:, -1]
    halvings = np.cumsum(matched == 0, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(matched > 0, matched, 0.5**halvings) / total
        brevity = np.where(words < reference, np.exp(1 - reference / words), 1.0)
        value = 100 * brevity * np.exp(np.log(precision).mean(axis=1))
    return np.where((total > 0).all(axis=1) & (matched[:, 0] > 0), value, 0.0)
