"""The official metrics of GLUE, by scikit-learn and scipy, each with its bootstrap interval over examples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewfold.errors import TaskError
from fewfold.optional import require
from fewfold.tasks.interval import confusion_interval, correlation_interval

METRICS = ("accuracy", "f1", "mcc", "pearson", "spearman")


@dataclass(frozen=True)
class Score:
    """A metric's value and its 95 % bootstrap interval over the examples."""

    value: float
    low: float
    high: float


def metric(name: str, labels: ArrayLike, predictions: ArrayLike) -> float:
    """Compute one metric.

    Accuracy; F1 of class 1; Matthews' correlation (0 where one class is all there is); Pearson's and Spearman's
    correlation (0 where all numbers are the same, which ranks nothing).

    :param name: One of `METRICS`.
    :param labels: True classes or scores, `(n,)`.
    :param predictions: Predicted classes or scores, `(n,)`.
    :return: The metric: 0…1, correlations -1…1.
    :raises TaskError: If the metric is unknown, or the lists are empty or differ in length.
    :raises ImportError: If scikit-learn or scipy is missing.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if len(labels) != len(predictions) or not len(labels):
        raise TaskError(f"{name}: {len(labels)} labels and {len(predictions)} predictions; give one of each an example")
    if name not in METRICS:
        raise TaskError(f"no metric {name!r}: choose from {', '.join(METRICS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant numbers and single classes, which are answered as said above
        if name in ("pearson", "spearman"):
            stats = require("scipy.stats")
            correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
            value = float(correlation(labels, predictions).statistic) if len(labels) > 1 else math.nan
            return 0.0 if math.isnan(value) else value
        learn = require("sklearn.metrics")
        if name == "accuracy":
            return float(learn.accuracy_score(labels, predictions))
        if name == "f1":
            return float(learn.f1_score(labels, predictions, zero_division=0.0))
        return float(learn.matthews_corrcoef(labels, predictions))


def scores(
    names: Sequence[str], labels: ArrayLike, predictions: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict[str, Score]:
    """Compute metrics with their intervals.

    :param names: Some of `METRICS`.
    :param labels: True classes or scores, `(n,)`.
    :param predictions: Predicted classes or scores, `(n,)`.
    :param resamples: Bootstrap resamples of the examples.
    :param seed: Seed of the resampling.
    :return: By name; where no interval can be drawn (constant numbers) it is the value itself.
    :raises TaskError: As `metric`.
    """
    found = {}
    for name in names:
        value = metric(name, labels, predictions)
        if name in ("pearson", "spearman"):
            low, high = correlation_interval(labels, predictions, resamples, seed, ranks=name == "spearman")
        else:
            low, high = confusion_interval(_OF_CONFUSION[name], labels, predictions, resamples, seed)
        found[name] = Score(value, value if math.isnan(low) else low, value if math.isnan(high) else high)
    return found


def _accuracy(confusion: NDArray) -> NDArray:
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum(axis=(-2, -1))


def _f1(confusion: NDArray) -> NDArray:
    found, wanted = confusion[..., :, 1].sum(axis=-1), confusion[..., 1, :].sum(axis=-1)
    return 2 * confusion[..., 1, 1] / np.maximum(found + wanted, 1)


def _mcc(confusion: NDArray) -> NDArray:
    wanted, found = confusion.sum(axis=-1), confusion.sum(axis=-2)
    count = confusion.sum(axis=(-2, -1))
    common = count * np.trace(confusion, axis1=-2, axis2=-1) - (wanted * found).sum(axis=-1)
    spread = (count**2 - (wanted**2).sum(axis=-1)) * (count**2 - (found**2).sum(axis=-1)).astype(float)
    return np.where(spread > 0, common / np.sqrt(np.maximum(spread, 1)), 0.0)


_OF_CONFUSION = {"accuracy": _accuracy, "f1": _f1, "mcc": _mcc}  # for intervals: thousands at once
