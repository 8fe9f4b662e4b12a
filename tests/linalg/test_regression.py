import numpy as np
import pytest
import torch

from fewfold.linalg.low_rank import calibrated_spectrum
from fewfold.linalg.moments import CrossMoments
from fewfold.linalg.regression import reduced_rank_regression, ridge_solution

SHAPES = [(6, 10), (10, 6)]


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def setting(out, inputs, samples=400, noise=0.5):
    weight = random(out, inputs)
    seen = random(samples, inputs, seed=1) * torch.linspace(0.2, 2, inputs) + 1
    wanted = seen @ (weight + 0.3 * random(out, inputs, seed=2)).T + noise * random(samples, out, seed=3) - 2
    moments = CrossMoments.zeros(inputs, out)
    moments.add(seen, wanted)
    return weight, seen, wanted, moments


def loss(seen, wanted, factors, bias, metric=None):
    residual = wanted - seen @ factors.dense().T - bias
    return float(residual.square().sum() if metric is None else (residual @ metric * residual).sum())


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_full_rank_is_least_squares(out, inputs):
    weight, seen, wanted, moments = setting(out, inputs)
    factors, bias = reduced_rank_regression(moments, weight, damping=1e-9).truncate(6)
    design = np.concatenate([seen.numpy(), np.ones((len(seen), 1))], axis=1)
    expected = np.linalg.lstsq(design, wanted.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(factors.dense().numpy(), expected[:, :-1], atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), expected[:, -1], atol=1e-6)


@pytest.mark.parametrize(("out", "inputs"), SHAPES)
@pytest.mark.parametrize("with_metric", [False, True])
def test_no_map_of_the_rank_is_better(out, inputs, with_metric):
    weight, seen, wanted, moments = setting(out, inputs)
    metric = torch.diag(torch.linspace(0.5, 4, out).double()) if with_metric else None
    spectrum = reduced_rank_regression(moments, weight, metric, damping=1e-9, output_damping=0.0)
    factors, bias = spectrum.truncate(3)
    best = loss(seen, wanted, factors, bias, metric)
    full = loss(seen, wanted, *spectrum.truncate(6), metric)
    assert best - full == pytest.approx(len(seen) * float(spectrum.linear.errors()[3]), rel=1e-5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        up = factors.up + 1e-3 * torch.randn(factors.up.shape, generator=generator, dtype=torch.float64)
        down = factors.down + 1e-3 * torch.randn(factors.down.shape, generator=generator, dtype=torch.float64)
        shift = moments.output_mean - up @ down @ moments.input_mean
        assert loss(seen, wanted, type(factors)(up, down), shift, metric) > best


def test_exact_outputs_give_the_calibrated_fit():
    weight, seen, _, _ = setting(6, 10)
    moments = CrossMoments.zeros(10, 6)
    moments.add(seen, seen @ weight.T)
    factors, _ = reduced_rank_regression(moments, weight, damping=1e-8).truncate(3)
    expected = calibrated_spectrum(weight, moments.input_covariance()).truncate(3)
    torch.testing.assert_close(factors.dense(), expected.dense(), rtol=1e-5, atol=1e-5)


def test_damping_keeps_the_prior_where_inputs_never_went():
    weight, seen, wanted, _ = setting(6, 10)
    seen[:, 4] = 0
    moments = CrossMoments.zeros(10, 6)
    moments.add(seen, wanted)
    solution, _ = ridge_solution(moments, weight, 0.01)
    torch.testing.assert_close(solution[:, 4], weight[:, 4])
    far, _ = ridge_solution(moments, weight, 1e9)
    torch.testing.assert_close(far, weight, atol=1e-6, rtol=1e-6)
    still = CrossMoments.zeros(10, 6)
    still.add(torch.ones(5, 10), torch.ones(5, 6))
    factors, bias = reduced_rank_regression(still, weight).truncate(6)
    torch.testing.assert_close(factors.dense(), weight)
    torch.testing.assert_close(bias, 1 - weight.sum(1))


def test_bad_input_is_named():
    weight, _, _, moments = setting(6, 10)
    with pytest.raises(ValueError, match=r"prior \(10, 6\)"):
        ridge_solution(moments, weight.T)
    with pytest.raises(ValueError, match="damping=0"):
        ridge_solution(moments, weight, 0)
