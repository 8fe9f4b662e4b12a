import numpy as np
import pytest
import torch

from fewfold.linalg.quantize import quantize_matrix, quantize_with_feedback, unpack_codes


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def relative_error(values, quantized):
    values = values.double()
    return float((values - quantized.dequantize(torch.float64)).norm() / values.norm())


def output_error(values, quantized, moment):
    difference = (values - quantized.dequantize()).double()
    return float(torch.trace(difference @ moment @ difference.T))


@pytest.mark.parametrize(("bits", "group_size", "bound"), [(8, None, 0.01), (4, 32, 0.1), (3, 32, 0.19), (2, 32, 0.36)])
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_error_on_gaussian_rows(bits, group_size, bound, scale_dtype):
    values = random(16, 200)
    quantized = quantize_matrix(values, bits, group_size, scale_dtype)
    assert relative_error(values, quantized) < bound
    assert quantized.codes.dtype == torch.int8
    assert quantized.scales.dtype == scale_dtype
    assert quantized.scales.shape == (16, 1 if group_size is None else 7)
    limit = 2 ** (bits - 1)
    assert -limit <= int(quantized.codes.min()) <= int(quantized.codes.max()) <= limit - 1


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_dequantize_matches_a_naive_loop_and_codes_are_nearest(bits):
    values = random(3, 10, seed=1)
    quantized = quantize_matrix(values, bits, 4)
    low, high = (-127 if bits == 8 else -(2 ** (bits - 1))), 2 ** (bits - 1) - 1
    dense = quantized.dequantize(torch.float64)
    for row in range(3):
        for column in range(10):
            scale = float(quantized.scales[row, column // 4])
            grid = np.arange(low, high + 1) * scale
            value = float(values[row, column])
            assert float(dense[row, column]) == pytest.approx(float(quantized.codes[row, column]) * scale)
            assert abs(float(dense[row, column]) - value) == pytest.approx(np.abs(grid - value).min(), abs=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_search_and_importance_lessen_their_own_error(bits):
    values, importance = random(8, 64, seed=2), torch.linspace(0.01, 5, 64).square()
    searched = quantize_matrix(values, bits, 32)
    assert relative_error(values, searched) < relative_error(values, quantize_matrix(values, bits, 32, search=False))
    weighted = quantize_matrix(values, bits, 32, column_importance=importance)
    errors = [((values - q.dequantize()).square() * importance).sum() for q in (weighted, searched)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_pack_round_trip_and_bytes(bits):
    quantized = quantize_matrix(random(5, 37), bits, 32)
    packed = quantized.packed()
    assert torch.equal(unpack_codes(packed, bits, 37), quantized.codes)
    assert quantized.nbytes() == packed.numel() + 5 * 2 * 2


def test_zero_rows_stay_zero_and_extremes_stay_finite():
    values = random(4, 40)
    values[1] = 0
    values[2] *= 1e-30
    values[3] *= 1e30
    for scale_dtype in (torch.bfloat16, torch.float16):
        dense = quantize_matrix(values, 4, 32, scale_dtype).dequantize()
        assert bool(torch.isfinite(dense).all())
        assert not dense[1].any()
    assert relative_error(values[2:3], quantize_matrix(values[2:3], 4, 32)) < 0.1


def test_grid_values_are_kept_exactly():
    codes = torch.randint(-8, 8, (6, 32), generator=torch.Generator().manual_seed(3))
    codes[:, 0] = -8
    torch.testing.assert_close(quantize_matrix(codes * 0.5, 4, 32).dequantize(), codes * 0.5)
    torch.testing.assert_close(quantize_matrix(codes * -0.5, 4, 32).dequantize(), codes * -0.5)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_feedback_lessens_output_error(bits):
    values = random(32, 64, seed=4)
    inputs = random(500, 8, seed=5) @ random(8, 64, seed=6) + 0.3 * random(500, 64, seed=7)
    moment = (inputs.T @ inputs / 500).double()
    plain, careful = quantize_matrix(values, bits, 32), quantize_with_feedback(values, moment, bits, 32)
    assert output_error(values, careful, moment) < 0.7 * output_error(values, plain, moment)
    assert careful.scales.shape == plain.scales.shape


def naive_feedback(values, moment, quantized, damping=0.01):
    """Algorithm 1 of the GPTQ paper with the scales given, one column at a time, in numpy."""
    size = len(moment)
    damped = moment.numpy() + damping * np.trace(moment.numpy()) / size * np.eye(size)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    work, codes = values.double().numpy().copy(), []
    low, high = (-127 if quantized.bits == 8 else -(2 ** (quantized.bits - 1))), 2 ** (quantized.bits - 1) - 1
    for column in range(size):
        scale = quantized.scales[:, column // quantized.group_size].double().numpy()
        codes.append(np.clip(np.round(work[:, column] / scale), low, high))
        error = (work[:, column] - codes[-1] * scale) / upper[column, column]
        work[:, column:] -= np.outer(error, upper[column, column:])
    return np.stack(codes, axis=1)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 20), (8, None)])
def test_feedback_matches_the_naive_loop(bits, group_size):
    values, inputs = random(6, 70, seed=9), random(200, 70, seed=10) + 2 * random(200, 1, seed=11)
    moment = (inputs.T @ inputs / 200).double()
    quantized = quantize_with_feedback(values, moment, bits, group_size)
    assert np.array_equal(quantized.codes.numpy(), naive_feedback(values, moment, quantized))


def test_feedback_with_white_inputs_rounds_to_nearest():
    values = random(8, 64, seed=8)
    plain = quantize_matrix(values, 4, 32)
    careful = quantize_with_feedback(values, torch.eye(64), 4, 32)
    assert torch.equal(plain.codes, careful.codes)


def test_feedback_accepts_singular_moments():
    values = random(4, 10)
    for moment in (torch.zeros(10, 10), torch.ones(10, 10)):
        assert relative_error(values, quantize_with_feedback(values, moment, 8)) < 0.05


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="bits=9"):
        quantize_matrix(random(2, 2), 9)
    with pytest.raises(ValueError, match="group_size=0"):
        quantize_matrix(random(2, 2), 4, 0)
    with pytest.raises(ValueError, match="infinity or a NaN"):
        quantize_matrix(random(2, 2) / 0, 4)
    with pytest.raises(ValueError, match=r"input_moment \(3, 3\)"):
        quantize_with_feedback(random(2, 2), torch.eye(3), 4)
