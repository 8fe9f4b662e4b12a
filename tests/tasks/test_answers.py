"""The n best answers against a search over all spans."""

import numpy as np
import pytest

from fewfold.tasks.answers import best_spans, n_best
from fewfold.tasks.windows import Window


@pytest.mark.parametrize("seed", range(4))
def test_best_spans_against_every_span(seed):
    rng = np.random.default_rng(seed)
    start, end, allowed = rng.normal(size=23), rng.normal(size=23), rng.random(23) < 0.7
    every = sorted(
        ((start[i] + end[j], i, j) for i in range(23) for j in range(i, min(23, i + 5)) if allowed[i] and allowed[j]),
        reverse=True,
    )
    found = best_spans(start, end, allowed, 7, 5)
    assert [span[1:] for span in found] == [span[1:] for span in every[:7]]
    assert [span[0] for span in found] == pytest.approx([span[0] for span in every[:7]])
    assert len(best_spans(start, end, allowed, 1000, 5)) == len(every)
    assert best_spans(start, end, np.zeros(23, dtype=bool), 7, 5) == []
    assert len(best_spans(start[:3], end[:3], np.ones(3, dtype=bool), 20, 30)) == 6


def test_windows_compete_and_texts_count_once():
    context = "rome oslo lima"
    spans = [(0, 4), (5, 9), (10, 14)]
    one = Window(0, {}, [None, spans[0], spans[1], None])
    two = Window(0, {}, [None, spans[1], spans[2], None])
    starts = [np.array([9.0, 1, 2, 9]), np.array([9.0, 4, 0, 9])]
    ends = [np.array([9.0, 0, 3, 9]), np.array([9.0, 2, 1, 9])]
    found = n_best(context, [one, two], starts, ends)
    assert [(answer.text, answer.score) for answer in found] == [
        ("oslo", 6.0), ("oslo lima", 5.0), ("rome oslo", 4.0), ("rome", 1.0), ("lima", 1.0),
    ]  # fmt: skip
    weights = np.exp([6.0, 5, 4, 1, 1])
    assert [answer.probability for answer in found] == pytest.approx(weights / weights.sum())
    assert [answer.text for answer in n_best(context, [one, two], starts, ends, count=2)] == ["oslo", "oslo lima"]
    assert [answer.text for answer in n_best(context, [one, two], starts, ends, longest=1)] == ["oslo", "rome", "lima"]


def test_no_token_to_answer_with():
    assert n_best("rome", [Window(0, {}, [None, None])], [np.zeros(2)], [np.zeros(2)]) == [("", 0.0, 1.0)]
