"""Coding a matrix some columns at a time gives what coding it whole gives."""

import numpy as np
import pytest
import torch
from codes import assembled, error_of, random, weights_of

from fewfold.linalg import subvectors, subvectors_by_columns
from fewfold.linalg.subvectors import fit_codes
from fewfold.linalg.subvectors_by_columns import fit_codes_by_columns
from fewfold.stored.stages import StageSpec


class Columns:
    """A matrix that hands out its columns and notes which were asked for."""

    def __init__(self, matrix):
        self.matrix, self.asked = matrix, []

    def __call__(self, rows, columns):
        self.asked.append((None if rows is None else len(rows), columns))
        return (self.matrix if rows is None else self.matrix[rows])[:, columns].clone()


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(subvectors_by_columns, "GROUP_COLUMNS", 4)


@pytest.mark.parametrize("stages", [[StageSpec(4, 6)], [StageSpec(2, 6)], [StageSpec(4, 6), StageSpec(2, 5, rows=20)]])
def test_groups_are_coded_as_the_whole(stages):
    matrix, weights = random(60, 14), weights_of(60)
    whole = fit_codes(matrix, stages, None, weights, False, rounds=0, seed=3)
    columns = Columns(matrix)
    parts = fit_codes_by_columns(columns, 60, 14, stages, weights, rounds=0, seed=3)
    np.testing.assert_array_equal(assembled(parts, 60, 14), assembled(whole, 60, 14))
    assert columns.asked == [(None, slice(at, min(at + 4, 14))) for at in range(0, 14, 4)]
    assert (parts.order is None) == (len(stages) == 1)
    assert parts.order is None or torch.equal(parts.order, whole.order)


def test_groups_hold_whole_sub_vectors_of_all_stages():
    matrix = random(60, 24)
    columns = Columns(matrix)
    stages = [StageSpec(6, 5), StageSpec(4, 5, rows=10)]
    coded = fit_codes_by_columns(columns, 60, 24, stages, weights_of(60), rounds=0)
    assert [asked for _, asked in columns.asked] == [slice(0, 12), slice(12, 24)]
    assert [tuple(codes.shape) for codes in coded.codes] == [(60, 4), (10, 6)]
    assert [tuple(books.shape) for books in coded.books] == [(4, 5, 6), (6, 5, 4)]


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("all_rows", [True, False])
def test_shared_codebooks_come_from_a_sample_of_all_columns(stages, all_rows, monkeypatch):
    matrix, weights = random(300, 12), weights_of(300)
    layout = [StageSpec(4, 16, shared=True), StageSpec(2, 8, shared=True, rows=90)][:stages]
    if not all_rows:
        monkeypatch.setattr(subvectors_by_columns, "MOST_POINTS", 200 * 3)
    columns = Columns(matrix)
    coded = fit_codes_by_columns(columns, 300, 12, layout, weights)
    assert columns.asked[0] == (300 if all_rows else 200, slice(0, 12))
    assert [tuple(books.shape) for books in coded.books] == [(1, 16, 4), (1, 8, 2)][:stages]
    for books in coded.books:
        assert torch.equal(books, books.half().float())
    whole = fit_codes(matrix, layout, None, weights, False, rounds=1, sweeps=1)
    errors = [error_of(matrix, assembled(one, 300, 12), None, weights) for one in (coded, whole)]
    assert errors[0] <= errors[1] * (1.05 if all_rows else 1.25)
    first = assembled(coded, 300, 12)
    words = coded.books[0][0].double().numpy()
    if stages == 1:  # every sub-vector has its nearest word
        cut = matrix.double().numpy().reshape(-1, 4)
        nearest = words[((cut[:, None] - words[None]) ** 2).sum(2).argmin(1)]
        np.testing.assert_allclose(first, nearest.reshape(300, 12), atol=1e-6)


def test_given_codebooks_are_left_as_they_are():
    matrix, books = random(40, 8), [random(5, 4, seed=2)[None].half().float()]
    coded = fit_codes(matrix, [StageSpec(4, 5, shared=True)], None, None, False, books=books)
    assert torch.equal(coded.books[0], books[0])
    cut, words = matrix.double().numpy().reshape(-1, 4), books[0][0].double().numpy()
    expected = ((cut[:, None] - words[None]) ** 2).sum(2).argmin(1).reshape(40, 2)
    np.testing.assert_array_equal(coded.codes[0].numpy(), expected)


def test_mixed_codebooks_are_refused():
    with pytest.raises(ValueError, match="cannot be fitted by columns"):
        fit_codes_by_columns(
            Columns(random(9, 4)), 9, 4, [StageSpec(2, 4), StageSpec(2, 4, shared=True)], weights_of(9)
        )


def test_what_is_kept_is_asked_for_by_all_that_it_depends_on():
    matrix, weights, told = random(40, 8), weights_of(40), []

    def keep(settings, inputs, make):
        told.append((settings, [tuple(tensor.shape) for tensor in inputs]))
        return make()

    stages = [StageSpec(4, 5, shared=True)]
    coded = fit_codes_by_columns(Columns(matrix), 40, 8, stages, weights, seed=7, keep=keep)
    assert [shapes for _, shapes in told] == [[(40, 4), (40,), (1, 5, 4)]] * 2
    assert all("seed=7" in settings and "width=4" in settings for settings, _ in told)
    assert subvectors.Coded is type(coded)
