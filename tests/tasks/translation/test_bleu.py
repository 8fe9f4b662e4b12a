"""BLEU against a hand-made value, a naive computation, and sacrebleu's own corpora."""

import math
from collections import Counter

import numpy as np
import pytest
import sacrebleu

from fewfold import TaskError
from fewfold.tasks.translation.bleu import bleu, bleu_of, sentence_statistics

HYPOTHESES = [
    "the cat sat on the mat",
    "a dog runs",
    "no match here at all",
    "two men are walking in the old park today",
]
REFERENCES = ["the cat sat on a mat", "a small dog runs fast", "etwas ganz anderes", "two men walk in the old park"]


def naive_bleu(hypotheses, references):
    """Clipped precisions of words, smoothed by halving, and the brevity penalty (plain words, no punctuation)."""
    logs, halved = 0.0, 1.0
    for order in range(1, 5):
        matched = total = 0
        for text, other in zip(hypotheses, references, strict=True):
            grams, wanted = (
                Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
                for words in (text.split(), other.split())
            )
            matched += sum(min(count, wanted[gram]) for gram, count in grams.items())
            total += sum(grams.values())
        if matched == 0:
            halved /= 2
        logs += math.log((matched or halved) / total) / 4
    words, wanted = (sum(len(text.split()) for text in side) for side in (hypotheses, references))
    return 100 * math.exp(logs + min(0.0, 1 - wanted / words))


def test_by_hand():
    found = bleu(HYPOTHESES[:1], REFERENCES[:1], resamples=5)
    assert found.score.value == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert bleu(REFERENCES, REFERENCES).score.value == pytest.approx(100)


@pytest.mark.parametrize("rows", [slice(0, 4), slice(0, 2), slice(1, 2), slice(1, 4)])
def test_against_a_naive_computation_and_sacrebleu(rows):
    hypotheses, references = HYPOTHESES[rows], REFERENCES[rows]
    if sum(len(text.split()) > 3 for text in hypotheses):
        assert bleu(hypotheses, references).score.value == pytest.approx(naive_bleu(hypotheses, references))
    metric = sacrebleu.BLEU(effective_order=True)
    summed = sentence_statistics(metric, hypotheses, references).sum(axis=0, keepdims=True)
    assert bleu_of(summed)[0] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)


def test_the_interval_is_that_of_resampled_corpora():
    hypotheses, references = HYPOTHESES * 6, REFERENCES * 6
    found = bleu(hypotheses, references, resamples=40, seed=3)
    rng = np.random.default_rng(3)
    scores = []
    for _ in range(40):
        picks = rng.integers(24, size=24)
        scores.append(sacrebleu.corpus_bleu([hypotheses[i] for i in picks], [[references[i] for i in picks]]).score)
    assert (found.score.low, found.score.high) == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])))
    assert found.score.low < found.score.value < found.score.high


def test_case_and_signature():
    upper = [text.upper() for text in REFERENCES]
    assert bleu(upper, REFERENCES).score.value < 1
    found = bleu(upper, REFERENCES, lowercase=True)
    assert found.score.value == pytest.approx(100)
    assert "case:lc" in found.signature
    assert "case:mixed" in bleu(upper, REFERENCES).signature
    assert bleu(["", "a dog"], ["a b", "a dog"]).length_ratio == pytest.approx(2 / 4)


def test_lists_that_do_not_fit():
    for hypotheses in ([], ["a"]):
        with pytest.raises(TaskError, match="one for each"):
            bleu(hypotheses, ["a", "b"] if hypotheses else [])
