import numpy as np
import pytest
import torch

from fewfold.linalg.spectra import cholesky_factor, damped, eigh_descending, fix_signs


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_eigh_is_sorted_and_rebuilds_the_matrix():
    factor = random(6, 4)
    matrix = factor @ factor.T
    values, vectors = eigh_descending(matrix)
    assert bool((values[:-1] >= values[1:]).all())
    assert float(values.min()) >= 0
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix)


def test_signs_do_not_depend_on_the_input_signs():
    vectors = random(5, 3)
    flipped = vectors * torch.tensor([1.0, -1.0, -1.0])
    assert torch.equal(fix_signs(vectors), fix_signs(flipped))


def test_cholesky_factor_and_damping():
    factor = random(6, 3)
    metric = damped(factor @ factor.T, 0.1)
    factor = cholesky_factor(metric)
    torch.testing.assert_close(factor @ factor.T, metric, rtol=1e-6, atol=1e-6)
    singular = torch.diag(torch.tensor([1.0, 0.0, -1e-12], dtype=torch.float64))
    assert torch.isfinite(torch.linalg.inv(cholesky_factor(singular))).all()
    assert torch.equal(damped(torch.zeros(3, 3), 0.1), torch.eye(3, dtype=torch.float64))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="square"):
        eigh_descending(random(2, 3))
    with pytest.raises(ValueError, match="NaN"):
        eigh_descending(random(2, 2) / 0)
    with pytest.raises(ValueError, match="damping=-1"):
        damped(torch.eye(2), -1)
