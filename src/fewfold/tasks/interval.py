"""Bootstrap intervals over examples: the 2.5 and 97.5 percentiles of a metric over resampled examples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewfold.optional import require


def mean_interval(values: ArrayLike, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Bound the mean of one number an example.

    :param values: `(n,)`.
    :param resamples: Bootstrap resamples of the examples.
    :param seed: Seed of the resampling.
    :return: Low and high.
    """
    values, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return _bounds(np.array(means))


def confusion_interval(
    metric: Callable[[NDArray], NDArray],
    labels: ArrayLike,
    predictions: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bound a metric that depends only on how often each class was predicted for each class.

    Drawing n examples with replacement is one multinomial draw over the cells of the confusion matrix, so all
    resamples are computed at once, however many examples there are.

    :param metric: Of confusion matrices `(resamples, classes, classes)`, true classes first.
    :param labels: True classes, `(n,)`.
    :param predictions: Predicted classes, `(n,)`.
    :param resamples: Bootstrap resamples of the examples.
    :param seed: Seed of the resampling.
    :return: Low and high.
    """
    labels, predictions = np.asarray(labels, dtype=int), np.asarray(predictions, dtype=int)
    classes = 1 + max(labels.max(), predictions.max(), 1)
    cells = np.bincount(labels * classes + predictions, minlength=classes**2)
    draws = np.random.default_rng(seed).multinomial(len(labels), cells / len(labels), size=resamples)
    return _bounds(metric(draws.reshape(resamples, classes, classes)))


def correlation_interval(
    a: ArrayLike, b: ArrayLike, resamples: int = 1000, seed: int = 0, ranks: bool = False
) -> tuple[float, float]:
    """Bound a correlation.

    :param a: Numbers, `(n,)`.
    :param b: Numbers, `(n,)`.
    :param resamples: Bootstrap resamples of the pairs.
    :param seed: Seed of the resampling.
    :param ranks: Correlate ranks (Spearman) instead of values (Pearson).
    :return: Low and high; NaN if a list is constant in every resample.
    :raises ImportError: If ranks are asked for and scipy is missing.
    """
    a, b = np.asarray(a), np.asarray(b)
    picks = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    x, y = a[picks], b[picks]
    if ranks:
        rank = require("scipy.stats").rankdata
        x, y = rank(x, axis=1), rank(y, axis=1)
    return _bounds(row_correlation(x, y))


def row_correlation(a: NDArray, b: NDArray) -> NDArray:
    """Compute Pearson's correlation of each row, `(rows, n)` to `(rows,)`; NaN where a row is constant."""
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def _bounds(values: NDArray) -> tuple[float, float]:
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
