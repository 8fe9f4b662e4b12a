"""Problems and independent measures for the tests of codes."""

import numpy as np
import torch

from fewfold.stored.stages import StageSpec

DAMPING = 0.1
LAYOUTS = {
    "shared": [StageSpec(4, 16, shared=True)],
    "by position": [StageSpec(4, 8)],
    "residual": [StageSpec(4, 8, shared=True), StageSpec(2, 6)],
    "cut": [StageSpec(5, 9, shared=True), StageSpec(7, 6)],
    "partial": [StageSpec(4, 8), StageSpec(3, 5, shared=True, rows=17)],
}


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def metric_of(columns, seed=2, rows=60):
    """Second moment of correlated inputs of unequal energy."""
    inputs = random(rows, columns, seed=seed) @ random(columns, columns, seed=seed + 1)
    inputs = inputs * torch.linspace(0.2, 2, columns) + 0.5
    return inputs.T @ inputs / rows


def weights_of(rows, seed=7):
    return torch.from_numpy(np.random.default_rng(seed).pareto(1.5, rows)).float() + 0.05


def used_metric(metric, columns, damping=DAMPING):
    if metric is None:
        return np.eye(columns)
    metric = metric.double().numpy()
    return metric + damping * np.trace(metric) / columns * np.eye(columns)


def assembled(coded, rows, columns):
    """The dense matrix, in float64, entry by entry."""
    total = np.zeros((rows, columns))
    for codes, books, partial in zip(coded.codes, coded.books, coded.partial, strict=True):
        width = books.shape[2]
        for number, words in enumerate(codes.tolist()):
            row = int(coded.order[number]) if partial else number
            for place, word in enumerate(words):
                pool = books[0 if len(books) == 1 else place].double().numpy()
                end = min(columns, (place + 1) * width)
                total[row, place * width : end] += pool[word][: end - place * width]
    return total if coded.scales is None else coded.scales.double().numpy()[:, None] * total


def error_of(matrix, dense, metric=None, weights=None, damping=DAMPING):
    """``Σ f (x − x')ᵀ C (x − x')``."""
    off = matrix.double().numpy() - dense
    weights = np.ones(len(off)) if weights is None else weights.double().numpy()
    return float(weights @ np.einsum("ri,ij,rj->r", off, used_metric(metric, off.shape[1], damping), off))
