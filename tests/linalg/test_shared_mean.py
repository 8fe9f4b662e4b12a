"""One weight for several layers, with and without differences, against numpy's own minimisers."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fewfold.linalg.shared_mean import difference_spectra, mean_weight, shared_with_differences

OUT, IN = 7, 5


def _layers(count, seed=0, shape=(OUT, IN)):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=shape)
    return [torch.from_numpy(common + 0.7 * rng.normal(size=shape)) for _ in range(count)]


def _moments(count, seed=1, rank=20):
    rng = np.random.default_rng(seed)
    inputs = [rng.normal(size=(rank, IN)) * rng.uniform(0.2, 3, size=IN) for _ in range(count)]
    return [torch.from_numpy(rows.T @ rows / rank) for rows in inputs]


def _error(weights, fitted, moments):
    total = 0.0
    for number, weight in enumerate(weights):
        gap = (weight - fitted[number]).numpy()
        metric = np.eye(gap.shape[1]) if moments is None else moments[number].numpy()
        total += float(np.trace(gap @ metric @ gap.T))
    return total


def test_the_mean_of_one_layer_is_that_layer():
    (weight,) = _layers(1)
    torch.testing.assert_close(mean_weight([weight]), weight)
    torch.testing.assert_close(mean_weight([weight], _moments(1)), weight)


def test_with_equal_moments_it_is_the_plain_mean():
    weights, (moment,) = _layers(4), _moments(1)
    plain = torch.from_numpy(np.mean([weight.numpy() for weight in weights], axis=0))
    torch.testing.assert_close(mean_weight(weights), plain)
    torch.testing.assert_close(mean_weight(weights, [moment] * 4), plain)


def test_the_weighted_mean_is_the_least_squares_solution():
    """All layers' whitened equations stacked and given to numpy."""
    weights, moments = _layers(3), _moments(3)
    roots = [np.linalg.cholesky(moment.numpy()) for moment in moments]
    left = np.concatenate([root.T for root in roots])
    right = np.concatenate([root.T @ weight.numpy().T for root, weight in zip(roots, weights, strict=True)])
    wanted = np.linalg.lstsq(left, right, rcond=None)[0].T
    torch.testing.assert_close(mean_weight(weights, moments, damping=1e-12), torch.from_numpy(wanted))
    best = _error(weights, [torch.from_numpy(wanted)] * 3, moments)
    assert best < _error(weights, [mean_weight(weights)] * 3, moments)


def test_a_layer_that_counts_twice_is_there_twice():
    weights, moments = _layers(3), _moments(3)
    twice = mean_weight([*weights, weights[1]], [*moments, moments[1]], 1e-12)
    torch.testing.assert_close(mean_weight(weights, moments, 1e-12, [1.0, 2.0, 1.0]), twice)
    torch.testing.assert_close(
        mean_weight(weights, counts=[1.0, 2.0, 1.0]), (weights[0] + 2 * weights[1] + weights[2]) / 4
    )
    for counts in ([1.0, 2.0], [1.0, 0.0, 1.0]):
        with pytest.raises(ValueError, match="positive count each"):
            mean_weight(weights, moments, counts=counts)


def test_inputs_that_no_layer_saw_get_the_plain_mean():
    weights, moments = _layers(3), _moments(3)
    for moment in moments:
        moment[2], moment[:, 2] = 0, 0
    found, plain = mean_weight(weights, moments), mean_weight(weights)
    torch.testing.assert_close(found[:, 2], plain[:, 2])
    assert not torch.allclose(found, plain, rtol=1e-3)
    torch.testing.assert_close(mean_weight(weights, [torch.zeros(IN, IN)] * 3), plain)


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_error_is_what_is_left_and_never_rises(calibrated):
    weights, moments = _layers(4), _moments(4) if calibrated else None
    found = shared_with_differences(weights, [2, 1, 0, 3], moments, sweeps=30, tolerance=0.0, damping=1e-12)
    fitted = [found.shared + left @ right for left, right in found.differences]
    assert found.errors[-1] == pytest.approx(_error(weights, fitted, moments), rel=1e-6)
    assert all(after <= before for before, after in pairwise(found.errors))
    assert found.errors[-1] < 0.95 * found.errors[0]
    assert [left.shape[1] for left, _ in found.differences] == [2, 1, 0, 3]


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_first_error_is_the_tail_of_the_singular_values(calibrated):
    """Differences to a plain start, against numpy's SVD in the whitened space."""
    weights, moments = _layers(3), _moments(3) if calibrated else None
    start = weights[1]
    found = shared_with_differences(weights, 2, moments, start=start, sweeps=0, damping=1e-12)
    wanted = 0.0
    for number, weight in enumerate(weights):
        root = np.eye(IN) if moments is None else np.linalg.cholesky(moments[number].numpy())
        wanted += float((np.linalg.svd((weight - start).numpy() @ root, compute_uv=False)[2:] ** 2).sum())
    assert found.errors == [pytest.approx(wanted, rel=1e-6)]
    torch.testing.assert_close(found.shared, start)


@pytest.mark.parametrize("shape", [(OUT, IN), (IN, OUT)])
def test_full_rank_gives_every_layer_back(shape):
    weights = _layers(3, shape=shape)
    found = shared_with_differences(weights, IN, start=torch.zeros(shape), sweeps=2)
    for weight, (left, right) in zip(weights, found.differences, strict=True):
        torch.testing.assert_close(found.shared + left @ right, weight)
    assert found.errors[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("calibrated", [False, True])
def test_rank_zero_is_the_mean(calibrated):
    weights, moments = _layers(3), _moments(3) if calibrated else None
    found = shared_with_differences(weights, 0, moments, start=torch.zeros(OUT, IN), sweeps=1)
    torch.testing.assert_close(found.shared, mean_weight(weights, moments))
    assert found.errors[1] < found.errors[0]


def test_errors_fall_with_the_rank():
    weights, moments = _layers(3), _moments(3)
    errors = [shared_with_differences(weights, rank, moments).errors[-1] for rank in range(IN + 1)]
    assert all(after < before for before, after in pairwise(errors))


def test_spectra_tell_the_error_at_every_rank():
    weights, moments, shared = _layers(2), _moments(2), _layers(1, seed=5)[0]
    for weight, moment, spectrum in zip(
        weights, moments, difference_spectra(weights, shared, moments, damping=1e-12), strict=True
    ):
        for rank in range(1, IN + 1):
            left = _error([weight], [shared + spectrum.truncate(rank).dense()], [moment])
            assert float(spectrum.errors()[rank]) == pytest.approx(left, rel=1e-6, abs=1e-9)


def test_two_layers_split_their_difference():
    """Without moments, differences of rank r on both sides reach what one of rank 2 r does, and half of the rest."""
    weights = _layers(2, shape=(12, 9))
    values = np.linalg.svd((weights[0] - weights[1]).numpy(), compute_uv=False)
    found = shared_with_differences(weights, 2, sweeps=60, tolerance=0.0)
    assert found.errors[0] == pytest.approx((values[2:] ** 2).sum() / 2)
    assert found.errors[-1] == pytest.approx((values[4:] ** 2).sum() / 2, rel=1e-4)


def test_it_stops_where_sweeps_no_longer_help():
    weights = _layers(3)
    assert len(shared_with_differences(weights, 1, sweeps=200, tolerance=0.05).errors) < 20
    assert len(shared_with_differences(weights, 1, sweeps=3, tolerance=0.0).errors) == 4


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"weights": []}, "at least one"),
        ({"moments": _moments(2)}, "2 moments"),
        ({"weights": [*_layers(2), torch.ones(OUT, 4)]}, r"weight 2 is \(7, 4\)"),
        ({"ranks": [1, 2]}, "ranks="),
        ({"ranks": 6}, "0…5"),
        ({"ranks": -1}, "0…5"),
        ({"sweeps": -1}, "sweeps=-1"),
        ({"damping": 0.0}, "damping=0.0"),
        ({"start": torch.ones(2, 2)}, r"shared weight is \(2, 2\)"),
        ({"weights": [*_layers(2), torch.full((OUT, IN), torch.nan)]}, "NaN"),
    ],
)
def test_bad_input_is_refused(arguments, word):
    given = {"weights": _layers(3), "ranks": 1, **arguments}
    with pytest.raises(ValueError, match=word):
        shared_with_differences(**given)
