"""Coded matrices: what they stand for, what they compute, and what the file holds."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fewfold import CheckpointError
from fewfold.stored import StoredDtype
from fewfold.stored.codes import CodedMatrix
from fewfold.stored.stages import StageSpec, coded_bytes, pack_integers, packed_integers_length, unpack_integers

FORMATS = {
    "own": [StageSpec(4, 7)],
    "shared": [StageSpec(3, 9, shared=True)],
    "cut": [StageSpec(5, 300)],
    "two stages": [StageSpec(4, 6), StageSpec(6, 5, shared=True)],
    "partial": [StageSpec(4, 6), StageSpec(3, 5, rows=9), StageSpec(12, 4, shared=True, rows=3)],
    "only partial": [StageSpec(4, 6, rows=11)],
    "none covered": [StageSpec(4, 6), StageSpec(4, 6, rows=0)],
    "nothing": [StageSpec(4, 6, rows=0)],
}
ROWS, COLUMNS = 23, 12


def made(name, scales=True, stored="fp32", dtype=torch.float64, rows=ROWS):
    torch.manual_seed(1)
    coded = CodedMatrix(rows, COLUMNS, FORMATS[name], scales, StoredDtype(stored, 8))
    coded.reset_parameters(std=1.0, seed=3)
    codes = [torch.randint(s.words, (s.covered(rows), s.positions(COLUMNS))) for s in FORMATS[name]]
    coded.set_codes_(codes, None if coded.rank is None else torch.randperm(rows))
    if scales:
        nn.init.uniform_(coded.scales, 0.5, 2.0)
    for leaf in coded.leaves():
        leaf.round_()
    coded.round_()
    return coded.to(dtype)


def naive(coded):
    """The matrix, number by number."""
    dense = np.zeros((coded.rows, coded.columns))
    books = [leaf().detach().double().numpy() for leaf in coded.leaves()]
    for index, stage in enumerate(coded.stages):
        codes = getattr(coded, f"codes_{index}").long().numpy()
        for row in range(coded.rows):
            place = row if stage.rows is None else int(coded.rank[row])
            if place >= len(codes):
                continue
            for column in range(coded.columns):
                position, within = divmod(column, stage.width)
                first = 0 if stage.shared else position * stage.words
                dense[row, column] += books[index][first + codes[place, position], within]
    return dense * coded.scales.detach().double().numpy()[:, None] if coded.scales is not None else dense


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_matrix_rows_and_products_are_those_of_the_format(name, scales):
    coded = made(name, scales)
    dense = naive(coded)
    np.testing.assert_allclose(coded().detach().numpy(), dense, atol=1e-12)
    ids = torch.tensor([[0, 22, 3], [3, 7, 11]])
    np.testing.assert_allclose(coded(ids).detach().numpy(), dense[ids.numpy()], atol=1e-12)
    for batch in ((), (0,), (1,), (3,), (2, 5), (300,)):
        states = torch.randn(*batch, COLUMNS, dtype=torch.float64)
        expected = states.numpy() @ dense.T
        np.testing.assert_allclose(coded(states).detach().numpy(), expected, atol=1e-11)
        with torch.inference_mode():
            np.testing.assert_allclose(coded(states).numpy(), expected, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "nothing"])
def test_gradients_are_slices_grouped_by_code(name):
    coded = made(name)
    states = torch.randn(6, COLUMNS, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(6, ROWS, dtype=torch.float64)
    with torch.inference_mode():
        coded(states[:1])  # what an inference kept must not disturb training
    (coded(states) * wanted).sum().backward()
    table = wanted.t().numpy() @ states.detach().numpy()  # gradient of the dense matrix
    np.testing.assert_allclose(states.grad.numpy(), wanted.numpy() @ naive(coded), atol=1e-11)
    scales = coded.scales.detach().numpy()
    unscaled = naive(coded) / scales[:, None]
    np.testing.assert_allclose(coded.scales.grad.numpy(), (table * unscaled).sum(1), atol=1e-11)
    for index, (stage, leaf) in enumerate(zip(coded.stages, coded.leaves(), strict=True)):
        codes, grouped = getattr(coded, f"codes_{index}").long().numpy(), np.zeros(tuple(leaf.weight.shape))
        for row in range(ROWS):
            place = row if stage.rows is None else int(coded.rank[row])
            for column in range(COLUMNS if place < len(codes) else 0):
                position, within = divmod(column, stage.width)
                first = 0 if stage.shared else position * stage.words
                grouped[first + codes[place, position], within] += table[row, column] * scales[row]
        found = leaf.weight.grad if leaf.weight.grad is not None else torch.zeros_like(leaf.weight)
        np.testing.assert_allclose(found.numpy(), grouped, atol=1e-11)
    by_chain = [p.grad for p in coded.parameters()]
    coded.zero_grad()
    (torch.nn.functional.linear(states.detach(), coded()) * wanted).sum().backward()
    for one, other in zip(by_chain, (p.grad for p in coded.parameters()), strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    coded.zero_grad()
    ids = torch.tensor([2, 5, 2])
    coded(ids).sum().backward()
    coefficient = np.bincount(ids.numpy(), minlength=ROWS)[:, None] * np.ones(COLUMNS)
    np.testing.assert_allclose(coded.scales.grad.numpy(), (coefficient * unscaled).sum(1), atol=1e-11)


@pytest.mark.parametrize("width", [1, 4, 12])
def test_identity_codes_are_the_dense_table(width):
    table = torch.randn(9, 12)
    coded = CodedMatrix(9, 12, [StageSpec(width, 9)])
    coded.codebooks["0"].weight.data = table.unflatten(1, (-1, width)).transpose(0, 1).reshape(-1, width).clone()
    coded.set_codes_([torch.arange(9)[:, None].expand(9, 12 // width)])
    ids = torch.tensor([4, 0, 8])
    assert torch.equal(coded(), table)
    assert torch.equal(coded(ids), table[ids])
    states = torch.randn(3, 12)
    torch.testing.assert_close(coded(states), states @ table.t(), rtol=1e-5, atol=1e-6)
    coded(ids).sum().backward()
    assert coded.codebooks["0"].weight.grad.sum() == 3 * 12


def test_fresh_codes_use_every_word_equally_and_leave_the_generator():
    coded = CodedMatrix(100, 12, [StageSpec(4, 30)])
    torch.manual_seed(0)
    coded.reset_parameters(seed=5)
    state = torch.get_rng_state()
    again = CodedMatrix(100, 12, [StageSpec(4, 30)])
    torch.manual_seed(0)
    again.reset_parameters(seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(coded.codes_0, again.codes_0)
    for position in coded.codes_0.t():
        usage = np.bincount(position.numpy(), minlength=30)
        assert usage.max() - usage.min() <= 1
    alike = (coded.codes_0[0] == coded.codes_0).all(1)
    assert torch.equal(coded().detach()[alike], coded().detach()[:1].expand(int(alike.sum()), -1))


@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_file_is_as_large_as_reckoned_and_loads(name, stored, tmp_path):
    from safetensors.torch import load_file, save_file

    coded = made(name, stored=stored, dtype=torch.float32)
    state = coded.state_dict()
    save_file(state, tmp_path / "codes.safetensors")
    held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert held == coded.bytes == coded_bytes(ROWS, COLUMNS, FORMATS[name], True, StoredDtype(stored, 8))
    assert 0 <= (tmp_path / "codes.safetensors").stat().st_size - held < 2000
    other = CodedMatrix(ROWS, COLUMNS, FORMATS[name], True, StoredDtype(stored, 8))
    other.load_state_dict(load_file(tmp_path / "codes.safetensors"))
    assert torch.equal(other(), coded())
    other.pack_()  # as the skeleton that a checkpoint is loaded into
    assert {key: value.shape for key, value in other.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert torch.equal(other(), coded())
    other.load_state_dict(state)
    other.unpack_()
    assert torch.equal(other(), coded())
    with torch.device("meta"):
        empty = CodedMatrix(ROWS, COLUMNS, FORMATS[name], True, StoredDtype(stored, 8))
    assert {key: value.shape for key, value in empty.state_dict().items()} == {k: v.shape for k, v in state.items()}


def test_streams_above_sixteen_bits():
    values = torch.randint(0, 2**18, (1001,), dtype=torch.int32)
    packed = pack_integers(values, 18)
    assert packed.shape == (packed_integers_length(1001, 18),) == (2002 + 251,)
    assert torch.equal(unpack_integers(packed, 18, (7, 143)), values.view(7, 143))


def test_damaged_codes_are_named():
    coded = made("partial")
    state = coded.state_dict()
    bad = {**state, "codes_0": torch.full_like(state["codes_0"], 255)}
    with pytest.raises(CheckpointError, match="codes_0 holds 7, a code outside the pool of 6 words"):
        coded.load_state_dict(bad)
    with pytest.raises(CheckpointError, match=r"codes_1 is torch.uint8 \(3,\)"):
        coded.load_state_dict({**state, "codes_1": state["codes_1"][:3]})
    with pytest.raises(CheckpointError, match="rank holds 31, a code outside the pool of rows 0…22"):
        coded.load_state_dict({**state, "rank": torch.full_like(state["rank"], 255)})
    twice = pack_integers(torch.zeros(ROWS, dtype=torch.int32), 5)
    with pytest.raises(CheckpointError, match="one place to several rows"):
        coded.load_state_dict({**state, "rank": twice})
    holder = nn.ModuleDict({"head": coded})
    coded.pack_()
    coded.codes_0 = torch.full_like(coded.codes_0, 255)
    from fewfold import unpack

    with pytest.raises(CheckpointError, match=r"head\.codes_0 holds 7"):
        unpack(holder)
    with pytest.raises(ValueError, match="codes_0 holds 9, a code outside the pool of 7 words"):
        made("own").set_codes_([torch.full((ROWS, 3), 9)])
    with pytest.raises(ValueError, match="65537 words"):
        StageSpec(4, 65537)


@pytest.mark.parametrize("name", ["own", "partial"])
def test_copies_casts_and_training_steps(name):
    coded = made(name, dtype=torch.float32)
    expected, states = coded().detach(), torch.randn(4, COLUMNS)
    with torch.no_grad():
        coded(states)
    for twin in (copy.deepcopy(coded), pickle.loads(pickle.dumps(coded))):
        assert torch.equal(twin(), expected)
        twin.codebooks["0"].weight.data.add_(1.0)
        assert torch.equal(coded(), expected)
    buffer = io.BytesIO()
    torch.save(coded.state_dict(), buffer)
    for dtype, accuracy in ((torch.bfloat16, 0.03), (torch.float16, 4e-3)):
        small = copy.deepcopy(coded).to(dtype)
        assert not small.codes_0.is_floating_point()
        assert torch.equal(small.codes_0, coded.codes_0)
        with torch.no_grad():
            found = small(states.to(dtype))
            wanted = states.to(dtype).double() @ torch.from_numpy(naive(small)).t()
        assert found.dtype == dtype
        error = (found.double() - wanted).abs().max() / wanted.abs().max()
        assert error < accuracy
        (small(states.to(dtype)).float().sum() + small(torch.tensor([1])).float().sum()).backward()
        assert all(p.grad is None or p.grad.dtype == dtype for p in small.parameters())
    codes = [getattr(coded, f"codes_{index}").clone() for index in range(len(coded.stages))]
    with torch.no_grad():
        before = coded(states)
        coded.set_codes_([torch.zeros_like(own) for own in codes], coded.rank)
        assert not torch.allclose(coded(states), before)
        torch.testing.assert_close(coded(states), states @ coded().t())


def test_codebooks_of_others_are_read_and_not_saved():
    one = made("own", dtype=torch.float32)
    leaf = one.codebooks["0"]
    two = CodedMatrix(5, COLUMNS, [StageSpec(4, 7), StageSpec(12, 2)], codebooks=[leaf, None])
    assert list(dict(two.named_parameters())) == ["codebooks.1.weight"]
    assert set(two.state_dict()) == {"codes_0", "codes_1", "codebooks.1.weight"}
    assert two.bytes == sum(t.numel() * t.element_size() for t in two.state_dict().values())
    both = copy.deepcopy(nn.ModuleList([one, two]))
    both[0].codebooks["0"].weight.data.zero_()
    assert torch.equal(both[1]()[0], both[1].codebooks["1"].weight[0])
    assert next(iter(both[1].leaves())) is both[0].codebooks["0"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [31, 10])
def test_resizing_keeps_rows_and_adds_the_nearest_words(name, rows):
    coded = made(name)
    before = coded().detach()
    coded.resize_(rows)
    kept = min(rows, ROWS)
    assert torch.equal(coded()[:kept], before[:kept])
    np.testing.assert_allclose(coded().detach().numpy(), naive(coded), atol=1e-12)
    states = torch.randn(2, COLUMNS, dtype=torch.float64)
    torch.testing.assert_close(coded(states), states @ coded().t())
    again = CodedMatrix(rows, COLUMNS, coded.stages, True).double()
    again.load_state_dict(coded.state_dict())
    torch.testing.assert_close(again(), coded(), rtol=2e-3, atol=1e-3)  # scales of new rows are rounded to fp16
    if rows > ROWS and name == "own":
        scale = coded.scales[-1].detach()
        words = coded.codebooks["0"].weight.detach().view(3, 7, 4)
        every = torch.cartesian_prod(*[torch.arange(7)] * 3)
        distances = (words[torch.arange(3), every].flatten(1) - before.mean(0) / scale).square().sum(1)
        free = (every[:, None] != coded.codes_0[:ROWS]).any(-1).all(1)
        nearest = every[free][distances[free].argsort()][: rows - ROWS]
        assert coded.codes_0[ROWS:].tolist() == nearest.tolist()
        torch.testing.assert_close(coded()[ROWS:], words[torch.arange(3), nearest].flatten(1) * scale)


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name][0].rows is None])
@pytest.mark.parametrize("rows", [24, 200])
def test_new_rows_equal_no_other_row_and_training_moves_them_apart(name, rows):
    coded = made(name, dtype=torch.float32)
    before = coded().detach().clone()
    coded.resize_(rows)
    full = torch.cat([own for own, s in zip(coded._buffers.values(), FORMATS[name], strict=False) if s.rows is None], 1)
    assert len(full[ROWS:].unique(dim=0)) == rows - ROWS
    assert not bool((full[ROWS:, None] == full[:ROWS]).all(-1).any())
    assert torch.equal(coded()[:ROWS], before)
    if rows == 24 or name == "cut":  # of its last words only two numbers of five are seen
        return
    apart = (coded()[-1] - coded()[-2]).norm()
    target = torch.zeros(2, COLUMNS)
    target[0] = 3.0
    optimizer = torch.optim.SGD(coded.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        (coded(torch.tensor([rows - 1, rows - 2])) - target).square().sum().backward()
        optimizer.step()
    assert (coded()[-1] - coded()[-2]).norm() > apart


def balanced(shared, rows=50, words=12):
    coded = CodedMatrix(rows, COLUMNS, [StageSpec(4, words, shared)])
    torch.manual_seed(0)
    drawn = (
        torch.randperm(rows * 3) % words if shared else torch.stack([torch.randperm(rows) % words for _ in "abc"], 1)
    )
    coded.set_codes_([drawn.view(rows, 3)])
    coded.codebooks["0"].weight.data.normal_()
    return coded


@pytest.mark.parametrize("shared", [False, True])
def test_new_rows_of_codes_in_balance_draw_the_least_used_words(shared):
    coded, same = balanced(shared), balanced(shared)
    with torch.no_grad():
        same.codebooks["0"].weight.mul_(-0.3)  # trained further: the codes alone decide
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for more in (3, 8, 30):
        before = coded.codes_0.clone()
        coded.resize_(len(before) + more)
        same.resize_(len(before) + more)
        assert torch.equal(coded.codes_0[: len(before)], before)
        assert torch.equal(coded.codes_0, same.codes_0)
        fresh = coded.codes_0[len(before) :]
        assert len(fresh.unique(dim=0)) == more
        assert not bool((fresh[:, None] == before).all(-1).any())
        for pool in [coded.codes_0.flatten()] if shared else coded.codes_0.T:
            used = torch.bincount(pool.int(), minlength=12)
            assert used.max() - used.min() <= 1
    assert torch.equal(state, torch.get_rng_state())


def test_rows_are_told_apart_as_far_as_there_are_codes():
    coded = CodedMatrix(3, 4, [StageSpec(2, 3)])
    coded.codebooks["0"].weight.data.normal_()
    coded.set_codes_([torch.tensor([[0, 0], [1, 1], [2, 2]])])
    coded.resize_(9)
    assert len(coded.codes_0.unique(dim=0)) == 9
    coded.resize_(15)
    assert len(coded.codes_0.unique(dim=0)) == 9
    assert len(coded.codes_0[9:].unique(dim=0)) == 6


def test_codes_that_are_passing_through_are_never_taken_for_each_other():
    coded, states = CodedMatrix(200, 64, [StageSpec(4, 16)]).eval(), torch.randn(2, 64)
    coded.reset_parameters(std=1.0)
    codes = coded.codes_0.clone()
    with torch.no_grad():  # each temporary is freed before the next is made, often at the same address
        found = [functional_call(coded, {"codes_0": codes.roll(turn, 0)}, (states,)) for turn in range(20)]
        for turn, products in enumerate(found):
            torch.testing.assert_close(products, states @ coded.matrix().roll(turn, 0).T, rtol=1e-4, atol=1e-4)
