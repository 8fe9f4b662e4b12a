import numpy as np
import pytest
import torch

from fewfold.linalg.low_rank import calibrated_spectrum
from fewfold.linalg.regression import reduced_rank_regression, ridge_solution

SHAPES = [(6, 10), (10, 6)]


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def setting(out, inputs, samples=400, noise=0.5):
    """A prior, inputs and wanted outputs that differ from the prior's, both centred, and their moments."""
    weight = random(out, inputs)
    seen = random(samples, inputs, seed=1) * torch.linspace(0.2, 2, inputs)
    wanted = seen @ (weight + 0.3 * random(out, inputs, seed=2)).T + noise * random(samples, out, seed=3)
    seen, wanted = seen - seen.mean(0), wanted - wanted.mean(0)
    return weight, seen, wanted


def moments(seen, wanted):
    return seen.T @ seen / len(seen), wanted.T @ seen / len(seen)


def loss(seen, wanted, factors, metric=None):
    residual = wanted - seen @ factors.dense().T
    return float(residual.square().sum() if metric is None else (residual @ metric * residual).sum())


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_full_rank_is_least_squares(out, inputs):
    weight, seen, wanted = setting(out, inputs)
    factors = reduced_rank_regression(*moments(seen, wanted), weight, damping=1e-9).truncate(6)
    expected = np.linalg.lstsq(seen.numpy(), wanted.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(factors.dense().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
@pytest.mark.parametrize("with_metric", [False, True])
def test_no_map_of_the_rank_is_better(out, inputs, with_metric):
    weight, seen, wanted = setting(out, inputs)
    metric = torch.diag(torch.linspace(0.5, 4, out).double()) if with_metric else None
    spectrum = reduced_rank_regression(*moments(seen, wanted), weight, metric, damping=1e-9)
    factors = spectrum.truncate(3)
    # the metric is damped by a hundredth of its mean: measure with the same one
    damped = None if metric is None else metric + 0.01 * metric.diagonal().mean() * torch.eye(out)
    best, full = loss(seen, wanted, factors, damped), loss(seen, wanted, spectrum.truncate(6), damped)
    assert best - full == pytest.approx(len(seen) * float(spectrum.errors()[3]), rel=1e-5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        up = factors.up + 1e-3 * torch.randn(factors.up.shape, generator=generator, dtype=torch.float64)
        down = factors.down + 1e-3 * torch.randn(factors.down.shape, generator=generator, dtype=torch.float64)
        assert loss(seen, wanted, type(factors)(up, down), damped) > best


def test_exact_outputs_give_the_calibrated_fit():
    weight, seen, _ = setting(6, 10)
    moment, cross = moments(seen, seen @ weight.T)
    factors = reduced_rank_regression(moment, cross, weight, damping=1e-8).truncate(3)
    expected = calibrated_spectrum(weight, moment).truncate(3)
    torch.testing.assert_close(factors.dense(), expected.dense(), rtol=1e-5, atol=1e-5)


def test_damping_keeps_the_prior_where_inputs_never_went():
    weight, seen, wanted = setting(6, 10)
    seen[:, 4] = 0
    solution, _ = ridge_solution(*moments(seen, wanted), weight, 0.01)
    torch.testing.assert_close(solution[:, 4], weight[:, 4])
    far, _ = ridge_solution(*moments(seen, wanted), weight, 1e9)
    torch.testing.assert_close(far, weight, atol=1e-6, rtol=1e-6)
    nothing = torch.zeros(10, 10), torch.zeros(6, 10)
    torch.testing.assert_close(reduced_rank_regression(*nothing, weight).truncate(6).dense(), weight)


def test_a_covariance_that_rounding_made_indefinite_is_served():
    weight, seen, wanted = setting(6, 10)
    moment, cross = moments(seen, wanted)
    spoiled = moment - 0.1 * torch.eye(10, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(spoiled)[0]) < -0.01 * float(spoiled.diagonal().mean())
    solution, _ = ridge_solution(spoiled, cross, weight)
    assert torch.isfinite(solution).all()


def test_bad_input_is_named():
    weight, seen, wanted = setting(6, 10)
    with pytest.raises(ValueError, match=r"prior \(10, 6\)"):
        ridge_solution(*moments(seen, wanted), weight.T)
    with pytest.raises(ValueError, match="damping=0"):
        ridge_solution(*moments(seen, wanted), weight, 0)
