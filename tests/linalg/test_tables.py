import numpy as np
import pytest
import torch

from fewfold.linalg.spectra import damped
from fewfold.linalg.tables import row_weighted_spectrum, smoothed_counts


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_row_weights_move_only_the_subspace():
    table = random(40, 8)
    weights = torch.from_numpy(np.random.default_rng(7).pareto(1.0, 40))
    weights[3] = 0
    factors = row_weighted_spectrum(table, weights).truncate(3)
    _, _, right = np.linalg.svd(np.sqrt(weights.numpy())[:, None] * table.numpy(), full_matrices=False)
    expected = table.numpy() @ right[:3].T @ right[:3]
    np.testing.assert_allclose(factors.dense().numpy(), expected, atol=1e-8)
    error = float((weights * (table - factors.dense()).square().sum(1)).sum())
    assert float(row_weighted_spectrum(table, weights).errors()[3]) == pytest.approx(error, rel=1e-7)


def test_row_weights_with_a_metric_reach_the_whitened_optimum():
    table, weights, metric = random(40, 8), torch.linspace(0.1, 2, 40), random(8, 8, seed=2)
    metric = metric @ metric.T
    spectrum = row_weighted_spectrum(table, weights, metric, output_damping=0.05)
    used = damped(metric, 0.05)
    whitened = np.sqrt(weights.numpy())[:, None] * table.numpy() @ np.linalg.cholesky(used.numpy())
    values = np.linalg.svd(whitened, compute_uv=False)
    difference = table - spectrum.truncate(3).dense()
    error = float((weights[:, None] * (difference @ used) * difference).sum())
    assert error == pytest.approx((values[3:] ** 2).sum(), rel=1e-7)
    torch.testing.assert_close(spectrum.truncate(8).dense(), table)


def test_smoothed_counts_give_unseen_tokens_the_share_of_the_singletons():
    smoothed = smoothed_counts(torch.tensor([0, 0, 0, 0, 1, 1, 5]))
    torch.testing.assert_close(smoothed, torch.tensor([0.5, 0.5, 0.5, 0.5, 1.5, 1.5, 5.5]).double())
    assert bool((smoothed_counts(torch.zeros(3)) > 0).all())
    assert float(smoothed_counts(torch.ones(3)).max()) == 2


def test_row_weighted_full_rank_is_exact_where_few_rows_count():
    table, weights = random(40, 8), torch.zeros(40)
    weights[:2] = 1
    spectrum = row_weighted_spectrum(table, weights)
    torch.testing.assert_close(spectrum.truncate(8).dense(), table)
    rest = table @ (torch.eye(8, dtype=torch.float64) - spectrum.down[:2].T @ spectrum.down[:2])
    values = np.linalg.svd(rest.numpy(), compute_uv=False)
    error = float((table - spectrum.truncate(5).dense()).square().sum())
    assert error == pytest.approx((values[3:] ** 2).sum(), rel=1e-4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="not negative"):
        row_weighted_spectrum(random(4, 3), -torch.ones(4))
    with pytest.raises(ValueError, match="the table has 4 rows"):
        row_weighted_spectrum(random(4, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"output_metric \(4, 4\)"):
        row_weighted_spectrum(random(4, 3), torch.ones(4), torch.eye(4))
