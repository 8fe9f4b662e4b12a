"""Metrics against values computed by hand, and their intervals against a plain bootstrap."""

import math

import numpy as np
import pytest

from fewfold import TaskError
from fewfold.tasks.interval import confusion_interval, mean_interval
from fewfold.tasks.metrics import _OF_CONFUSION, metric, scores
from fewfold.tasks.squad_metrics import exact_match, normalize_answer, token_f1

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives
LABELS = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
PREDICTED = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_classes_by_hand():
    assert metric("accuracy", LABELS, PREDICTED) == pytest.approx(7 / 10)
    assert metric("f1", LABELS, PREDICTED) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert metric("mcc", LABELS, PREDICTED) == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))
    assert metric("mcc", LABELS, [1] * 10) == 0
    assert metric("f1", LABELS, [0] * 10) == 0
    assert metric("accuracy", [0, 1, 2], [0, 2, 2]) == pytest.approx(2 / 3)


def test_correlations_by_hand():
    # deviations (-2 0 2) and (-3 3 0): 6 / sqrt(8 * 18)
    assert metric("pearson", [1, 3, 5], [2, 8, 5]) == pytest.approx(6 / 12)
    assert metric("spearman", [1, 3, 5], [2, 8, 5]) == pytest.approx(0.5)
    assert metric("spearman", [1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert metric("pearson", [1, 2, 3], [4, 4, 4]) == 0
    assert metric("spearman", [1], [2]) == 0


@pytest.mark.parametrize("classes", [2, 3])
def test_resampled_metrics_equal_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    for _ in range(20):
        labels, predicted = rng.integers(0, classes, (2, 12))
        confusion = np.array(
            [[[np.sum((labels == a) & (predicted == b)) for b in range(classes)] for a in range(classes)]]
        )
        for name in ("accuracy", "mcc") if classes > 2 else ("accuracy", "f1", "mcc"):
            assert _OF_CONFUSION[name](confusion)[0] == pytest.approx(metric(name, labels, predicted))
    for name in ("f1", "mcc"):
        assert _OF_CONFUSION[name](np.array([[[7, 0], [0, 0]]]))[0] == metric(name, [0] * 7, [0] * 7) == 0


def test_bad_input():
    with pytest.raises(TaskError, match="2 labels and 3 predictions"):
        metric("accuracy", [0, 1], [0, 1, 1])
    with pytest.raises(TaskError, match="0 labels"):
        metric("f1", [], [])
    with pytest.raises(TaskError, match="choose from accuracy, f1"):
        metric("bleu", [1], [1])


@pytest.mark.parametrize("name", ["accuracy", "f1", "mcc", "pearson", "spearman"])
def test_intervals_agree_with_a_plain_bootstrap(name):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    predicted = np.where(rng.random(120) < 0.8, labels, 1 - labels)
    if name in ("pearson", "spearman"):
        labels, predicted = labels + rng.normal(size=120), predicted + rng.normal(size=120)
    found = scores([name], labels, predicted, resamples=250)[name]
    picks = np.random.default_rng(5).integers(120, size=(250, 120))
    low, high = np.percentile([metric(name, labels[p], predicted[p]) for p in picks], [2.5, 97.5])
    assert found.value == metric(name, labels, predicted)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05)
    assert found.high - found.low > 0.1


def test_mean_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(1).random(400)
    low, high = mean_interval(values, resamples=2000)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.006)


def test_constant_predictions_have_an_interval_too():
    assert scores(["pearson"], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])["pearson"].low == 0
    perfect = scores(["accuracy"], [1, 0], [1, 0])["accuracy"]
    assert (perfect.low, perfect.high) == (1, 1)
    assert confusion_interval(lambda confusion: confusion.sum(axis=(1, 2)), [0, 1, 1], [1, 1, 0]) == (3, 3)


def test_squad_normalization():
    assert normalize_answer("  The  U.S. Army's a-team, an\tApple ") == "us armys ateam apple"
    assert normalize_answer("Theatre and a") == "theatre and"
    assert normalize_answer("«Zürich» 1,000") == "«zürich» 1000"


def test_squad_scores_by_hand():
    answers = ["the Denver Broncos", "Broncos of Denver"]
    assert exact_match("Denver Broncos!", answers) == 1
    assert exact_match("Denver", answers) == 0
    # one of one word right, one of two found
    assert token_f1("Denver", ["the Denver Broncos"]) == pytest.approx(2 * 1 * 0.5 / 1.5)
    # two words in common of four and three
    assert token_f1("in Denver the Broncos won", ["Broncos of Denver"]) == pytest.approx(
        2 * 0.5 * (2 / 3) / (0.5 + 2 / 3)
    )
    # a word counts as often as both have it
    assert token_f1("no no no", ["no yes"]) == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert token_f1("", answers) == 0
    assert token_f1("Denver Broncos", answers) == 1
