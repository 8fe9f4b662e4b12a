"""Kneser-Ney against a plain implementation with dictionaries."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from fewfold import TaskError
from fewfold.lm.kneser_ney import KneserNey, discounts

VOCABULARY, BOUNDARY = 12, 1


def text(length, seed=0):
    """Words that follow one another by chance, the low ones more often; the last word never occurs."""
    generator = np.random.default_rng(seed)
    ids, word = [], 0
    for _ in range(length):
        step = int(generator.integers(1, 4)) if generator.random() < 0.7 else int(generator.integers(0, 11))
        word = (word * step + step) % (VOCABULARY - 1)
        ids.append(word)
    return np.array(ids)


class Naive:
    """Chen and Goodman's recursion, word by word."""

    def __init__(self, ids, order):
        self.order = order
        padded = (BOUNDARY,) * (order - 1) + tuple(int(i) for i in ids)
        ends = range(order - 1, len(padded))
        grams = {n: Counter(padded[e - n + 1 : e + 1] for e in ends) for n in range(1, order + 1)}
        self.counts = {order: dict(grams[order])}
        for n in range(1, order):
            before = defaultdict(set)
            for gram in grams[n + 1]:
                before[gram[1:]].add(gram[0])
            self.counts[n] = {gram: len(words) for gram, words in before.items()}

    def cut(self, n, count):
        often = Counter(self.counts[n].values())
        if not often[1] or not often[2]:
            return (0, 0.5, 1.0, 1.5)[min(count, 3)]
        k = min(count, 3)
        y = often[1] / (often[1] + 2 * often[2])
        following = often[k + 1] if k < 4 else 0
        if not often[k] or not following:
            return (0, 0.5, 1.0, 1.5)[k]
        value = k - (k + 1) * y * following / often[k]
        return value if 0 < value <= k else (0, 0.5, 1.0, 1.5)[k]

    def p(self, word, context):
        if len(context) >= self.order:
            context = context[len(context) - self.order + 1 :]
        lower = self.p(word, context[1:]) if context else 1 / VOCABULARY
        n = len(context) + 1
        follow = {gram[-1]: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        if not follow:
            return lower
        total = sum(follow.values())
        count = follow.get(word, 0)
        taken = sum(self.cut(n, c) for c in follow.values())
        return ((count - self.cut(n, count)) if count else 0) / total + taken / total * lower


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_agrees_with_dictionaries(order):
    learned, judged = text(600), text(60, seed=1)
    model, naive = KneserNey(learned, VOCABULARY, BOUNDARY, order), Naive(learned, order)
    padded = (BOUNDARY,) * (order - 1) + tuple(int(i) for i in judged)
    expected = [
        math.log(naive.p(padded[e], padded[e - order + 1 : e])) for e in range(order - 1, len(padded))
    ]  # fmt: skip
    np.testing.assert_allclose(model.log_probabilities(judged), expected, atol=1e-12)
    assert model.perplexity(judged) == pytest.approx(math.exp(-np.mean(expected)), rel=1e-12)


@pytest.mark.parametrize("context", [[], [3], [0, 0, 0, 0, 0, 0], [11, 2], [2, 11], [1, 4, 9, 2, 7]])
def test_probabilities_sum_to_one(context):
    model, naive = KneserNey(text(600), VOCABULARY, BOUNDARY, 4), Naive(text(600), 4)
    found = model.distribution(np.array([1, *context]))
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert found.min() > 0
    expected = [naive.p(word, (BOUNDARY, BOUNDARY, BOUNDARY, 1, *context)) for word in range(VOCABULARY)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_discounts_of_chen_and_goodman():
    counts = np.repeat([1, 2, 3, 4, 7], [60, 20, 10, 6, 9])
    y = 60 / (60 + 40)
    expected = [0, 1 - 2 * y * 20 / 60, 2 - 3 * y * 10 / 20, 3 - 4 * y * 6 / 10]
    np.testing.assert_allclose(discounts(counts), expected)
    np.testing.assert_allclose(discounts(np.array([1, 1])), [0, 0.5, 1, 1.5])


def test_longer_contexts_help_where_they_tell():
    cycle = np.array([0, 2, 0, 3, 0, 4] * 60)
    values = [KneserNey(cycle, VOCABULARY, BOUNDARY, order).perplexity(cycle) for order in (1, 2, 3)]
    assert values[0] > 1.5 * values[1] > 1.5 * values[2]


def test_ids_outside_of_the_vocabulary_are_named():
    with pytest.raises(TaskError, match=r"tokens 0…12 do not fit a vocabulary of 12"):
        KneserNey(np.array([0, 12]), VOCABULARY, BOUNDARY)
    model = KneserNey(text(100), VOCABULARY, BOUNDARY)
    with pytest.raises(TaskError, match="longer text"):
        model.perplexity(np.array([], dtype=np.int64))
