import numpy as np
import pytest
import torch

from fewfold.linalg.low_rank import (
    calibrated_spectrum,
    corrected_bias,
    row_weighted_spectrum,
    svd_spectrum,
)
from fewfold.linalg.spectra import damped

SHAPES = [(12, 20), (20, 12), (15, 15)]


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def moment(size, samples, seed=1):
    activations = random(samples, size, seed=seed) * torch.linspace(0.1, 2.0, size)
    return activations.T @ activations / samples


def loss(difference, input_moment, metric):
    return float(torch.trace(metric @ difference @ input_moment @ difference.T))


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_svd_errors_are_the_tail_of_the_singular_values(shape):
    weight = random(*shape)
    spectrum = svd_spectrum(weight.float())
    values = np.linalg.svd(weight.float().double().numpy(), compute_uv=False)
    for rank in (1, 5, 12):
        error = float((weight.float() - spectrum.truncate(rank).dense()).square().sum())
        assert error == pytest.approx((values[rank:] ** 2).sum(), rel=1e-6, abs=1e-9)
        assert float(spectrum.errors()[rank]) == pytest.approx(error, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_metric", [False, True])
def test_calibrated_reaches_the_whitened_optimum(shape, with_metric):
    weight, inputs = random(*shape), moment(shape[1], 50)
    metric = moment(shape[0], 60, seed=2) if with_metric else None
    spectrum = calibrated_spectrum(weight, inputs, metric, output_damping=0.05)
    used = torch.eye(shape[0], dtype=torch.float64) if metric is None else damped(metric, 0.05)
    whitened = np.linalg.cholesky(used.numpy()).T @ weight.numpy() @ np.linalg.cholesky(inputs.numpy())
    values = np.linalg.svd(whitened, compute_uv=False)
    for rank in (1, 4, 9):
        measured = loss(weight - spectrum.truncate(rank).dense(), inputs, used)
        assert measured == pytest.approx((values[rank:] ** 2).sum(), rel=1e-6)
        assert float(spectrum.errors()[rank]) == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank_of_inputs", [0, 3, 30])
def test_full_rank_is_exact_even_where_inputs_are_degenerate(shape, rank_of_inputs):
    weight = random(*shape)
    weight[2] = 0
    activations = random(max(rank_of_inputs, 1), shape[1], seed=3) * (rank_of_inputs > 0)
    spectrum = calibrated_spectrum(weight, activations.T @ activations)
    full = spectrum.truncate(min(shape)).dense()
    assert float((full - weight).norm() / weight.norm()) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_of_low_rank_need_no_more_than_their_rank(shape):
    weight, activations = random(*shape), random(4, shape[1], seed=4)
    factors = calibrated_spectrum(weight, activations.T @ activations).truncate(4)
    assert float((activations @ (weight - factors.dense()).T).norm()) < 1e-4


def test_without_a_metric_the_smaller_side_is_orthonormal_and_signs_are_settled():
    weight, inputs = random(10, 16), moment(16, 40)
    spectrum = calibrated_spectrum(weight, inputs)
    torch.testing.assert_close(spectrum.up.T @ spectrum.up, torch.eye(10, dtype=torch.float64))
    peaks = spectrum.up.gather(0, spectrum.up.abs().argmax(0, keepdim=True))
    assert bool((peaks > 0).all())
    again = calibrated_spectrum(weight, inputs)
    assert torch.equal(again.up, spectrum.up)
    assert torch.equal(again.down, spectrum.down)


def test_centred_fit_with_a_corrected_bias_beats_the_uncentred_one():
    weight, inputs = random(12, 20), random(200, 20, seed=5) + 3 * random(20, seed=6)
    mean, second = inputs.mean(0), inputs.T @ inputs / len(inputs)
    plain = calibrated_spectrum(weight, second).truncate(5).dense()
    centred = calibrated_spectrum(weight, second - torch.outer(mean, mean)).truncate(5).dense()
    bias = corrected_bias(weight, centred, mean)
    assert (inputs @ (weight - centred).T - bias).mean(0).abs().max() < 1e-10
    errors = [
        (inputs @ (weight - centred).T - bias).square().sum(),
        (inputs @ (weight - plain).T).square().sum(),
    ]
    assert errors[0] < errors[1]
    torch.testing.assert_close(corrected_bias(weight, centred, mean, mean[:12]), bias + mean[:12])


def test_row_weights_move_only_the_subspace():
    table = random(40, 8)
    weights = torch.from_numpy(np.random.default_rng(7).pareto(1.0, 40))
    weights[3] = 0
    factors = row_weighted_spectrum(table, weights).truncate(3)
    _, _, right = np.linalg.svd(np.sqrt(weights.numpy())[:, None] * table.numpy(), full_matrices=False)
    expected = table.numpy() @ right[:3].T @ right[:3]
    np.testing.assert_allclose(factors.dense().numpy(), expected, atol=1e-8)
    error = float((weights * (table - factors.dense()).square().sum(1)).sum())
    assert float(row_weighted_spectrum(table, weights).errors()[3]) == pytest.approx(error, rel=1e-6)


def test_row_weighted_full_rank_is_exact_where_few_rows_count():
    table, weights = random(40, 8), torch.zeros(40)
    weights[:2] = 1
    spectrum = row_weighted_spectrum(table, weights)
    torch.testing.assert_close(spectrum.truncate(8).dense(), table)
    rest = table @ (torch.eye(8, dtype=torch.float64) - spectrum.down[:2].T @ spectrum.down[:2])
    values = np.linalg.svd(rest.numpy(), compute_uv=False)
    error = float((table - spectrum.truncate(5).dense()).square().sum())
    assert error == pytest.approx((values[3:] ** 2).sum(), rel=1e-4)


@pytest.mark.parametrize("rank", [0, 13, -1])
def test_rank_out_of_range_is_named(rank):
    with pytest.raises(ValueError, match=f"rank={rank}: a 12×20 matrix takes 1…12"):
        svd_spectrum(random(12, 20)).truncate(rank)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"input_moment \(12, 12\)"):
        calibrated_spectrum(random(12, 20), moment(12, 20))
    with pytest.raises(ValueError, match="infinity or a NaN"):
        svd_spectrum(random(3, 3) / 0)
    with pytest.raises(ValueError, match="not negative"):
        row_weighted_spectrum(random(4, 3), -torch.ones(4))
    with pytest.raises(ValueError, match="the table has 4 rows"):
        row_weighted_spectrum(random(4, 3), torch.ones(3))
