import math

import pytest
import torch

from fewfold.linalg.finite import is_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_one_bad_number_is_found(bad, dtype):
    numbers = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    if bad is not None:
        numbers[3, 17] = bad
    assert is_finite(numbers) == (bad is None)
    assert is_finite(numbers.t().requires_grad_()) == (bad is None)


def test_nothing_and_the_largest_number_are_finite():
    assert is_finite(torch.empty(0, 4))
    assert is_finite(torch.full((5,), torch.finfo(torch.float32).max))  # whose sum is not
