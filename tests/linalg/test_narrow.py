import numpy as np
import pytest
import torch

from fewfold.linalg.narrow import FEWEST, MOST, NUMBERS, NarrowLinear, narrow_linear


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


def test_weights_of_other_kinds_are_left_to_their_own_product():
    class Counted(torch.Tensor):
        """A quantizer's weight: it answers for ``F.linear`` and for nothing else."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            name = getattr(function, "__name__", "")
            if name == "linear":
                return torch.full((16, 3), 7.0)
            assert name in ("__get__", "__set__", "detach", "requires_grad_"), f"{name} reached the weight"
            return super().__torch_function__(function, types, args, kwargs or {})

    linear = NarrowLinear(4, 3, bias=False)
    linear.weight = torch.nn.Parameter(torch.zeros(NUMBERS // 1024, 1024).as_subclass(Counted), requires_grad=False)
    with torch.no_grad():
        assert linear(torch.zeros(16, 1024)).eq(7).all()


def test_the_module_turns_too(monkeypatch):
    monkeypatch.setattr("fewfold.linalg.narrow.NUMBERS", 12)
    torch.manual_seed(0)
    linear, inputs = NarrowLinear(4, 3), torch.randn(2, 8, 4)
    wanted = inputs.double() @ linear.weight.double().t() + linear.bias.double()
    monkeypatch.setattr("fewfold.linalg.narrow.F.linear", None)
    with torch.no_grad():
        torch.testing.assert_close(linear(inputs).double(), wanted, rtol=1e-5, atol=1e-6)
