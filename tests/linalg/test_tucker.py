import weakref
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from fewfold.linalg import tucker
from fewfold.linalg.tucker import Stack, decompose, mixed, rebuild, side_gram, slice_gram

FORCED = -1.0  # a tolerance that never ends the sweeps


def decaying(count, rows, columns, power=0.7, seed=0):
    """Slices whose three unfoldings all have decaying spectra, in bases that are not the unit vectors."""
    rng = np.random.default_rng(seed)
    core = rng.standard_normal((count, rows, columns))
    for axis, size in enumerate(core.shape):
        scale = (np.arange(size) + 1.0) ** -power
        turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
        core = np.moveaxis(np.tensordot(turn * scale, core, axes=(1, axis)), 0, axis)
    return torch.from_numpy(core).float()


def unfold(tensor, mode):
    return np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


def leading(matrix, count):
    return np.linalg.svd(matrix, full_matrices=False)[0][:, :count]


def times(tensor, matrix, mode):
    """``matrixᵀ`` times one mode."""
    return np.moveaxis(np.tensordot(matrix.T, tensor, axes=(1, mode)), 0, mode)


def sequential_hosvd(tensor, ranks, order):
    """Bases of the modes of ``order``, each from the SVD of the unfolding of what the ones before it left."""
    left, bases = tensor, {}
    for mode in order:
        bases[mode] = leading(unfold(left, mode), ranks[mode])
        left = times(left, bases[mode], mode)
    return bases


def projected(tensor, bases):
    for mode, basis in bases.items():
        tensor = times(tensor, basis @ basis.T, mode)
    return tensor


def relative(wanted, found):
    return float(np.linalg.norm(wanted - found) / np.linalg.norm(wanted))


def by_hand(found, stack, number=0):
    """The slices that a decomposition stands for, in float64 and one product at a time."""
    left, right = (found.factors[name].double().numpy() for name in (stack.left, stack.right))
    cores, mix = found.cores[number].double().numpy(), found.mixes[number]
    if mix is not None:
        cores = np.einsum("nk,kab->nab", mix.double().numpy(), cores)
    return np.stack([left @ core @ right.T for core in cores])


def projector(basis):
    basis = np.asarray(basis, dtype=np.float64)
    return basis @ basis.T


def assert_orthonormal(basis):
    basis = basis.double().numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-10)


CASES = [  # slices, rows, columns, left rank, right rank, bank
    (9, 12, 12, 4, 4, None),
    (9, 12, 12, 4, 4, 3),
    (7, 10, 16, 3, 6, None),
    (7, 16, 10, 6, 3, 4),
    (5, 8, 6, 8, 2, 2),
    (1, 9, 7, 2, 5, 1),
]


@pytest.mark.parametrize(("count", "rows", "columns", "bank"), [(6, 10, 10, None), (6, 10, 7, 6), (1, 5, 9, None)])
@pytest.mark.parametrize("sweeps", [0, 2])
def test_full_ranks_reproduce_the_slices(count, rows, columns, bank, sweeps):
    tensor = decaying(count, rows, columns)
    stack = Stack(list(tensor), "left", "right", bank)
    found = decompose([stack], {"left": rows, "right": columns}, sweeps=sweeps)
    whole = tensor.double().numpy()
    assert relative(whole, by_hand(found, stack)) < 1e-5
    assert relative(whole, rebuild(found, stack).double().numpy()) < 1e-5
    assert found.error < 2e-3  # 1 − kept: the root of fp32 rounding is all that may be left


@pytest.mark.parametrize("bank", [None, 3])
def test_slices_of_low_multilinear_rank_are_found_exactly(bank):
    rng = np.random.default_rng(3)
    core = rng.standard_normal((3, 4, 2))
    parts = [rng.standard_normal((8, 3)), rng.standard_normal((12, 4)), rng.standard_normal((9, 2))]
    whole = torch.from_numpy(np.einsum("abc,na,ib,jc->nij", core, *parts)).float()
    stack = Stack(list(whole), "left", "right", bank)
    found = decompose([stack], {"left": 4, "right": 2}, sweeps=1)
    assert relative(whole.double().numpy(), by_hand(found, stack)) < 1e-5
    worse = decompose([Stack(list(whole), "left", "right", bank and 2)], {"left": 3, "right": 2}, sweeps=1)
    assert worse.error > 0.05


@pytest.mark.parametrize(("count", "rows", "columns", "left", "right", "bank"), CASES)
@pytest.mark.parametrize("sweeps", [0, 4])
def test_the_error_is_true_and_what_the_cores_leave(count, rows, columns, left, right, bank, sweeps):
    tensor = decaying(count, rows, columns)
    stack = Stack(list(tensor), "left", "right", bank)
    found = decompose([stack], {"left": left, "right": right}, sweeps=sweeps, tolerance=FORCED)
    whole = tensor.double().numpy()
    assert found.factors["left"].shape == (rows, left)
    assert found.factors["right"].shape == (columns, right)
    assert found.cores[0].shape == (bank or count, left, right)
    assert len(found.history) == sweeps + 1
    approximation = by_hand(found, stack)
    np.testing.assert_allclose(rebuild(found, stack).double().numpy(), approximation, rtol=0, atol=1e-6)
    error = relative(whole, approximation)
    assert error > 0.02
    assert found.error == pytest.approx(error, rel=1e-4)
    energy = float((whole**2).sum())
    assert found.energy == pytest.approx(energy, rel=1e-6)
    kept = float((found.cores[0].double().numpy() ** 2).sum()) / energy
    assert error**2 + kept == pytest.approx(1.0, abs=1e-5)
    assert found.error**2 + kept == pytest.approx(1.0, abs=1e-6)
    assert_orthonormal(found.factors["left"])
    assert_orthonormal(found.factors["right"])
    if bank is None:
        assert found.mixes == [None]
    else:
        assert found.mixes[0].shape == (count, bank)
        assert_orthonormal(found.mixes[0])


@pytest.mark.parametrize(("count", "rows", "columns", "left", "right", "bank"), CASES)
def test_cores_are_what_the_factors_see_of_the_slices(count, rows, columns, left, right, bank):
    tensor = decaying(count, rows, columns, seed=5)
    found = decompose([Stack(list(tensor), "left", "right", bank)], {"left": left, "right": right}, sweeps=2)
    whole = tensor.double().numpy()
    if bank is not None:
        whole = times(whole, found.mixes[0].numpy(), 0)
    wanted = times(times(whole, found.factors["left"].numpy(), 1), found.factors["right"].numpy(), 2)
    np.testing.assert_allclose(found.cores[0].double().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bank", [None, 3])
def test_sweeps_never_raise_the_error_and_lower_it_at_harsh_ranks(seed, bank):
    tensor = decaying(12, 16, 14, power=0.35, seed=seed)
    stack = Stack(list(tensor), "left", "right", bank)
    start = decompose([stack], {"left": 3, "right": 4}, sweeps=0)
    found = decompose([stack], {"left": 3, "right": 4}, sweeps=5, tolerance=FORCED)
    assert found.history[0] == start.error
    assert len(found.history) == 6
    assert all(after <= before + 1e-6 for before, after in pairwise(found.history))
    whole = tensor.double().numpy()
    assert relative(whole, by_hand(found, stack)) < relative(whole, by_hand(start, stack)) - 1e-3


def test_large_decompositions_show_how_far_they_are(monkeypatch, capsys):
    monkeypatch.setenv("FEWFOLD_PROGRESS", "1")
    stack, ranks = Stack(list(decaying(12, 16, 14, power=0.35)), "left", "right", 3), {"left": 3, "right": 4}
    quiet = decompose([stack], ranks, sweeps=2, tolerance=FORCED)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("fewfold.linalg.tucker.SHOWN_FROM", 100)
    shown = decompose([stack], ranks, sweeps=2, tolerance=FORCED)
    assert "alternating sweeps" in capsys.readouterr().err
    assert shown.history == quiet.history


def test_sweeps_end_once_they_gain_less_than_the_tolerance():
    stack = Stack(list(decaying(12, 16, 14, power=0.35)), "left", "right", 3)
    ranks = {"left": 3, "right": 4}
    history = decompose([stack], ranks, sweeps=8, tolerance=FORCED).history
    gains = [before - after for before, after in pairwise(history)]
    assert gains[0] > gains[2] > 0
    tolerance = (gains[1] + gains[2]) / 2 if gains[1] > gains[2] else gains[2]
    wanted = next(number for number, gain in enumerate(gains, 1) if gain < tolerance)
    assert 1 < wanted < 8
    assert decompose([stack], ranks, sweeps=8, tolerance=tolerance).history == history[: wanted + 1]
    assert len(decompose([stack], ranks, sweeps=8, tolerance=1.0).history) == 2


@pytest.mark.parametrize(("count", "rows", "columns", "left", "right", "bank"), CASES)
def test_the_start_is_the_sequentially_truncated_hosvd(count, rows, columns, left, right, bank):
    tensor = decaying(count, rows, columns, seed=1)
    stack = Stack(list(tensor), "left", "right", bank)
    found = decompose([stack], {"left": left, "right": right}, sweeps=0)
    whole = tensor.double().numpy()
    sides = [1, 2] if rows >= columns else [2, 1]
    order = sides if bank is None else [0, *sides]
    bases = sequential_hosvd(whole, {0: bank, 1: left, 2: right}, order)
    assert relative(projected(whole, bases), by_hand(found, stack)) < 1e-4
    for mode, name in ((1, "left"), (2, "right")):
        if count > 1:  # of one slice the second side keeps no more than the first, and the rest is arbitrary
            np.testing.assert_allclose(projector(found.factors[name]), projector(bases[mode]), atol=2e-4)
    if bank is not None:
        np.testing.assert_allclose(projector(found.mixes[0]), projector(bases[0]), atol=2e-4)
    assert found.error == pytest.approx(relative(whole, projected(whole, bases)), rel=1e-4)


def test_a_sweep_makes_every_factor_the_best_for_the_others():
    """After many sweeps each factor spans the leading singular vectors of what the other modes keep."""
    tensor = decaying(8, 12, 10, power=1.0, seed=2)
    found = decompose([Stack(list(tensor), "left", "right", 3)], {"left": 4, "right": 3}, sweeps=60, tolerance=FORCED)
    whole = tensor.double().numpy()
    bases = {0: found.mixes[0].numpy(), 1: found.factors["left"].numpy(), 2: found.factors["right"].numpy()}
    for mode, basis in bases.items():
        seen = whole
        for other, factor in bases.items():
            seen = seen if other == mode else times(seen, factor, other)
        np.testing.assert_allclose(projector(basis), projector(leading(unfold(seen, mode), basis.shape[1])), atol=2e-3)


def test_noise_leaves_the_share_of_what_is_not_kept():
    count, size, bank, width = 96, 112, 64, 90
    tensor = torch.from_numpy(np.random.default_rng(0).standard_normal((count, size, size))).float()
    stack, ranks = Stack(list(tensor), "left", "right", bank), {"left": width, "right": width}
    expected = (1 - bank / count * (width / size) ** 2) ** 0.5
    start = decompose([stack], ranks, sweeps=0).error
    found = decompose([stack], ranks, sweeps=1, tolerance=FORCED).error
    assert 0.7 < expected < 0.8
    assert expected * 0.92 < start < expected  # leading vectors keep a little more than any others
    assert expected * 0.90 < found < start


@pytest.mark.parametrize(("rows", "columns", "left", "right"), [(14, 10, 4, 3), (12, 12, 3, 5), (10, 14, 3, 4)])
def test_a_core_a_slice_is_a_train_of_three_cores(rows, columns, left, right):
    tensor = decaying(9, rows, columns, power=0.4, seed=4)
    whole = tensor.double().numpy()
    train = np.moveaxis(whole, 1, 0)  # row, slice, column
    first, values, rest = np.linalg.svd(train.reshape(rows, -1), full_matrices=False)
    rest = (values[:left, None] * rest[:left]).reshape(left * 9, columns)
    second, values, last = np.linalg.svd(rest, full_matrices=False)
    middle = (second[:, :right] * values[:right]).reshape(left, 9, right)
    approximation = np.einsum("ra,anb,bc->nrc", first[:, :left], middle, last[:right])
    error = relative(whole, approximation)
    stack = Stack(list(tensor), "left", "right")
    ranks = {"left": left, "right": right}
    if rows >= columns:  # the wider side goes first, as in the train from the left
        start = decompose([stack], ranks, sweeps=0)
        assert start.error == pytest.approx(error, rel=1e-5)
        assert relative(approximation, by_hand(start, stack)) < 1e-4
    found = decompose([stack], ranks, sweeps=6)
    assert relative(whole, by_hand(found, stack)) < error - 1e-5


@pytest.mark.parametrize("sweeps", [0, 3])
def test_a_bank_with_a_core_a_slice_changes_nothing(sweeps):
    tensor = decaying(6, 11, 9, seed=6)
    ranks = {"left": 4, "right": 3}
    plain, banked = Stack(list(tensor), "left", "right"), Stack(list(tensor), "left", "right", 6)
    one = decompose([plain], ranks, sweeps=sweeps, tolerance=FORCED)
    other = decompose([banked], ranks, sweeps=sweeps, tolerance=FORCED)
    assert relative(by_hand(one, plain), by_hand(other, banked)) < 1e-4
    np.testing.assert_allclose(one.history, other.history, rtol=1e-5)


def naive_alternation(tensors, names, ranks, mixes, factors, sweeps, order):
    """Alternating least squares on several tensors with named sides, by SVDs of what the others leave."""
    factors, mixes = dict(factors), list(mixes)
    for _ in range(sweeps):
        for number, (tensor, (left, right)) in enumerate(zip(tensors, names, strict=True)):
            if mixes[number] is not None:
                seen = times(times(tensor, factors[left], 1), factors[right], 2)
                mixes[number] = leading(unfold(seen, 0), mixes[number].shape[1])
        for name in order:
            columns = []
            for tensor, mix, sides in zip(tensors, mixes, names, strict=True):
                if name not in sides:
                    continue
                mode = sides.index(name) + 1
                seen = times(tensor, factors[sides[2 - mode]], 3 - mode)
                columns.append(unfold(seen if mix is None else times(seen, mix, 0), mode))
            factors[name] = leading(np.concatenate(columns, axis=1), ranks[name])
    left_over = 0.0
    for tensor, mix, (left, right) in zip(tensors, mixes, names, strict=True):
        bases = {1: factors[left], 2: factors[right], **({} if mix is None else {0: mix})}
        left_over += float(((tensor - projected(tensor, bases)) ** 2).sum())
    return (left_over / sum(float((tensor**2).sum()) for tensor in tensors)) ** 0.5


SHARED = [  # sides of two stacks and their shapes
    ([("a", "s"), ("b", "s")], [(7, 12, 8), (5, 15, 8)]),
    ([("a", "s"), ("s", "b")], [(7, 12, 8), (5, 8, 15)]),
    ([("s", "a"), ("s", "b")], [(7, 16, 9), (5, 16, 16)]),
    ([("s", "t"), ("s", "t")], [(7, 12, 10), (4, 12, 10)]),
]


@pytest.mark.parametrize(("names", "shapes"), SHARED)
@pytest.mark.parametrize("banks", [(None, None), (3, 2), (None, 3)])
def test_stacks_that_share_a_factor(names, shapes, banks):
    tensors = [decaying(*shape, power=0.4, seed=seed) for seed, shape in enumerate(shapes)]
    tensors[1] = tensors[1] * 0.6
    widths = {name: w for sides, shape in zip(names, shapes, strict=True) for name, w in zip(sides, shape[1:])}  # noqa: B905
    ranks = {name: 3 + number for number, name in enumerate(sorted(widths))}
    stacks = [Stack(list(t), *sides, bank) for t, sides, bank in zip(tensors, names, banks, strict=True)]
    start = decompose(stacks, ranks, sweeps=0)
    found = decompose(stacks, ranks, sweeps=3, tolerance=FORCED)
    whole = [tensor.double().numpy() for tensor in tensors]
    energy = sum(float((tensor**2).sum()) for tensor in whole)
    apart = [((w - by_hand(found, s, n)) ** 2).sum() for n, (w, s) in enumerate(zip(whole, stacks, strict=True))]
    error = float(sum(apart) / energy) ** 0.5
    assert found.error == pytest.approx(error, rel=1e-4)
    for number, stack in enumerate(stacks):
        np.testing.assert_allclose(rebuild(found, stack, number).numpy(), by_hand(found, stack, number), atol=1e-6)
        if banks[number] is not None:
            assert_orthonormal(found.mixes[number])
    for factor in found.factors.values():
        assert_orthonormal(factor)
    naive = naive_alternation(
        whole, names, ranks,
        [None if mix is None else mix.numpy() for mix in start.mixes],
        {name: factor.numpy() for name, factor in start.factors.items()},
        sweeps=3, order=sorted(widths, key=lambda name: (-widths[name], name)),
    )  # fmt: skip
    assert error < start.error - 1e-4
    assert error <= naive + 1e-5
    assert error == pytest.approx(naive, rel=1e-4)


def test_the_start_of_a_shared_factor_looks_at_both_stacks():
    tensors = [decaying(6, 12, 14, seed=0), decaying(4, 10, 14, seed=1)]
    stacks = [Stack(list(tensors[0]), "a", "s"), Stack(list(tensors[1]), "b", "s")]
    found = decompose(stacks, {"a": 12, "b": 10, "s": 5}, sweeps=0)
    both = np.concatenate([tensor.double().numpy().reshape(-1, 14) for tensor in tensors])
    np.testing.assert_allclose(projector(found.factors["s"]), projector(leading(both.T, 5)), atol=2e-4)


@pytest.mark.parametrize("bank", [None, 4])
def test_equal_input_gives_equal_output(bank):
    tensor = decaying(8, 13, 11)
    ranks = {"left": 5, "right": 4}
    first, second = (
        decompose([Stack(list(copy), "left", "right", bank)], ranks) for copy in (tensor.clone(), tensor.clone())
    )
    assert first.history == second.history
    assert torch.equal(first.cores[0], second.cores[0])
    assert all(torch.equal(first.factors[name], second.factors[name]) for name in ranks)
    assert bank is None or torch.equal(first.mixes[0], second.mixes[0])


@pytest.mark.parametrize("bank", [None, 4])
def test_views_are_as_good_as_copies(bank):
    tensor = decaying(8, 13, 11)
    ranks = {"left": 5, "right": 4}
    transposed = tensor.transpose(1, 2).contiguous()
    strided = torch.zeros(8, 26, 33)
    strided[:, ::2, 1::3] = tensor
    plain = Stack(list(tensor), "left", "right", bank)
    wanted = decompose([plain], ranks, sweeps=2, tolerance=FORCED)
    for views in ([part.t() for part in transposed], [part[::2, 1::3] for part in strided]):
        assert not views[0].is_contiguous()
        before = [view.clone() for view in views]
        stack = Stack(views, "left", "right", bank)
        found = decompose([stack], ranks, sweeps=2, tolerance=FORCED)
        np.testing.assert_allclose(found.history, wanted.history, rtol=1e-5)
        assert relative(by_hand(wanted, plain), by_hand(found, stack)) < 1e-4
        assert all(torch.equal(view, copy) for view, copy in zip(views, before, strict=True))


@pytest.mark.parametrize("bank", [None, 2])
def test_slices_that_are_all_zero_leave_no_error(bank):
    stack = Stack([torch.zeros(5, 4)] * 3, "left", "right", bank)
    found = decompose([stack], {"left": 2, "right": 2})
    assert found.error == 0.0
    assert found.energy == 0.0
    assert_orthonormal(found.factors["left"])
    assert float(rebuild(found, stack).abs().max()) == 0.0


class Counted(Sequence):
    """Slices that are made when they are asked for, and how many of them live at once."""

    def __init__(self, tensor):
        self.tensor, self.alive, self.most = tensor, 0, 0

    def __len__(self):
        return len(self.tensor)

    def _died(self):
        self.alive -= 1

    def __getitem__(self, number):
        if number >= len(self.tensor):
            raise IndexError
        part = self.tensor[number].clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(part, self._died)
        return part


def test_slices_are_looked_at_one_after_the_other():
    tensor = decaying(24, 10, 8)
    slices = Counted(tensor)
    found = decompose([Stack(slices, "left", "right")], {"left": 3, "right": 3}, sweeps=2)
    assert 1 <= slices.most <= 4
    assert found.error == decompose([Stack(list(tensor), "left", "right")], {"left": 3, "right": 3}, sweeps=2).error


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_grams_and_mixes_against_loops(monkeypatch, chunk):
    monkeypatch.setattr(tucker, "CHUNK", chunk)
    tensor = decaying(5, 13, 6, power=0.2)
    for slices in (list(tensor), [part.t() for part in tensor.transpose(1, 2).contiguous()]):
        whole = [part.double().numpy() for part in slices]
        gram = slice_gram(slices)
        assert gram.dtype == torch.float64
        wanted = np.array([[(a * b).sum() for b in whole] for a in whole])
        np.testing.assert_allclose(gram.numpy(), wanted, rtol=1e-5, atol=1e-5)
        left, right = sum(part @ part.T for part in whole), sum(part.T @ part for part in whole)
        np.testing.assert_allclose(side_gram(slices, "left").numpy(), left, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(side_gram(slices, "right").numpy(), right, rtol=1e-5, atol=1e-5)
        mix = np.random.default_rng(1).standard_normal((5, 3))
        wanted = np.stack([sum(mix[i, j] * whole[i] for i in range(5)) for j in range(3)])
        np.testing.assert_allclose(mixed(torch.from_numpy(mix), slices).numpy(), wanted, atol=1e-5)


def test_chunks_do_not_change_a_decomposition(monkeypatch):
    tensor = decaying(7, 12, 9)
    stack, ranks = Stack(list(tensor), "left", "right", 3), {"left": 4, "right": 4}
    wanted = by_hand(decompose([stack], ranks, sweeps=2), stack)
    monkeypatch.setattr(tucker, "CHUNK", 7 * 9 * 5)  # 12 rows in chunks of 5, 5 and 2
    assert relative(wanted, by_hand(decompose([stack], ranks, sweeps=2), stack)) < 1e-5


SLICES = list(torch.ones(3, 4, 5))


@pytest.mark.parametrize(
    ("stacks", "ranks", "words"),
    [
        ([Stack(SLICES, "l", "r")], {"l": 0, "r": 2}, r"'l' is 4 wide.* 1…4, not 0"),
        ([Stack(SLICES, "l", "r")], {"l": -1, "r": 2}, r"'l' is 4 wide.*not -1"),
        ([Stack(SLICES, "l", "r")], {"l": 2, "r": 6}, r"'r' is 5 wide.* 1…5, not 6"),
        ([Stack(SLICES, "l", "r")], {"l": 2}, r"'r' is 5 wide.*not None"),
        ([Stack([torch.ones(4, 4)] * 2, "same", "same")], {"same": 2}, r"'same' stands on both sides"),
        ([Stack([*SLICES, torch.ones(4, 6)], "l", "r")], {"l": 2, "r": 2}, r"\(4, 5\) and \(4, 6\)"),
        ([Stack([*SLICES, torch.ones(5, 4)], "l", "r")], {"l": 2, "r": 2}, r"\(4, 5\) and \(5, 4\)"),
        ([Stack(SLICES, "l", "r", 4)], {"l": 2, "r": 2}, r"3 slices takes 1…3 cores, not 4"),
        ([Stack(SLICES, "l", "r", 0)], {"l": 2, "r": 2}, r"1…3 cores, not 0"),
        ([Stack(SLICES, "l", "r"), Stack(SLICES, "r", "x")], {"l": 2, "r": 2, "x": 2}, r"'r' cannot be 5 and 4 wide"),
        ([Stack([], "l", "r")], {"l": 2, "r": 2}, r"'l' and 'r' has 0 slices"),
        ([], {}, r"no stack"),
        ([Stack([torch.full((4, 5), torch.nan)], "l", "r")], {"l": 2, "r": 2}, r"NaN"),
    ],
)
def test_what_does_not_fit_is_refused(stacks, ranks, words):
    with pytest.raises(ValueError, match=words):
        decompose(stacks, ranks)
