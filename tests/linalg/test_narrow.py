import numpy as np
import pytest
import torch

from fewfold.linalg.narrow import FEWEST, MOST, NUMBERS, narrow_linear


@pytest.mark.parametrize("rows", [1, FEWEST, 17, MOST, MOST + 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block", [5, 4, 10])
def test_either_order_gives_the_product(rows, bias, block, monkeypatch):
    monkeypatch.setattr("fewfold.linalg.narrow.BLOCK", block)
    monkeypatch.setattr("fewfold.linalg.narrow.NUMBERS", 120)
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(1, rows, 12, generator=generator)
    weight, added = torch.randn(10, 12, generator=generator), torch.randn(10, generator=generator)
    wanted = inputs.numpy().astype(np.float64) @ weight.numpy().astype(np.float64).T
    with torch.no_grad():
        found = narrow_linear(inputs, weight, added if bias else None)
    assert found.shape == (1, rows, 10)
    assert found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), wanted + bias * added.numpy(), atol=1e-5)


def test_large_matrices_are_turned_and_small_ones_are_not(monkeypatch):
    calls = []
    monkeypatch.setattr("fewfold.linalg.narrow.F.linear", lambda *given: calls.append(given) or given[0] @ given[1].t())
    large, small, inputs = torch.zeros(NUMBERS // 1024, 1024), torch.zeros(4, 1024), torch.zeros(16, 1024)
    with torch.no_grad():
        narrow_linear(inputs, large, None)
        assert not calls
        narrow_linear(inputs, small, None)
        narrow_linear(inputs[:2], large, None)
        narrow_linear(inputs, large.t().contiguous().t(), None)
        narrow_linear(inputs.double(), large.double(), None)
    narrow_linear(inputs, large, None)  # gradients may be wanted
    assert len(calls) == 5
