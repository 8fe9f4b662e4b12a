import itertools

import numpy as np
import pytest
import torch

from fewfold.linalg import direction
from fewfold.linalg.direction import direction_spectrum, direction_subspace


def table_of(rows=300, dim=12, seed=0, mean=0.3):
    """Rows with a decaying spectrum, a mean, and lengths that differ widely."""
    generator = np.random.default_rng(seed)
    rows_ = generator.standard_normal((rows, dim)) * np.exp(-0.25 * np.arange(dim))
    rows_ = rows_ @ np.linalg.qr(generator.standard_normal((dim, dim)))[0] + mean * generator.standard_normal(dim)
    return torch.from_numpy(rows_ * generator.lognormal(0, 0.5, (rows, 1)))


def mean_cosine(table, reconstruction, weights=None):
    """By a plain loop in numpy."""
    values = [
        float(x @ y) / max(float(np.sqrt(x @ x) * np.sqrt(y @ y)), 1e-300)
        for x, y in zip(table.double().numpy(), reconstruction.double().numpy(), strict=True)
    ]
    return float(np.average(values, weights=None if weights is None else weights.numpy()))


@pytest.mark.parametrize("rank", [1, 4, 9])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mean_row", [False, True])
def test_cosines_never_fall_and_the_last_is_the_reconstruction_s(rank, weighted, mean_row):
    table = table_of()
    weights = torch.from_numpy(np.random.default_rng(1).pareto(1.0, 300)) if weighted else None
    found = direction_subspace(table, rank, weights, mean_row=mean_row, tolerance=0, iterations=60)
    assert all(after >= before for before, after in itertools.pairwise(found.cosines))
    assert found.cosines[-1] > found.cosines[0]
    rows = found.decode(found.encode(table))
    assert found.cosines[-1] == pytest.approx(mean_cosine(table, rows, weights), abs=1e-12)
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(rank).double(), atol=1e-12, rtol=0)
    if mean_row:
        torch.testing.assert_close(found.basis.T @ found.mean_row, torch.zeros(rank).double(), atol=1e-12, rtol=0)
        bare = direction_subspace(table, rank, weights, tolerance=0, iterations=60)
        assert found.cosines[-1] > bare.cosines[-1]


def test_no_linear_autoencoder_nearby_keeps_directions_better():
    table = table_of()
    found = direction_subspace(table, 4, tolerance=0, iterations=2000)
    encoder, decoder = found.basis.numpy().T, found.basis.numpy()
    rows, generator = table.numpy(), np.random.default_rng(0)

    def cosine(encoder, decoder):
        made = rows @ encoder.T @ decoder.T
        return ((made * rows).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(rows, axis=1)).mean()

    best = cosine(encoder, decoder)
    assert best == pytest.approx(found.cosines[-1], abs=1e-12)
    for _ in range(200):
        e, d = (m + 1e-3 * generator.standard_normal(m.shape) for m in (encoder, decoder))
        assert cosine(e, d) < best + 1e-12


def test_better_directions_and_worse_squares_than_the_svd():
    table = table_of(seed=3)
    rows = direction_subspace(table, 4).decode(direction_subspace(table, 4).encode(table))
    left, values, right = np.linalg.svd(table.numpy(), full_matrices=False)
    svd = torch.from_numpy(left[:, :4] * values[:4] @ right[:4])
    assert mean_cosine(table, rows) > mean_cosine(table, svd) + 1e-4
    assert float((table - rows).square().sum()) > float((table - svd).square().sum()) * (1 + 1e-4)


def test_latents_have_the_length_of_least_squares():
    table = table_of()
    found = direction_subspace(table, 5, mean_row=True)
    rest = (table - found.mean_row).numpy().T
    expected = np.linalg.lstsq(found.basis.numpy(), rest, rcond=None)[0].T
    np.testing.assert_allclose(found.encode(table).numpy(), expected, atol=1e-12)


def test_a_weight_of_two_is_a_row_twice_and_of_zero_none():
    table = table_of(rows=40)
    weights = torch.arange(40) % 3
    for mean_row in (False, True):
        values = {"rank": 3, "mean_row": mean_row, "tolerance": 0, "iterations": 8}
        weighted = direction_subspace(table, row_weights=weights, **values)
        repeated = direction_subspace(table.repeat_interleave(weights, 0), **values)
        np.testing.assert_allclose(weighted.cosines, repeated.cosines, rtol=1e-10)
        projections = (weighted.basis @ weighted.basis.T, repeated.basis @ repeated.basis.T)
        torch.testing.assert_close(*projections, atol=1e-8, rtol=0)


def test_lengths_of_rows_do_not_matter_without_a_mean_row():
    table = table_of()
    scaled = table * torch.linspace(0.1, 7, 300).double()[:, None]
    ours, theirs = direction_subspace(table, 4), direction_subspace(scaled, 4)
    torch.testing.assert_close(ours.basis @ ours.basis.T, theirs.basis @ theirs.basis.T, atol=1e-8, rtol=0)


def test_the_start_is_the_svd_of_the_rows_at_length_one():
    table, weights = table_of(), torch.linspace(0.1, 3, 300).double()
    units = table.numpy() / np.linalg.norm(table.numpy(), axis=1, keepdims=True)
    share = weights.numpy() / weights.numpy().sum()
    _, values, right = np.linalg.svd(np.sqrt(share)[:, None] * units, full_matrices=False)
    spectrum = direction_spectrum(table, weights)
    np.testing.assert_allclose(spectrum.shares.numpy(), values**2, atol=1e-12)
    tails = [(share[:, None] * (units - units @ right[:r].T @ right[:r]) ** 2).sum() for r in range(13)]
    np.testing.assert_allclose(spectrum.errors().numpy(), tails, atol=1e-12)
    start = direction_subspace(table, 4, weights, iterations=0)
    np.testing.assert_allclose((start.basis @ start.basis.T).numpy(), right[:4].T @ right[:4], atol=1e-9)


@pytest.mark.parametrize("mean_row", [False, True])
def test_rows_of_zeros_have_no_say(mean_row):
    table = table_of(rows=60)
    padded = torch.cat([torch.zeros(1, 12).double(), table, torch.zeros(2, 12).double()])
    ours, theirs = (direction_subspace(t, 3, mean_row=mean_row) for t in (padded, table))
    np.testing.assert_allclose(ours.cosines, theirs.cosines, rtol=1e-12)
    assert not ours.encode(padded)[[0, -1]].any()
    for rank in (3, 12):
        nothing = direction_subspace(torch.zeros(4, 12), rank, mean_row=mean_row)
        assert nothing.cosines == (0.0,)
        assert not nothing.decode(nothing.encode(torch.zeros(4, 12))).any()
    orthogonal = direction_subspace(torch.eye(3).double(), 1)  # two rows are projected onto nothing
    assert orthogonal.cosines[-1] == pytest.approx(1 / 3)
    assert torch.isfinite(orthogonal.basis).all()


@pytest.mark.parametrize("mean_row", [False, True])
def test_full_rank_is_lossless(mean_row):
    table = table_of(rows=5)
    found = direction_subspace(table, 12, mean_row=mean_row)
    torch.testing.assert_close(found.decode(found.encode(table)), table)
    assert found.cosines == (1.0,)


@pytest.mark.parametrize("mean_row", [False, True])
def test_single_precision_and_parts_give_the_same_subspace(mean_row, monkeypatch):
    table = table_of()
    whole = direction_subspace(table, 4, mean_row=mean_row)
    monkeypatch.setattr(direction, "CHUNK", 7)
    parts = direction_subspace(table.float(), 4, mean_row=mean_row)
    assert parts.basis.dtype == torch.float64
    assert parts.cosines[-1] == pytest.approx(whole.cosines[-1], abs=1e-6)
    torch.testing.assert_close(parts.basis @ parts.basis.T, whole.basis @ whole.basis.T, atol=1e-3, rtol=0)
    half = direction_subspace(table.bfloat16(), 4, mean_row=mean_row)
    assert half.cosines[-1] == pytest.approx(whole.cosines[-1], abs=1e-2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"rank=13: rows of 12 numbers take 1…12"):
        direction_subspace(table_of(), 13)
    with pytest.raises(ValueError, match="the table has 300 rows"):
        direction_subspace(table_of(), 2, torch.ones(3))
    with pytest.raises(ValueError, match="not negative"):
        direction_subspace(table_of(), 2, -torch.ones(300))
    with pytest.raises(ValueError, match="infinity or a NaN"):
        direction_subspace(torch.full((3, 3), float("nan")), 2)
    with pytest.raises(ValueError, match="table of rows"):
        direction_subspace(torch.ones(3), 1)
