"""Stored leaves: what is kept, what is computed, and the way between the two."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fewfold import CheckpointError, RecipeError, pack, unpack
from fewfold.stored import StoredDtype, StoredEmbedding, StoredLinear, make_embedding, make_linear

ALL = ["fp16", "bf16", "int8", "int4", "int3", "int2"]
INTEGER = ["int8", "int4", "int3", "int2"]


def grid_values(state, bits, group, columns):
    """Dequantize packed codes with numpy: little-endian bits, codes shifted by half the range."""
    codes, scales = state["codes"].numpy(), state["scales"].double().numpy()
    rows = []
    for row in codes:
        flags = np.unpackbits(row, bitorder="little")
        values = flags[: columns * bits].reshape(columns, bits) @ (1 << np.arange(bits))
        rows.append(values.astype(np.float64) - 2 ** (bits - 1))
    spread = np.repeat(scales, group, axis=1)[:, :columns] if scales.shape[1] > 1 else scales
    return np.stack(rows) * spread


@pytest.mark.parametrize("name", INTEGER)
def test_the_kept_form_stands_for_the_float_weight(name):
    stored = StoredDtype(name, 8)
    linear = make_linear(21, 5, True, stored)
    linear.round_()
    state = linear.state_dict()
    assert set(state) == {"codes", "scales", "bias"}
    expected = grid_values(state, stored.bits, 8, 21)
    np.testing.assert_allclose(linear.weight.detach().numpy(), expected, atol=1e-6)
    states = torch.randn(3, 21)
    out = states.double().numpy() @ expected.T + linear.bias.detach().double().numpy()
    np.testing.assert_allclose(linear(states).detach().numpy(), out, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_bytes_are_as_reckoned_and_loading_gives_it_back(name, kind):
    stored = StoredDtype(name, 8)
    make = {
        "linear": lambda: make_linear(21, 5, False, stored),
        "embedding": lambda: make_embedding(5, 21, None, stored),
    }
    leaf = make[kind]()
    leaf.round_()
    state = leaf.state_dict()
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) == stored.matrix_bytes(5, 21)
    other = make[kind]()
    assert not torch.equal(other.weight, leaf.weight)
    other.load_state_dict(state)
    torch.testing.assert_close(other.weight, leaf.weight, rtol=0, atol=0)
    again = other.state_dict()
    assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", INTEGER)
def test_packing_computes_the_same_and_comes_back(name):
    stored = StoredDtype(name, 8)
    model = nn.ModuleDict({"linear": make_linear(21, 5, True, stored), "table": make_embedding(9, 21, 0, stored)})
    for leaf in model.values():
        leaf.round_()
    ids, states = torch.tensor([[0, 3], [8, 1]]), torch.randn(2, 21)
    rows, out = model["table"](ids), model["linear"](states)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    pack(model)
    assert [name for name, _ in model.named_parameters()] == ["linear.bias"]
    torch.testing.assert_close(model["table"](ids), rows, rtol=0, atol=1e-6)
    torch.testing.assert_close(model["linear"](states), out, rtol=0, atol=1e-6)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    twin = copy.deepcopy(model)
    unpack(model)
    assert {name for name, _ in model.named_parameters()} == {"linear.weight", "linear.bias", "table.weight"}
    torch.testing.assert_close(model["linear"](states), out, rtol=0, atol=1e-6)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    fresh = make_linear(21, 5, True, stored)
    fresh.load_state_dict(twin["linear"].state_dict())
    torch.testing.assert_close(fresh(states), out, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_packed_casts_change_products_and_not_scales(name):
    linear = make_linear(16, 5, True, StoredDtype(name, 8))
    linear.round_()
    expected = linear(torch.ones(1, 16)).detach()
    linear.pack_()
    scales = linear.scales.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        linear.to(dtype)
        assert linear.scales.dtype == scales.dtype
        assert torch.equal(linear.scales, scales)
        assert linear(torch.ones(1, 16, dtype=dtype)).dtype == dtype
    torch.testing.assert_close(linear(torch.ones(1, 16)), expected, rtol=1e-2, atol=1e-2)
    assert linear.to("meta").codes.is_meta


def test_a_trained_weight_is_rounded_anew():
    linear = make_linear(16, 5, False, StoredDtype("int8"))
    linear.round_()
    before = linear.state_dict()
    with torch.no_grad():
        linear.weight.mul_(-2)
    after = linear.state_dict()
    np.testing.assert_allclose(
        grid_values(after, 8, 16, 16), -2 * grid_values(before, 8, 16, 16), atol=3 * float(before["scales"].max())
    )
    assert not torch.equal(after["codes"], before["codes"])


def test_wrong_shapes_are_named():
    linear = make_linear(16, 5, False, StoredDtype("int4", 8))
    state = linear.state_dict()
    state["codes"] = state["codes"][:4]
    with pytest.raises(CheckpointError, match=r"codes.*5×16 matrix kept as int4"):
        linear.load_state_dict(state)


def test_plain_storage_makes_plain_modules():
    assert type(make_linear(3, 4, True, StoredDtype())) is nn.Linear
    assert type(make_embedding(3, 4, None, StoredDtype())) is nn.Embedding
    assert isinstance(make_linear(3, 4, True, StoredDtype("int8")), StoredLinear)
    assert isinstance(make_embedding(3, 4, 1, StoredDtype("bf16")), StoredEmbedding)
    assert "stored=int8" in repr(make_linear(3, 4, True, StoredDtype("int8")))


@pytest.mark.parametrize(("values", "message"), [(("int5",), "allowed are fp32"), (("int4", 1), "group_size=1")])
def test_unknown_stored_dtypes_are_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        StoredDtype(*values)


@pytest.mark.parametrize(
    ("name", "group", "shape", "expected"),
    [
        ("fp32", 32, (7, 10), 280),
        ("fp16", 32, (7, 10), 140),
        ("int8", 32, (7, 10), 7 * (10 + 4)),
        ("int4", 4, (7, 10), 7 * (5 + 3 * 2)),
        ("int3", 32, (7, 10), 7 * (4 + 2)),
        ("int2", 5, (7, 10), 7 * (3 + 2 * 2)),
    ],
)
def test_bytes_of_a_matrix(name, group, shape, expected):
    assert StoredDtype(name, group).matrix_bytes(*shape) == expected


@pytest.mark.parametrize("trains", [True, False])
def test_what_is_packed_comes_back_trained_as_it_was(trains):
    linear = make_linear(16, 5, True, StoredDtype("int8")).requires_grad_(trains)
    pack(linear)
    assert linear.trains is trains
    unpack(linear)
    assert linear.weight.requires_grad is linear.trains is trains
