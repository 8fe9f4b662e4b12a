import itertools

import numpy as np
import pytest
import torch

from fewfold.linalg import direction
from fewfold.linalg.direction import direction_spectrum, direction_subspace
from fewfold.linalg.direction_loss import cosine_distances, direction_loss, magnitude_exponent
from fewfold.linalg.low_rank import svd_spectrum


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


def test_the_exponent_falls_from_one_to_a_tenth():
    expected = {0: 1.0, 1: 0.955, 10: 0.55, 19: 0.145, 20: 0.1, 29: 0.1, 100: 0.1}
    for epoch, exponent in expected.items():
        assert magnitude_exponent(epoch) == pytest.approx(exponent, abs=1e-12)
    with pytest.raises(ValueError, match="epoch=-1"):
        magnitude_exponent(-1)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0, 1.5, 3.0]])
def test_the_loss_is_the_formula(weights):
    generator = np.random.default_rng(0)
    made, rows = generator.standard_normal((2, 5, 7))
    share = np.full(5, 0.2) if weights is None else np.array(weights) / 7
    expected = 0.0
    for part, x, y in zip(share, made, rows, strict=True):
        expected += part * 0.9975 / 5 * (1 - x @ y / np.sqrt((x @ x) * (y @ y)))
        expected += part * 0.0025 * np.mean((np.abs(x - y) + 1e-10) ** 0.55)
    squares = np.sqrt((share[:, None] * (made - rows) ** 2).sum() / 7)
    made, rows = torch.from_numpy(made), torch.from_numpy(rows)
    weights = None if weights is None else torch.tensor(weights)
    assert float(direction_loss(made, rows, 0.55, row_weights=weights)) == pytest.approx(expected, rel=1e-12)
    with_squares = direction_loss(made, rows, 0.55, squared=2.0, row_weights=weights)
    assert float(with_squares) == pytest.approx(expected + 2 * squares, rel=1e-12)
    assert float(direction_loss(made, rows, cosine=0, magnitude=0)) == 0


def test_cosine_distances_see_only_directions():
    rows = table_of(rows=50)
    made = rows + torch.from_numpy(np.random.default_rng(2).standard_normal((50, 12)))
    distances = cosine_distances(made, rows)
    torch.testing.assert_close(cosine_distances(made * torch.linspace(0.1, 9, 50).double()[:, None], rows), distances)
    assert float(distances.max()) <= 2
    torch.testing.assert_close(cosine_distances(-rows, rows), torch.full((50,), 2.0).double())
    assert float(direction_loss(rows, rows, 1.0)) < 1e-9
    torch.testing.assert_close(direction_loss(rows, rows, 0.1), torch.tensor(0.0025 * 0.1).double())


def test_rows_without_direction_have_distance_one_and_no_gradient():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]])
    made = torch.tensor([[1.0, 2.0], [0.0, 0.0], [4.0, 3.0]], requires_grad=True)
    distances = cosine_distances(made, rows)
    torch.testing.assert_close(distances, torch.tensor([1.0, 1.0, 0.04]))
    distances[0].backward(retain_graph=True)
    assert not made.grad.any()
    made.grad = None
    direction_loss(made, rows, 0.1).backward()
    assert torch.isfinite(made.grad).all()


def test_halves_are_measured_in_single_precision():
    rows, made = table_of(rows=20).half(), (table_of(rows=20) * 1.001).half()
    loss = direction_loss(made, rows)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, direction_loss(made.float(), rows.float()))


@pytest.mark.parametrize("bias", [False, True])
def test_squared_error_alone_is_least_at_the_svd_and_with_a_bias_at_the_pca(bias):
    table, rank = table_of(rows=80), 3
    mean = table.mean(0) if bias else torch.zeros(12).double()
    down = svd_spectrum(table - mean).down[:rank]
    tensors = {"encoder": down, "decoder": down.T, "shift": mean - mean @ down.T @ down}
    tensors = {name: tensor.clone().requires_grad_(bias or name != "shift") for name, tensor in tensors.items()}

    def loss(encoder, decoder, shift):
        return direction_loss(table @ encoder.T @ decoder.T + shift, table, cosine=0, magnitude=0, squared=1)

    best = loss(**tensors)
    best.backward()
    assert all(float(t.grad.abs().max()) < 1e-9 for t in tensors.values() if t.requires_grad)
    values = np.linalg.svd((table - mean).numpy(), compute_uv=False)
    assert float(best.detach()) ** 2 * table.numel() == pytest.approx((values[rank:] ** 2).sum(), rel=1e-9)
    plain = np.linalg.svd(table.numpy(), compute_uv=False)
    assert (values[rank:] ** 2).sum() <= (plain[rank:] ** 2).sum() * (1 + 1e-12)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        moved = {n: t + 1e-3 * t.requires_grad * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
        assert loss(**moved).detach() > best.detach()
