import numpy as np
import pytest
import torch

from fewfold.linalg.moments import CrossMoments


def test_averages_match_numpy():
    generator = np.random.default_rng(0)
    inputs, outputs = generator.standard_normal((50, 4)) + 2, generator.standard_normal((50, 3)) - 1
    moments = CrossMoments.zeros(4, 3)
    for part in (slice(0, 7), slice(7, 50)):
        moments.add(torch.from_numpy(inputs[part]), torch.from_numpy(outputs[part]))
    both = np.cov(np.concatenate([outputs, inputs], axis=1).T, bias=True)
    np.testing.assert_allclose(moments.input_covariance().numpy(), both[3:, 3:], atol=1e-12)
    np.testing.assert_allclose(moments.cross_covariance().numpy(), both[:3, 3:], atol=1e-12)
    np.testing.assert_allclose(moments.input_mean.numpy(), inputs.mean(0))
    np.testing.assert_allclose(moments.output_mean.numpy(), outputs.mean(0))
    assert moments.output_variance() == pytest.approx(np.trace(both[:3, :3]))
    assert moments.count == 50


def test_sums_are_float64_whatever_the_samples():
    moments = CrossMoments.zeros(2, 2)
    moments.add(torch.ones(3, 2), torch.ones(3, 2))
    assert moments.cross.dtype == moments.input_square.dtype == torch.float64


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no samples"):
        _ = CrossMoments.zeros(2, 2).input_mean
    with pytest.raises(ValueError, match=r"outputs \(4, 2\)"):
        CrossMoments.zeros(3, 2).add(torch.ones(5, 3), torch.ones(4, 2))
