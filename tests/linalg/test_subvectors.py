from itertools import pairwise

import numpy as np
import pytest
import torch
from codes import LAYOUTS, assembled, error_of, metric_of, random, used_metric, weights_of
from torch import nn

from fewfold.fitting import fill
from fewfold.linalg.kmeans import kmeans
from fewfold.linalg.subvectors import Coded, fit_codes
from fewfold.stored import StoredDtype
from fewfold.stored.codes import CodedMatrix
from fewfold.stored.stages import StageSpec


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_and_rows_are_the_sums_of_words(layout, scales):
    matrix = random(30, 12)
    coded = fit_codes(matrix, LAYOUTS[layout], metric_of(12), weights_of(30), scales)
    expected = assembled(coded, 30, 12)
    np.testing.assert_allclose(coded.dense(30, 12).numpy(), expected, atol=1e-6)
    which = torch.tensor([29, 0, 7, 7])
    np.testing.assert_allclose(coded.rows(which, 12).numpy(), expected[which], atol=1e-6)
    # it is a fit: far nearer than nothing
    assert error_of(matrix, expected, metric_of(12), weights_of(30)) < 0.8 * error_of(
        matrix, 0 * expected, metric_of(12), weights_of(30)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rounds_pay(layout):
    matrix, weights, metric = random(80, 12), weights_of(80), metric_of(12)
    fits = [fit_codes(matrix, LAYOUTS[layout], metric, weights, rounds=rounds) for rounds in (0, 1, 2, 5)]
    errors = [error_of(matrix, assembled(coded, 80, 12), metric, weights) for coded in fits]
    assert all(after <= 1.01 * before for before, after in pairwise(errors)), errors
    assert errors[2] < 0.95 * errors[0]


@pytest.mark.parametrize("layout", ["shared", "by position"])
def test_calibrated_codes_beat_plain_k_means(layout):
    matrix, metric = random(200, 12), metric_of(12)
    plain, calibrated = (
        error_of(matrix, assembled(fit_codes(matrix, LAYOUTS[layout], given, scales=False), 200, 12), metric)
        for given in (None, metric)
    )
    assert calibrated < 0.85 * plain


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_are_the_least_squares_factors(layout, calibrated):
    matrix, metric = random(30, 12) * random(30, 1, seed=4).exp(), metric_of(12) if calibrated else None
    coded = fit_codes(matrix, LAYOUTS[layout], metric, weights_of(30))
    said, used = (
        assembled(Coded(coded.codes, coded.books, coded.partial, None, coded.order), 30, 12),
        used_metric(metric, 12),
    )
    for row, factor in zip(range(30), coded.scales.tolist(), strict=True):
        best = (said[row] @ used @ matrix[row].double().numpy()) / (said[row] @ used @ said[row])
        assert factor == pytest.approx(best, rel=2**-10)
    assert torch.equal(coded.scales, coded.scales.half().float())


def test_by_position_every_block_is_k_means_of_its_own():
    matrix, weights = random(60, 11), weights_of(60)
    coded = fit_codes(matrix, [StageSpec(4, 6)], None, weights, scales=False, book_dtype=torch.float32, seed=3)
    assert [tuple(books.shape) for books in coded.books] == [(3, 6, 4)]
    for place, block in enumerate((slice(0, 4), slice(4, 8), slice(8, 11))):
        words = kmeans(matrix[:, block], 6, weights / weights.mean(), seed=3)
        torch.testing.assert_close(coded.books[0][place, :, : block.stop - block.start], words)
    assert not coded.books[0][2, :, 3].any()


def test_a_shared_codebook_is_k_means_of_all_blocks():
    matrix = random(40, 12)
    coded = fit_codes(matrix, [StageSpec(3, 6, shared=True)], scales=False, book_dtype=torch.float32)
    torch.testing.assert_close(coded.books[0][0], kmeans(matrix.reshape(-1, 3), 6))


def test_a_partial_stage_serves_the_rows_that_weigh_most():
    matrix, weights = random(50, 8), weights_of(50)
    first = fit_codes(matrix, [StageSpec(4, 6)], None, weights, scales=False, rounds=0)
    stages = [StageSpec(4, 6), StageSpec(4, 40, rows=10)]
    coded = fit_codes(matrix, stages, None, weights, scales=False)
    heaviest = sorted(range(50), key=lambda row: -float(weights[row]))
    assert coded.order.tolist() == heaviest
    assert [len(codes) for codes in coded.codes] == [50, 10]
    assert [int(place) for place in coded.places()[heaviest]] == list(range(50))
    off = (matrix - coded.dense(50, 8)).square().sum(1)
    before = (matrix - first.dense(50, 8)).square().sum(1)
    assert float(off[heaviest[:10]].mean()) < 0.05 * float(before[heaviest[:10]].mean())
    assert float(off[heaviest[10:]].mean()) > 0.5 * float(before[heaviest[10:]].mean())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 5), (40, 10)])
@pytest.mark.parametrize("width", [1, 3, 10])
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
def test_enough_words_lose_nothing(shape, width, scales, calibrated):
    rows, columns = shape
    width = min(width, columns)
    matrix = random(rows, columns)
    matrix[0, 0] = 0.0
    metric = metric_of(columns) if calibrated else None
    for shared in (False, True):
        words = max(2, rows * -(-columns // width))
        coded = fit_codes(matrix, [StageSpec(width, words, shared)], metric, scales=scales, book_dtype=torch.float32)
        # words that lie nearer than 1e-3 to each other, as those of few numbers, are not told apart in fp32
        close = 1e-5 if min(width, columns) > 1 else 1e-3
        torch.testing.assert_close(coded.dense(rows, columns), matrix, rtol=close, atol=close)


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("stored", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_filled_module_holds_exactly_what_was_fitted(layout, scales, stored, dtype):
    coded = fit_codes(random(30, 12), LAYOUTS[layout], metric_of(12), weights_of(30), scales, book_dtype=dtype)
    module = nn.ModuleDict({"coded": CodedMatrix(30, 12, LAYOUTS[layout], scales, StoredDtype(stored))})
    fill(module, coded.tensors("coded."), None)
    dense = coded.dense(30, 12)
    assert torch.equal(module["coded"](), dense)
    assert torch.equal(module["coded"](torch.tensor([3, 29])), dense[[3, 29]])
    again = CodedMatrix(30, 12, LAYOUTS[layout], scales, StoredDtype(stored))
    again.load_state_dict(module["coded"].state_dict())
    assert torch.equal(again(), dense)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_in_place_leaves_what_the_codes_do_not_explain(layout, calibrated):
    matrix, metric = random(30, 12), metric_of(12) if calibrated else None
    kept, plain = matrix.clone(), fit_codes(matrix, LAYOUTS[layout], metric, scales=False)
    assert torch.equal(matrix, kept)
    coded = fit_codes(matrix, LAYOUTS[layout], metric, scales=False, in_place=True)
    torch.testing.assert_close(matrix, kept - coded.dense(30, 12), rtol=1e-4, atol=1e-5)
    assert torch.equal(coded.dense(30, 12), plain.dense(30, 12))
    with_scales = kept.clone()
    fit_codes(with_scales, LAYOUTS[layout], metric, scales=True)
    assert torch.equal(with_scales, kept)


def test_rows_of_zeros_and_inputs_that_never_come():
    matrix, metric = random(20, 8), metric_of(8)
    matrix[3], metric[2], metric[:, 2] = 0.0, 0.0, 0.0
    for damping in (0.1, 0.0):
        coded = fit_codes(matrix, [StageSpec(4, 8, shared=True)], metric, damping=damping)
        dense = coded.dense(20, 8)
        assert bool(dense.isfinite().all())
        assert float(dense[3].abs().max()) < 1e-5
    zero = fit_codes(torch.zeros(6, 4), [StageSpec(2, 2)], torch.zeros(4, 4), torch.zeros(6))
    assert not bool((zero.dense(6, 4).abs() > 1e-5).any())


def test_equal_seeds_give_equal_codes_and_the_global_generator_rests():
    matrix, metric = random(40, 8), metric_of(8)
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    first = fit_codes(matrix, LAYOUTS["shared"], metric, seed=2)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(fit_codes(matrix, LAYOUTS["shared"], metric, seed=2).dense(40, 8), first.dense(40, 8))


def test_wrong_values_are_named():
    stages = [StageSpec(2, 4)]
    with pytest.raises(ValueError, match=r"matrix \(4,\): expected two dimensions and finite"):
        fit_codes(torch.ones(4), stages)
    with pytest.raises(ValueError, match=r"matrix \(2, 2\).*finite"):
        fit_codes(torch.full((2, 2), float("inf")), stages)
    with pytest.raises(ValueError, match=r"metric \(3, 3\): rows of 4 need \(4, 4\)"):
        fit_codes(torch.ones(2, 4), stages, torch.eye(3))
    for weights in (torch.ones(3), -torch.ones(2), torch.full((2,), float("nan"))):
        with pytest.raises(ValueError, match=r"row_weights.*expected 2 numbers, finite and not negative"):
            fit_codes(torch.ones(2, 4), stages, None, weights)
