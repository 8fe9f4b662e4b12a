"""Shared bases against numpy: whitened SVD, discarded singular values, coefficients by least squares."""

import numpy as np
import pytest
import torch

from fewfold.linalg.low_rank import calibrated_spectrum
from fewfold.linalg.shared_basis import published_rank, refitted, shared_basis
from fewfold.linalg.shared_mean import mean_weight
from fewfold.linalg.spectra import damped

WIDTH, PRIVATES = 6, (5, 4, 7)


def _random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _weights(side, seed=0):
    weights = [_random(size, WIDTH, seed=seed + number) for number, size in enumerate(PRIVATES)]
    return weights if side == "in" else [weight.T for weight in weights]


def _metrics(sizes, seed):
    rows = [_random(40, size, seed=seed + number) * torch.linspace(0.3, 2, size) for number, size in enumerate(sizes)]
    return [part.T @ part / 40 for part in rows]


def _given(side, calibrated):
    """Moments of the inputs and metrics of the outputs of the three weights; which of them are used."""
    shared, own = _metrics([WIDTH] * 3, 10), _metrics(PRIVATES, 20)
    moments, metrics = (shared, own) if side == "in" else (own, shared)
    return {
        "nothing": (None, None), "inputs": (moments, None), "outputs": (None, metrics), "both": (moments, metrics),
    }[calibrated]  # fmt: skip


def _approximations(basis, coefficients, side):
    return [own @ basis if side == "in" else basis.T @ own for own in coefficients]


def _error(weights, found, moments, metrics, side):
    """In float64 numpy, the shared side through the pooled metric."""
    total = 0.0
    for number, weight in enumerate(weights):
        gap = (weight - found[number]).numpy()
        inputs = np.eye(gap.shape[1]) if moments is None else moments[number].numpy()
        outputs = np.eye(gap.shape[0]) if metrics is None else damped(metrics[number], 0.01).numpy()
        if side == "in" and moments is not None:
            inputs = np.mean([moment.numpy() for moment in moments], axis=0)
        if side == "out" and metrics is not None:
            outputs = np.mean([damped(metric, 0.01).numpy() for metric in metrics], axis=0)
        total += float(np.trace(outputs @ gap @ inputs @ gap.T))
    return total


@pytest.mark.parametrize("calibrated", ["nothing", "inputs", "outputs", "both"])
@pytest.mark.parametrize("side", ["in", "out"])
def test_the_error_is_the_sum_of_the_discarded_squared_singular_values(side, calibrated):
    """Those of the weights next to each other, each whitened on both of its sides (numpy's SVD)."""
    weights, (moments, metrics) = _weights(side), _given(side, calibrated)
    spectrum = shared_basis(weights, moments, metrics, side)

    def root(metrics, number, shared, damping):
        if metrics is None:
            return np.eye(weights[number].shape[1 if metrics is moments else 0])
        full = [metric.numpy() if not damping else damped(metric, damping).numpy() for metric in metrics]
        return np.linalg.cholesky(np.mean(full, axis=0) if shared else full[number])

    parts = []
    for number, weight in enumerate(weights):
        left = np.eye(weight.shape[0]) if metrics is None else root(metrics, number, side == "out", 0.01)
        right = np.eye(weight.shape[1]) if moments is None else root(moments, number, side == "in", 0)
        whitened = left.T @ weight.numpy() @ right
        parts.append(whitened if side == "in" else whitened.T)
    values = np.linalg.svd(np.concatenate(parts), compute_uv=False)
    for rank in (1, 3, 5):
        measured = _error(weights, _approximations(*spectrum.truncate(rank), side), moments, metrics, side)
        assert measured == pytest.approx((values[rank:] ** 2).sum(), rel=1e-6)
        assert float(spectrum.errors()[rank]) == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("calibrated", ["nothing", "inputs", "both"])
@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_one_weight_alone_is_whitened_svd(shape, side, calibrated):
    weight = _random(*shape)
    moment = None if calibrated == "nothing" else _metrics([shape[1]], 3)
    metric = _metrics([shape[0]], 4) if calibrated == "both" else None
    spectrum = shared_basis([weight], moment, metric, side)
    alone = calibrated_spectrum(weight, moment and moment[0], metric and metric[0])
    for rank in (1, 3, 5):
        (found,) = _approximations(*spectrum.truncate(rank), side)
        torch.testing.assert_close(found, alone.truncate(rank).dense(), rtol=1e-7, atol=1e-7)
        assert float(spectrum.errors()[rank]) == pytest.approx(float(alone.errors()[rank]), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("side", ["in", "out"])
def test_full_rank_loses_nothing(side):
    weights = _weights(side)
    for calibrated in ("nothing", "both"):
        spectrum = shared_basis(weights, *_given(side, calibrated), side)
        for weight, found in zip(weights, _approximations(*spectrum.truncate(WIDTH), side), strict=True):
            torch.testing.assert_close(found, weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_never_worse_than_one_tied_weight_of_the_same_rank(rank):
    """A weight W' of rank k for all layers is a basis with equal coefficients: feasible, so never better."""
    weights, moments = [_random(5, WIDTH, seed=n) for n in range(3)], _metrics([WIDTH] * 3, 10)
    pooled = sum(moments) / 3
    tied = calibrated_spectrum(mean_weight(weights, [pooled] * 3), pooled).truncate(rank).dense()
    of_tied = _error(weights, [tied] * 3, moments, None, "in")
    assert float(shared_basis(weights, moments).errors()[rank]) < of_tied
    same = shared_basis([tied] * 3, moments)
    assert float(same.errors()[rank]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("side", ["in", "out"])
def test_coefficients_by_least_squares(side):
    """A weight's own best coefficients for a basis, against numpy's lstsq in its own metric."""
    weight, basis, start = _random(5, WIDTH), _random(3, WIDTH, seed=1), _random(5, 3, seed=2)
    (metric,) = _metrics([WIDTH], 5)
    root = np.linalg.cholesky(metric.numpy())
    wanted = np.linalg.lstsq((basis.numpy() @ root).T, (weight.numpy() @ root).T, rcond=None)[0].T
    given = (weight, basis, start) if side == "in" else (weight.T, basis, start.T)
    found = refitted(*given, metric, side, damping=1e-12)
    np.testing.assert_allclose((found if side == "in" else found.T).numpy(), wanted, rtol=1e-6)


def test_refitting_lowers_each_weights_own_error():
    """The pooled optimum is not each weight's own."""
    weights, moments = _weights("in"), _metrics([WIDTH] * 3, 10)
    basis, coefficients = shared_basis(weights, moments).truncate(3)
    for weight, moment, own in zip(weights, moments, coefficients, strict=True):
        better = refitted(weight, basis, own, moment)

        def error(one, weight=weight, moment=moment):
            gap = weight - one @ basis
            return float(torch.trace(gap @ moment @ gap.T))

        assert error(better) < 0.999 * error(own)


def test_a_basis_without_energy_keeps_the_coefficients():
    start = _random(5, 3)
    torch.testing.assert_close(refitted(_random(5, 6), _random(3, 6), start, torch.zeros(6, 6)), start)


@pytest.mark.parametrize(
    ("shape", "count", "rank"),
    [
        ((4096, 4096), 1, 1638),
        ((4096, 4096), 2, 2184),
        ((4096, 4096), 4, 2621),
        ((4096, 11008), 1, 2388),
        ((4096, 11008), 2, 2762),
        ((4096, 11008), 4, 2997),
    ],
)
def test_published_ranks(shape, count, rank):
    """At 20% removed, ``(in, out)``."""
    width, private = shape[0], count * shape[1]
    assert published_rank(0.8, width, private) == rank
    assert rank * (width + private) <= 0.8 * width * private < (rank + 1) * (width + private)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"weights": []}, "at least one"),
        ({"moments": _metrics([WIDTH], 0)}, "1 moments"),
        ({"metrics": _metrics([5, 4], 0)}, "2 metrics"),
        ({"weights": [*_weights("in")[:2], torch.ones(5, 7)]}, "weight 2 has 7 inputs, the first 6"),
        ({"side": "out"}, "weight 1 has 4 outputs, the first 5"),
        ({"moments": _metrics([5, 5, 5], 0)}, "input_moment"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        shared_basis(**{"weights": _weights("in"), **arguments})
