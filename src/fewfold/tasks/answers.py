"""From start and end logits to the n best answers of a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewfold.tasks.windows import Window


class Answer(NamedTuple):
    """A span of the paragraph.

    :param score: Its start's logit and its end's logit, added.
    :param probability: Softmax of the scores among the n best.
    """

    text: str
    score: float
    probability: float


def best_spans(
    start: NDArray, end: NDArray, allowed: NDArray, count: int, longest: int
) -> list[tuple[float, int, int]]:
    """Find the spans whose two logits add up to most: every span is weighed, not only the likeliest ends.

    :param start: Logits that a token begins the answer, `(tokens,)`.
    :param end: Logits that it ends it, `(tokens,)`.
    :param allowed: Whether a token may belong to an answer, `(tokens,)`.
    :param count: How many spans to find.
    :param longest: Tokens in an answer at most.
    :return: Score, first and last token, best first; fewer where there are fewer.
    """
    tokens, longest = len(start), min(longest, len(start))
    scores = np.full((tokens, longest), -np.inf)
    for more in range(longest):
        both = allowed[: tokens - more] & allowed[more:]
        scores[: tokens - more, more] = np.where(both, start[: tokens - more] + end[more:], -np.inf)
    flat = scores.ravel()
    order = np.argsort(-flat[best := np.argpartition(-flat, min(count, flat.size) - 1)[:count]], kind="stable")
    spans = ((float(flat[place]), int(place) // longest, int(place) % longest) for place in best[order])
    return [(score, first, first + more) for score, first, more in spans if np.isfinite(score)]


def n_best(
    context: str,
    windows: Sequence[Window],
    starts: Sequence[NDArray],
    ends: Sequence[NDArray],
    count: int = 20,
    longest: int = 30,
) -> list[Answer]:
    """Find the best answers of one question over all windows of its paragraph, each text once.

    :param context: The paragraph.
    :param windows: The question's windows.
    :param starts: Start logits of each window, `(tokens,)`.
    :param ends: End logits of each window, `(tokens,)`.
    :param count: How many answers to give at most.
    :param longest: Tokens in an answer at most.
    :return: Best first; a single empty answer if no window holds any of the paragraph.
    """
    best: dict[str, float] = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        allowed = np.array([span is not None for span in window.offsets])
        for score, first, last in best_spans(start, end, allowed, count, longest):
            text = context[window.offsets[first][0] : window.offsets[last][1]]  # type: ignore[index]
            best[text] = max(score, best.get(text, -np.inf))
    ranked = sorted(best.items(), key=lambda item: -item[1])[:count] or [("", 0.0)]
    weights = np.exp(np.array([score for _, score in ranked]) - ranked[0][1])
    return [
        Answer(text, score, float(weight))
        for (text, score), weight in zip(ranked, weights / weights.sum(), strict=True)
    ]
