"""Carving: which number of the table is which number of a weight, gradients, and what is kept between passes."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fewfold.methods.embedding_sharing.carve import carve
from fewfold.methods.embedding_sharing.modules import CarvedLinear
from fewfold.methods.embedding_sharing.slots import Slot, allocate, columns_of
from fewfold.methods.embedding_sharing.store import CarvingStore

ROWS, WIDTH, HIDDEN, INNER = 23, 5, 8, 12
SHAPES = {"query": (HIDDEN, HIDDEN), "up": (HIDDEN, INNER), "down": (INNER, HIDDEN)}


def store(expansion=True, order="packed", dtype=torch.float64, padding_idx=None):
    columns = None if expansion else 14
    width = WIDTH if expansion else columns
    slots = allocate(SHAPES, ROWS, order, columns)
    found = CarvingStore(
        ROWS, width, ROWS, slots, max(slot.end for slot in slots.values()) if expansion else 0, padding_idx=padding_idx
    )
    for parameter in found.parameters():
        nn.init.normal_(parameter)
    return found.to(dtype)


def naive(owner, name):
    """The whole expanded table in numpy, and the weight number by number, as the figure of the paper has it."""
    table = owner.table.weight.detach().double().numpy()
    if owner.expansion is not None:
        table = table @ owner.expansion.weight.detach().double().numpy().T
        table = table + owner.expansion.bias.detach().double().numpy()
    slot = owner.slots[name]
    rows, columns = slot.shape
    weight = np.empty(slot.shape)
    for i in range(rows):
        for j in range(columns):
            k = i * columns + j
            weight[i, j] = table[k // slot.columns, slot.offset + k % slot.columns]
    return weight


class Net(nn.Module):
    """Six maps, two a slot."""

    def __init__(self, owner):
        super().__init__()
        self.owner = owner
        self.layers = nn.ModuleList(CarvedLinear(*SHAPES[name], True, owner, name) for name in (*SHAPES, *SHAPES)).to(
            owner.table.weight.dtype
        )
        for layer in self.layers:
            nn.init.normal_(layer.bias, std=0.1)

    def forward(self, states, checkpointed=None):
        for layer in self.layers:
            if checkpointed is None:
                states = torch.tanh(layer(states))
            else:
                states = checkpoint(lambda x, one=layer: torch.tanh(one(x)), states, use_reentrant=checkpointed)
        return states


def dense(net, states, whole=None):
    """The same with weights cut out of the whole expanded table by torch's own operations."""
    owner = net.owner
    table = owner.table.weight
    whole = table if owner.expansion is None else table @ owner.expansion.weight.t() + owner.expansion.bias
    for layer in net.layers:
        slot = owner.slots[layer.slot]
        weight = whole[:, slot.offset : slot.end].reshape(-1)[: slot.numel].reshape(slot.shape)
        states = torch.tanh(states @ weight + layer.bias)
    return states


def gradients(net):
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def reference_gradients(net, *inputs):
    net.zero_grad()
    sum((dense(net, states) ** 2).sum() for states in inputs).backward()
    found = gradients(net)
    net.zero_grad()
    return found


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_the_example_of_the_paper():
    assert [columns_of((4, 4), 10), columns_of((5, 5), 10)] == [2, 3]
    assert [10 * columns_of((4, 4), 10) - 16, 10 * columns_of((5, 5), 10) - 25] == [4, 5]
    table = torch.arange(80.0).view(10, 8)
    slots = allocate({"a": (4, 4), "b": (5, 5)}, 10, "reference", 8)
    assert (slots["a"].offset, slots["b"].offset) == (6, 3)
    expected = [[10 * (k // 2) * 0 + 8 * (k // 2) + 6 + k % 2 for k in range(4 * i, 4 * i + 4)] for i in range(4)]
    assert carve(slots["a"], table).tolist() == expected
    expected = [[8 * (k // 3) + 3 + k % 3 for k in range(5 * i, 5 * i + 5)] for i in range(5)]
    assert carve(slots["b"], table).tolist() == expected


def test_orders_and_too_few_columns():
    packed = allocate(SHAPES, ROWS)
    assert [(s.offset, s.columns) for s in packed.values()] == [(0, 3), (3, 5), (8, 5)]
    reference = allocate(SHAPES, ROWS, "reference", 15)
    assert [(s.offset, s.columns) for s in reference.values()] == [(12, 3), (7, 5), (2, 5)]
    with pytest.raises(ValueError, match="take 13 columns of 23 numbers, and there are 12"):
        allocate(SHAPES, ROWS, columns=12)
    with pytest.raises(ValueError, match="does not fit"):
        CarvingStore(ROWS, WIDTH, ROWS, {"a": Slot((8, 8), 11, 3)}, 13)


@pytest.mark.parametrize("order", ["packed", "reference"])
@pytest.mark.parametrize("expansion", [True, False])
def test_weights_are_blocks_of_the_whole_table(expansion, order):
    owner = store(expansion, order)
    for name in SHAPES:
        weight = owner(name)
        np.testing.assert_allclose(weight.detach().numpy(), naive(owner, name), rtol=1e-12, atol=1e-12)
        block = weight._base
        assert block.shape[0] * block.shape[1] == ROWS * owner.slots[name].columns
        assert weight.data_ptr() == block.data_ptr()
        assert weight.is_contiguous()
        assert owner(name) is weight


@pytest.mark.parametrize("order", ["packed", "reference"])
@pytest.mark.parametrize("expansion", [True, False])
def test_gradients_equal_those_of_the_whole_table(expansion, order):
    net = Net(store(expansion, order))
    states = torch.randn(4, HIDDEN, dtype=torch.float64)
    expected = reference_gradients(net, states)
    out = net(states)
    torch.testing.assert_close(out, dense(net, states), rtol=1e-12, atol=1e-12)
    (out**2).sum().backward()
    assert_close(gradients(net), expected)


def test_gradients_of_gradients():
    owner = store()
    leaves = [owner.table.weight, owner.expansion.weight, owner.expansion.bias]

    def weight(table, projection, bias):
        return carve(owner.slots["up"], table, projection, bias, spent=lambda: None)

    assert torch.autograd.gradcheck(weight, leaves)
    assert torch.autograd.gradgradcheck(weight, leaves)


@pytest.mark.parametrize("expansion", [True, False])
def test_two_passes_share_a_carve_and_each_runs_backward_by_itself(expansion):
    net = Net(store(expansion))
    first, second = torch.randn(2, 4, HIDDEN, dtype=torch.float64)
    expected = reference_gradients(net, first, second)
    one, two = net(first), net(second)
    kept = {name: carved.weight for name, carved in net.owner._carved.items()}
    assert len(kept) == 3
    (one**2).sum().backward()
    assert not net.owner._carved
    (two**2).sum().backward()
    assert_close(gradients(net), expected)
    (net(first) ** 2).sum().backward()  # carved anew, as a backward pass has been
    assert all(net.owner._carved.get(name) is None for name in kept)
    assert_close(gradients(net), reference_gradients_sum(net, expected, first))


def reference_gradients_sum(net, expected, states):
    kept = gradients(net)
    more = reference_gradients(net, states)
    for parameter, value in zip(net.parameters(), kept.values(), strict=True):
        parameter.grad = value
    return {name: expected[name] + more[name] for name in expected}


def test_backward_twice_with_retained_graph():
    net = Net(store())
    states = torch.randn(4, HIDDEN, dtype=torch.float64)
    expected = reference_gradients(net, states)
    loss = (net(states) ** 2).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert_close(gradients(net), {name: 2 * value for name, value in expected.items()})


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1),
        lambda p: torch.optim.AdamW(p, 0.05, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.05, fused=True),
        lambda p: _DataSgd(p, {"lr": 0.1}),
    ],
    ids=["sgd", "foreach", "fused", "writes through .data"],
)
@pytest.mark.parametrize("expansion", [True, False])
def test_steps_are_seen(expansion, optimizer):
    net = Net(store(expansion))
    twin = copy.deepcopy(net)
    states = torch.randn(4, HIDDEN, dtype=torch.float64)
    runs = [(net, net.__call__, optimizer(net.parameters())), (twin, lambda x: dense(twin, x), None)]
    runs[1] = (*runs[1][:2], optimizer(twin.parameters()))
    losses = [[], []]
    for number, (model, run, steps) in enumerate(runs):
        for turn in range(4):
            with torch.no_grad():
                losses[number].append(float((run(states) ** 2).sum()))
            loss = (run(states) ** 2).sum()
            loss.backward()
            losses[number].append(float(loss.detach()))
            if turn % 2:  # gradients of two passes are summed
                steps.step()
                steps.zero_grad()
        del model
    assert losses[0][0] != losses[0][-1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)


class _DataSgd(torch.optim.Optimizer):
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=-group["lr"])


def test_a_changed_table_is_refused_by_backward():
    net = Net(store())
    loss = net(torch.randn(4, HIDDEN, dtype=torch.float64)).sum()
    with torch.no_grad():
        net.owner.table.weight.mul_(2)
    with pytest.raises(RuntimeError, match="before the optimizer's step"):
        loss.backward()


@pytest.mark.parametrize("expansion", [True, False])
def test_whatever_changes_is_carved_anew(expansion):
    net = Net(store(expansion, dtype=torch.float32)).eval()
    owner, states = net.owner, torch.randn(4, HIDDEN)

    def check():
        expected = dense(net, states).detach()
        with torch.no_grad():
            torch.testing.assert_close(net(states), expected, rtol=1e-5, atol=1e-6)
            assert owner("up") is owner("up")
        torch.testing.assert_close(net(states), expected, rtol=1e-5, atol=1e-6)
        return expected

    first = check()
    with torch.no_grad():
        owner.table.weight.mul_(1.5)
    second = check()
    owner.load_state_dict({name: 0.7 * value for name, value in owner.state_dict().items()})
    third = check()
    owner.table.weight = nn.Parameter(owner.table.weight.detach() + 0.2)
    fourth = check()
    assert len({float(value.sum()) for value in (first, second, third, fourth)}) == 4
    net.to(torch.float64)
    assert owner("up").dtype == torch.float64
    net.to(torch.float32)
    owner.requires_grad_(False)
    assert not owner("up").requires_grad
    owner.requires_grad_(True)
    assert owner("up").requires_grad
    with torch.inference_mode():
        inside = owner("up")
    with torch.no_grad():
        assert owner("up") is not inside
        check()


def test_autocast_carves_in_its_dtype_and_gradients_stay_close():
    net = Net(store(dtype=torch.float32))
    with torch.no_grad():
        for parameter in net.owner.parameters():  # so that rounding does not grow from map to map
            parameter.mul_(0.3)
    states = torch.randn(4, HIDDEN)
    expected = reference_gradients(net, states)
    with torch.autocast("cpu", torch.bfloat16):
        assert net.owner("up").dtype == torch.bfloat16
        (dense(net, states).float() ** 2).sum().backward()
        rival = gradients(net)
        net.zero_grad()
        loss = (net(states).float() ** 2).sum()
    assert net.owner("up").dtype == torch.float32
    loss.backward()
    for name, value in gradients(net).items():
        assert value.dtype == torch.float32
        error, least = ((found - expected[name]).norm() / expected[name].norm() for found in (value, rival[name]))
        assert error < 1.5 * least + 0.01, (name, float(error), float(least))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("expansion", [True, False])
def test_checkpointed_layers(expansion, reentrant):
    net = Net(store(expansion))
    states = torch.randn(4, HIDDEN, dtype=torch.float64, requires_grad=True)
    expected = reference_gradients(net, states)
    for _ in range(2):
        net.zero_grad()
        (net(states, reentrant) ** 2).sum().backward()
        assert_close(gradients(net), expected)


def test_one_carve_serves_a_checkpointed_pass(monkeypatch):
    net = Net(store())
    calls = []
    plain = CarvingStore._carve
    monkeypatch.setattr(
        CarvingStore, "_carve", lambda self, name, spent: calls.append(name) or plain(self, name, spent)
    )
    (net(torch.randn(4, HIDDEN, dtype=torch.float64), False) ** 2).sum().backward()
    assert sorted(calls) == sorted(SHAPES)


def test_the_graph_does_not_outlive_the_step():
    net = Net(store())
    (net(torch.randn(4, HIDDEN, dtype=torch.float64)) ** 2).sum().backward()
    assert not net.owner._carved


def test_saved_for_backward_holds_each_weight_once():
    net = Net(store())
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(torch.randn(1, HIDDEN, dtype=torch.float64))
    blocks = sum(8 * ROWS * slot.columns for slot in net.owner.slots.values())
    rest = sum(8 * (HIDDEN if layer.slot != "up" else INNER) * 2 for layer in net.layers)
    assert blocks <= sum(seen.values()) <= blocks + rest
    del out


def test_copies_carve_for_themselves():
    net = Net(store())
    states = torch.randn(4, HIDDEN, dtype=torch.float64)
    before = net(states)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin.layers[0].store is twin.owner
        assert twin.owner is not net.owner
        torch.testing.assert_close(twin(states), before, rtol=0, atol=0)
        with torch.no_grad():
            twin.owner.table.weight.zero_()
        assert not torch.equal(twin(states), before)
    torch.testing.assert_close(net(states), before, rtol=0, atol=0)


def test_padding_is_carved_and_its_look_up_takes_no_gradient():
    owner = store(padding_idx=2)
    rows = owner.table(torch.tensor([2, 2, 3]))
    rows.sum().backward()
    assert float(owner.table.weight.grad[2].abs().sum()) == 0
    owner.zero_grad()
    owner("query").sum().backward()
    expected = owner.expansion.weight[owner.slots["query"].offset :][:3].sum(0)
    torch.testing.assert_close(owner.table.weight.grad[2], expected)


def test_more_rows_change_no_weight_and_fewer_are_refused():
    owner = store()
    before = {name: owner(name).detach().clone() for name in SHAPES}
    owner.resize(ROWS + 4, None)
    assert owner.table.weight.shape == (ROWS + 4, WIDTH)
    for name, weight in before.items():
        torch.testing.assert_close(owner(name), weight, rtol=0, atol=0)
    owner("up").sum().backward()
    assert float(owner.table.weight.grad[ROWS:].abs().sum()) == 0
    owner.resize(ROWS + 1, None)
    with pytest.raises(ValueError, match=f"first {ROWS} rows of the table: {ROWS - 1} rows"):
        owner.resize(ROWS - 1, None)


def test_compiled_layers_equal_eager():
    net = Net(store(dtype=torch.float32))
    states = torch.randn(4, HIDDEN)
    expected = net(states)
    compiled = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(compiled(states), expected, rtol=1e-5, atol=1e-6)
    reference = reference_gradients(net, states)
    (compiled(states) ** 2).sum().backward()
    for name, value in gradients(net).items():
        torch.testing.assert_close(value, reference[name], rtol=1e-3, atol=1e-5)


def test_plain_functions_agree():
    owner = store()
    states = torch.randn(3, HIDDEN, dtype=torch.float64)
    layer = CarvedLinear(HIDDEN, INNER, True, owner, "up").double()
    expected = F.linear(states, layer.assembled_weight(), layer.bias)
    torch.testing.assert_close(layer(states), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"slot up is \(8, 12\), the weight \(12, 8\)"):
        CarvedLinear(INNER, HIDDEN, True, owner, "up")
