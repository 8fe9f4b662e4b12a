import numpy as np
import pytest
import torch

from fewfold.linalg.direction_loss import cosine_distances, direction_loss, magnitude_exponent
from fewfold.linalg.low_rank import svd_spectrum


def table_of(rows, dim=12):
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.standard_normal((rows, dim)) * np.exp(-0.25 * np.arange(dim)) + 0.3)


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
    assert float(direction_loss(made, rows, row_weights=torch.zeros(5))) == 0


def test_cosine_distances_see_only_directions():
    rows = table_of(50)
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
    distances[:2].sum().backward(retain_graph=True)
    assert not made.grad.any()
    made.grad = None
    direction_loss(made, rows, 0.1).backward()
    assert torch.isfinite(made.grad).all()


def test_halves_are_measured_in_single_precision():
    rows, made = table_of(20).half(), (table_of(20) * 1.001).half()
    loss = direction_loss(made, rows)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, direction_loss(made.float(), rows.float()))


@pytest.mark.parametrize("bias", [False, True])
def test_squared_error_alone_is_least_at_the_svd_and_with_a_bias_at_the_pca(bias):
    table, rank = table_of(80), 3
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
