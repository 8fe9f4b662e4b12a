import numpy as np
import pytest
import torch

from fewfold.linalg.low_rank import LowRankFactors, calibrated_spectrum
from fewfold.linalg.quantize import quantize_matrix
from fewfold.linalg.round_factors import balance, refit_up, round_factors


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def moment(size, samples=300):
    inputs = random(samples, 6, seed=1) @ random(6, size, seed=2) + 0.5 * random(samples, size, seed=3)
    return inputs.T @ inputs / samples


def error(dense, factors, input_moment):
    difference = dense - factors.dense()
    return float(torch.trace(difference @ input_moment @ difference.T))


def test_balance_keeps_the_product_and_evens_the_factors():
    factors = LowRankFactors(random(20, 5) * 100, random(5, 30, seed=4))
    balanced = balance(factors)
    torch.testing.assert_close(balanced.dense(), factors.dense())
    gram = balanced.up.T @ balanced.up
    torch.testing.assert_close(gram, balanced.down @ balanced.down.T)
    values = np.linalg.svd(factors.dense().numpy(), compute_uv=False)[:5]
    np.testing.assert_allclose(gram.numpy(), np.diag(values), atol=1e-8)


def test_refit_is_least_squares():
    factors, inputs = LowRankFactors(random(20, 5), random(5, 30, seed=4)), random(200, 30, seed=5)
    down = factors.down + 0.1 * random(5, 30, seed=6)
    up = refit_up(factors, down, inputs.T @ inputs, damping=1e-12)
    expected = np.linalg.lstsq((inputs @ down.T).numpy(), (inputs @ factors.dense().T).numpy(), rcond=None)[0].T
    np.testing.assert_allclose(up.numpy(), expected, atol=1e-8)
    torch.testing.assert_close(refit_up(factors, factors.down, inputs.T @ inputs), factors.up)
    torch.testing.assert_close(refit_up(factors, down, torch.zeros(30, 30)), factors.up)


@pytest.mark.parametrize(("bits", "group_size"), [(3, 32), (4, 32), (8, None)])
def test_rounding_together_beats_rounding_apart(bits, group_size):
    inputs = moment(64)
    factors = calibrated_spectrum(random(48, 64), inputs).truncate(16)
    dense = factors.dense()
    together = round_factors(factors, inputs, bits, group_size)
    apart = LowRankFactors(
        *(quantize_matrix(part, bits, group_size).dequantize(torch.float64) for part in (factors.up, factors.down))
    )
    assert together.up.codes.shape == (48, 16)
    assert together.down.codes.shape == (16, 64)
    assert error(dense, together.dequantize(torch.float64), inputs) < 0.6 * error(dense, apart, inputs)
