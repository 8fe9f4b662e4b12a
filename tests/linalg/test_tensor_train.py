from itertools import product
from math import prod

import numpy as np
import pytest
import torch

from fewfold.linalg.tensor_train import balanced_factors, tensor_train, train_ranks


def stack(count, rows, columns, seed=0):
    """Slices that share most of their content, so that truncation keeps a good part of it."""
    rng = np.random.default_rng(seed)
    shape = (prod(rows), prod(columns))
    common = [np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1])) for _ in range(4)]
    parts = [sum(w * c for w, c in zip(rng.standard_normal(4), common, strict=True)) for _ in range(count)]
    return torch.from_numpy(np.stack(parts) + 0.6 * rng.standard_normal((count, *shape))).float()


def paired(slices, rows, columns):
    """The tensor ``(slice, i₁j₁, i₂j₂, …)``, entry by entry."""
    tensor = np.zeros((len(slices), *(i * j for i, j in zip(rows, columns, strict=True))))
    for row, column in product(range(prod(rows)), range(prod(columns))):
        row_digits, column_digits = np.unravel_index(row, rows), np.unravel_index(column, columns)
        place = tuple(i * width + j for i, j, width in zip(row_digits, column_digits, columns, strict=True))
        tensor[(slice(None), *place)] = slices[:, row, column]
    return tensor


def plain_error(slices, rows, columns, rank, size=None):
    """TT-SVD from the right with whole SVDs: the relative error of what is left, in float64."""
    tensor = paired(slices.double().numpy(), rows, columns)
    modes, count = tensor.shape[1:], len(tensor)
    left, cores, after = tensor, [], 1
    for place in range(len(modes) - 1, 0, -1):
        u, values, vt = np.linalg.svd(left.reshape(-1, modes[place] * after), full_matrices=False)
        kept = min(rank, len(values))
        cores.insert(0, vt[:kept].reshape(kept, modes[place], after))
        left, after = u[:, :kept] * values[:kept], kept
    heads = left.reshape(count, modes[0] * after)
    if size is not None:
        u, values, vt = np.linalg.svd(heads, full_matrices=False)
        heads = (u[:, :size] * values[:size]) @ vt[:size]
    whole = heads.reshape(count * modes[0], after)
    for core in cores:
        whole = np.tensordot(whole, core, axes=(-1, 0)).reshape(-1, core.shape[2])
    return float(np.linalg.norm(whole.ravel() - tensor.ravel()) / np.linalg.norm(tensor))


def rebuilt(train):
    """The slices that a train stands for, by the formula, as ``(slice, rows, columns)``."""
    whole = train.heads.double().numpy()
    if train.mix is not None:
        whole = np.einsum("nk,kija->nija", train.mix.double().numpy(), whole)
    for core in train.cores:
        whole = np.einsum("nija,aklb->nikjlb", whole, core.double().numpy())
        count, i, k, j, m, after = whole.shape
        whole = whole.reshape(count, i * k, j * m, after)
    assert whole.shape[3] == 1
    return whole[..., 0]


def relative(wanted, found):
    wanted = wanted.double().numpy()
    return float(np.linalg.norm(wanted - found) / np.linalg.norm(wanted))


SPLITS = [
    ([4, 3], [2, 5]),
    ([3, 4], [3, 4]),
    ([2, 3, 4], [3, 2, 2]),
    ([2, 2, 3], [3, 3, 2]),
    ([1, 6], [4, 2]),
    ([6], [5]),
]


@pytest.mark.parametrize(("rows", "columns"), SPLITS)
@pytest.mark.parametrize("count", [1, 5])
def test_full_rank_is_exact(rows, columns, count):
    slices = stack(count, rows, columns)
    train = tensor_train(list(slices), rows, columns, 10**6)
    assert relative(slices, rebuilt(train)) < 1e-5
    assert train.error < 2e-3  # 1 − kept: the root of fp32 rounding is all that may be left
    assert train.mix is None
    assert train.heads.shape[0] == count


@pytest.mark.parametrize(("rows", "columns"), [split for split in SPLITS if len(split[0]) > 1])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_truncation_is_that_of_the_plain_algorithm_and_the_error_true(rows, columns, rank):
    slices = stack(6, rows, columns)
    train = tensor_train(list(slices), rows, columns, rank)
    assert [core.shape[0] for core in train.cores] == train_ranks(rows, columns, rank, 6)
    assert train.heads.shape == (6, rows[0], columns[0], train.cores[0].shape[0])
    error = plain_error(slices, rows, columns, rank)
    assert error > 0.1
    assert train.error == pytest.approx(error, abs=1e-6)
    assert relative(slices, rebuilt(train)) == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [([4, 3], [2, 5]), ([2, 3, 4], [3, 2, 2])])
@pytest.mark.parametrize(("rank", "size"), [(2, 1), (3, 3), (6, 4), (1000, 3), (3, 6)])
def test_heads_that_are_mixed_from_fewer(rows, columns, rank, size):
    slices = stack(6, rows, columns, seed=1)
    train = tensor_train(list(slices), rows, columns, rank, size)
    assert train.mix.shape == (6, size)
    assert len(train.heads) == size
    mix = train.mix.double().numpy()
    np.testing.assert_allclose(mix.T @ mix, np.eye(size), atol=1e-10)
    error = plain_error(slices, rows, columns, rank, size)
    assert error > 0.1
    assert train.error == pytest.approx(error, abs=1e-6)
    assert relative(slices, rebuilt(train)) == pytest.approx(error, abs=1e-6)


def test_all_cores_but_the_first_are_orthonormal():
    train = tensor_train(list(stack(6, [2, 3, 4], [3, 2, 2])), [2, 3, 4], [3, 2, 2], 4)
    assert len(train.cores) == 2
    for core in train.cores:
        flat = core.flatten(1).double().numpy()
        np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-10)


def test_a_train_that_is_one_is_found_at_its_rank():
    rng = np.random.default_rng(2)
    heads, middle, last = (
        rng.standard_normal((5, 2, 3, 2)),
        rng.standard_normal((2, 3, 2, 3)),
        rng.standard_normal((3, 4, 2)),
    )
    whole = np.einsum("niax,xjby,ykc->nijkabc", heads, middle, last).reshape(5, 24, 12)
    slices = torch.from_numpy(whole).float()
    exact = tensor_train(list(slices), [2, 3, 4], [3, 2, 2], 3)
    assert relative(slices, rebuilt(exact)) < 1e-5
    assert tensor_train(list(slices), [2, 3, 4], [3, 2, 2], 1).error > 0.1


def test_views_and_repetition_give_the_same():
    slices = stack(5, [3, 4], [5, 2])
    wanted = tensor_train(list(slices), [3, 4], [5, 2], 3, 2)
    again = tensor_train(list(slices.clone()), [3, 4], [5, 2], 3, 2)
    assert again.error == wanted.error
    assert torch.equal(again.heads, wanted.heads)
    assert torch.equal(again.mix, wanted.mix)
    assert all(torch.equal(one, other) for one, other in zip(again.cores, wanted.cores, strict=True))
    kept = slices.transpose(1, 2).contiguous()
    views = tensor_train([part.t() for part in kept], [3, 4], [5, 2], 3, 2)
    np.testing.assert_allclose(rebuilt(views), rebuilt(wanted), atol=1e-5)


def test_slices_that_are_all_zero_leave_no_error():
    train = tensor_train([torch.zeros(6, 4)] * 2, [2, 3], [2, 2], 3)
    assert train.error == 0.0
    assert not rebuilt(train).any()


@pytest.mark.parametrize(("rows", "columns"), SPLITS)
@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("rank", [1, 3, 7, 10**6])
def test_ranks_are_what_unfoldings_hold(rows, columns, count, rank):
    """Ranks of generic unfoldings, ``(slice, i₁j₁ … | … iₖjₖ)``, counted by numpy."""
    tensor = np.random.default_rng(0).standard_normal((count, *(i * j for i, j in zip(rows, columns, strict=True))))
    held = [
        int(np.linalg.matrix_rank(tensor.reshape(prod(tensor.shape[: place + 2]), -1)))
        for place in range(len(rows) - 1)
    ]
    assert train_ranks(rows, columns, rank, count) == [min(rank, most) for most in held]


def divisions(width, count, smallest=1):
    if count == 1:
        return [(width,)] if width >= smallest else []
    return [
        (d, *rest) for d in range(smallest, width + 1) if width % d == 0 for rest in divisions(width // d, count - 1, d)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_balanced_factors_are_the_most_equal(count):
    for width in [*range(1, 200), 252, 256, 384, 500, 640, 768]:
        found = balanced_factors(width, count)
        assert len(found) == count
        assert prod(found) == width
        assert found == sorted(found)
        assert sum(found) == min(sum(division) for division in divisions(width, count))


@pytest.mark.parametrize(
    ("width", "count", "wanted"),
    [
        (768, 2, [24, 32]),
        (768, 3, [8, 8, 12]),
        (1024, 2, [32, 32]),
        (64, 3, [4, 4, 4]),
        (13, 2, [1, 13]),
        (13, 3, [1, 1, 13]),
        (1, 3, [1, 1, 1]),
        (28, 3, [2, 2, 7]),
        (1152, 3, [8, 12, 12]),
    ],
)
def test_balanced_factors_of_known_widths(width, count, wanted):
    assert balanced_factors(width, count) == wanted


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "size", "words"),
    [
        ([2, 3], [2, 3], 2, None, r"\(6, 6\).*\[2, 3\]"),
        ([2, 3], [4], 2, None, r"\[2, 3\].*\[4\]"),
        ([2, 3], [2, 2], 2, 0, r"3 slices take 1…3 heads, not 0"),
        ([2, 3], [2, 2], 2, 4, r"3 slices take 1…3 heads, not 4"),
        ([2, 3], [2, 2], 0, None, r"not 3 and 0"),
        ([2, 3], [2, 2], -1, None, r"not 3 and -1"),
    ],
)
def test_what_does_not_fit_is_refused(rows, columns, rank, size, words):
    with pytest.raises(ValueError, match=words):
        tensor_train(list(torch.ones(3, 6, 4)), rows, columns, rank, size)


def test_no_slices_are_refused():
    with pytest.raises(ValueError, match="not 0 and 2"):
        tensor_train([], [2, 3], [2, 2], 2)
