"""Interpolated Kneser-Ney n-grams with three discounts an order: the baseline that a neural model has to beat.

Chen and Goodman 1998 (An Empirical Study of Smoothing Techniques for Language Modeling, section 3), counted with numpy:
an n-gram is a number, made of the number of the n-gram before its last word and of that word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewfold.errors import TaskError
from fewfold.progress import track

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Order:
    """All n-grams of one order that occur.

    :param keys: sorted, ``(count,)``: number of the n-gram without its last word, times the vocabulary, plus that word.
    :param mass: ``(count,)``: discounted count over the context's total.
    :param left: ``(contexts,)``: what discounting leaves to the shorter context; 1 where the context was never seen.
    """

    keys: Array
    mass: Array
    left: Array

    def find(self, keys: Array) -> Array:
        """The numbers of n-grams, −1 where one never occurred."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)


class KneserNey:
    """A fitted model: ``p(w | context)`` of orders 1…n, interpolated down to the uniform distribution.

    The text is one stream: contexts reach over line ends, as the state of a recurrent model does, and before its first
    word stand line ends.

    :param ids: tokens of the training text, ``(tokens,)``.
    :param vocab_size: number of words; those that never occur share what the unigrams leave over.
    :param boundary: token that stands before a text's first one (``<eos>``).
    :param order: the longest n-gram.
    :raises TaskError: if the text is empty, or a token is outside of the vocabulary.
    """

    def __init__(self, ids: Array, vocab_size: int, boundary: int, order: int = 5) -> None:
        if order < 1:
            raise TaskError(f"order={order}: n-grams have at least one word")
        self.vocab_size, self.boundary, self.order = vocab_size, boundary, order
        text = self._padded(ids)
        tables = _tables(text, vocab_size, order)
        self._orders = _smoothed(tables, order)

    def __len__(self) -> int:
        """How many n-grams of all orders are kept."""
        return sum(int(np.count_nonzero(order.mass)) for order in self._orders)

    def log_probabilities(self, ids: Array) -> Array:
        """Foretell each token of a text from those before it.

        :param ids: ``(tokens,)``.
        :return: natural logarithms, float64, ``(tokens,)``.
        :raises TaskError: as of the class.
        """
        text = self._padded(ids)
        before = np.zeros(len(text), dtype=np.int64)  # the number of the n-gram that ends here; 0 is the empty one
        found = np.full(len(text), 1.0 / self.vocab_size)
        for order in self._orders:
            context = np.concatenate([[0 if order is self._orders[0] else -1], before[:-1]])
            known = context >= 0
            at = np.where(known, context, 0)
            before = np.where(known, order.find(at * self.vocab_size + text), -1)
            mass = np.where(before >= 0, order.mass[np.maximum(before, 0)], 0.0)
            found = mass + np.where(known, order.left[at], 1.0) * found
        result: Array = np.log(found[self.order - 1 :])
        return result

    def distribution(self, context: Array) -> Array:
        """Probabilities of every word after a context.

        :param context: tokens, ``(tokens,)``; the last n−1 count.
        :return: float64, ``(vocab,)``.
        """
        last = self._padded(context)[-(self.order - 1) :] if self.order > 1 else np.zeros(0, dtype=np.int64)
        words = np.arange(self.vocab_size)
        found, before = np.full(self.vocab_size, 1.0 / self.vocab_size), 0
        for length, order in enumerate(self._orders):
            before = 0
            for place, shorter in enumerate(self._orders[:length]):
                token = last[len(last) - length + place]
                before = int(shorter.find(np.array([before * self.vocab_size + token]))[0])
                if before < 0:
                    return found
            places = order.find(before * self.vocab_size + words)
            found = np.where(places >= 0, order.mass[np.maximum(places, 0)], 0.0) + order.left[before] * found
        return found

    def perplexity(self, ids: Array) -> float:
        """Perplexity on a text, all of its tokens foretold, ``<eos>`` and ``<unk>`` among them."""
        return math.exp(-float(self.log_probabilities(ids).mean()))

    def _padded(self, ids: Array) -> Array:
        ids = np.asarray(ids, dtype=np.int64)
        if not len(ids):
            raise TaskError("there is no token to count or foretell: give a longer text")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            raise TaskError(
                f"tokens {int(ids.min())}…{int(ids.max())} do not fit a vocabulary of {self.vocab_size}: encode the "
                "text with this vocabulary's tokenizer"
            )
        return np.concatenate([np.full(self.order - 1, self.boundary, dtype=np.int64), ids])


@dataclass
class _Table:
    """One order's n-grams: sorted keys, occurrences, number of the context and of the n-gram less its first word."""

    keys: Array
    counts: Array
    context: Array
    shorter: Array


def _tables(text: Array, vocab_size: int, order: int) -> list[_Table]:
    """Number all n-grams; only those that end behind the padding are counted."""
    tables: list[_Table] = []
    before = np.zeros(len(text), dtype=np.int64)
    for length in track(range(1, order + 1), "counting n-grams"):
        start = length - 1  # the first place where an n-gram of this length ends
        context = before[:-1] if start else before
        keys, first, numbers = np.unique(context * vocab_size + text[start:], return_index=True, return_inverse=True)
        counts = np.bincount(numbers[order - length :], minlength=len(keys))
        shorter = before[1:][first] if start else np.zeros(len(keys), dtype=np.int64)
        tables.append(_Table(keys, counts, keys // vocab_size, shorter))
        before = numbers.astype(np.int64)
    return tables


def _smoothed(tables: list[_Table], order: int) -> list[_Order]:
    """Discount counts; below the highest order an n-gram counts once for every word seen before it."""
    orders = []
    for length, table in enumerate(tables, 1):
        counts = table.counts
        if length < order:
            longer = tables[length]
            counts = np.bincount(longer.shorter[longer.counts > 0], minlength=len(table.keys))
        cut = discounts(counts)[np.minimum(counts, 3)]
        contexts = len(tables[length - 2].keys) if length > 1 else 1
        total = np.bincount(table.context, weights=counts, minlength=contexts)
        taken = np.bincount(table.context, weights=cut, minlength=contexts)
        seen = total > 0
        left = np.divide(taken, total, out=np.ones(contexts), where=seen)
        mass = (counts - cut) / np.where(seen, total, 1.0)[table.context]
        orders.append(_Order(table.keys, mass, left))
    return orders


def discounts(counts: Array) -> Array:
    """What is taken from counts of 0, 1, 2 and of 3 or more (Chen and Goodman, equation 26).

    :param counts: of all n-grams of one order.
    :return: ``(4,)``; where a text is too small to tell, 0.5, 1 and 1.5.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)
    found = np.array([0.0, 0.5, 1.0, 1.5])
    if n[1] and n[2]:
        y = n[1] / (n[1] + 2 * n[2])
        for k in (1, 2, 3):
            value = k - (k + 1) * y * n[k + 1] / n[k] if n[k] and n[k + 1] else found[k]
            found[k] = value if 0 < value <= k else found[k]
    return found
