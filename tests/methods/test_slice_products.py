"""Products with a bias that rides along: against float64 sums written out."""

import numpy as np
import pytest
import torch

from fewfold.methods.slices.products import bias_below, product, product_and_one, product_plus


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_two_products_and_a_bias(lead, with_bias):
    generator = torch.Generator().manual_seed(0)
    states, first, second = (torch.randn(s, generator=generator) for s in ((*lead, 7), (7, 3), (3, 11)))
    bias = torch.randn(11, generator=generator) if with_bias else None
    expected = states.double().numpy() @ first.double().numpy() @ second.double().numpy()
    expected = expected + (bias.double().numpy() if bias is not None else 0)
    read = product_and_one(first)(states)
    assert read.shape == (*lead, 4)
    assert (read[..., -1] == 1).all()
    np.testing.assert_allclose(product(bias_below(second, bias))(read), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(product_plus(second, bias)(product(first)(states)), expected, rtol=1e-5, atol=1e-5)


def test_a_bias_takes_the_dtype_of_its_matrix():
    found = bias_below(torch.zeros(2, 3, dtype=torch.bfloat16), torch.ones(3))
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]
