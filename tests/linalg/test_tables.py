import numpy as np
import pytest
import torch

from fewfold.linalg import tables
from fewfold.linalg.spectra import damped
from fewfold.linalg.tables import row_weighted_directions, row_weighted_spectrum, smoothed_counts


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


def test_smoothed_counts_look_at_neighbours_in_the_vocabulary():
    counts = torch.from_numpy(np.random.default_rng(3).poisson(np.linspace(2, 0, 2000)))
    smoothed, reach = smoothed_counts(counts).numpy(), tables.NEIGHBOURS
    for place in (0, 150, 1000, 1999):
        around = counts.numpy()[max(0, place - reach) : place + reach + 1]
        share = np.clip((around == 1).sum() / max((around == 0).sum(), 1), 1e-3, 1)
        assert smoothed[place] == pytest.approx(counts[place] + share)
    unseen = np.flatnonzero(counts.numpy() == 0)
    assert smoothed[unseen[0]] > 5 * smoothed[unseen[-1]]


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


@pytest.mark.parametrize("weighed", [False, True])
def test_directions_are_the_spectrum_of_the_centred_table(weighed):
    table, weights = random(60, 8) + 0.7, torch.from_numpy(np.random.default_rng(7).pareto(1.5, 60)) + 0.01
    metric = random(8, 8, seed=2) @ random(8, 8, seed=2).T if weighed else None
    share = weights / weights.sum()
    mean = share @ table
    found = row_weighted_directions(table, weights, metric, 0.05)
    spectrum = row_weighted_spectrum(table - mean, share, metric, 0.05)
    np.testing.assert_allclose(
        found.mean.numpy(), np.average(table.numpy(), axis=0, weights=weights.numpy()), atol=1e-7
    )
    np.testing.assert_allclose(found.gains.numpy(), spectrum.gains.numpy(), rtol=1e-5)
    used = np.eye(8) if metric is None else damped(metric, 0.05).numpy()
    root = np.linalg.cholesky(used)
    values = np.linalg.svd(np.sqrt(share.numpy())[:, None] * (table - mean).numpy() @ root, compute_uv=False)
    np.testing.assert_allclose(found.gains.numpy(), values**2, rtol=1e-5)
    for rank in (1, 3, 8):
        kept = found.coordinates(table, torch.arange(rank)).double() @ found.back[:rank] + found.mean
        torch.testing.assert_close(kept - mean, spectrum.truncate(rank).dense(), rtol=1e-4, atol=1e-5)
        projector = (found.into[:, :rank] @ found.back[:rank]).numpy()
        np.testing.assert_allclose(projector @ projector, projector, atol=1e-8)
        off = ((table - kept).numpy() @ root) ** 2
        assert float(share.numpy() @ off.sum(1)) == pytest.approx((values[rank:] ** 2).sum(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("weighed", [False, True])
def test_all_coordinates_give_the_table_back(weighed, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK_ROWS", 7)
    table, metric = random(40, 5).float() * 3 - 1, random(5, 3) @ random(5, 3).T if weighed else None
    found = row_weighted_directions(table, torch.rand(40), metric)
    order = torch.tensor([3, 0, 4, 1, 2])
    coordinates = found.coordinates(table, order)
    torch.testing.assert_close(
        (coordinates.double() @ found.back[order] + found.mean).float(), table, rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose((found.into @ found.back).numpy(), np.eye(5), atol=1e-8)
    monkeypatch.setattr(tables, "CHUNK_ROWS", 1000)
    torch.testing.assert_close(found.coordinates(table, order), coordinates)


@pytest.mark.parametrize("rows", [1, 2])
def test_directions_of_hardly_any_rows(rows):
    table = random(rows, 6)
    found = row_weighted_directions(table, torch.ones(rows))
    assert bool((found.gains >= 0).all())
    assert int((found.gains > 1e-7 * table.square().sum()).sum()) == rows - 1
    kept = found.coordinates(table, torch.arange(rows)).double() @ found.back[:rows] + found.mean
    torch.testing.assert_close(kept, table, rtol=1e-5, atol=1e-5)


def test_bad_directions_are_named():
    for weights in (torch.ones(3), -torch.ones(4), torch.zeros(4), torch.full((4,), float("inf"))):
        with pytest.raises(ValueError, match="row_weights: 4 numbers, finite, not negative and not all zero"):
            row_weighted_directions(random(4, 3), weights)
    table = random(4, 3)
    table[2, 1] = float("nan")
    with pytest.raises(ValueError, match="rows 0…3 of the table hold an infinity or a NaN"):
        row_weighted_directions(table, torch.ones(4))
    with pytest.raises(ValueError, match=r"output_metric \(4, 4\): rows of 3 need \(3, 3\)"):
        row_weighted_directions(random(4, 3), torch.ones(4), torch.eye(4))
