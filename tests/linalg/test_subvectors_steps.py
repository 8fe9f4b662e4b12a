"""Every step of a fit: feedback, codebooks and codes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from codes import DAMPING, LAYOUTS, assembled, error_of, metric_of, random, used_metric, weights_of

from fewfold.linalg import subvectors
from fewfold.linalg.subvectors import Coded, _Fit


def started(matrix, stages, metric, weights, scales, seed=0):
    work = _Fit(matrix.clone(), stages, metric, weights, scales, DAMPING, seed)
    for number in range(len(stages)):
        work.start(number)
    return work


def state_error(work, matrix, metric, weights):
    return error_of(matrix, assembled(work.found(), *matrix.shape), metric, weights)


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_step_of_a_turn_raises_the_error(layout, calibrated, scales):
    matrix, weights, metric = random(60, 12), weights_of(60), metric_of(12) if calibrated else None
    work = started(matrix, LAYOUTS[layout], metric, weights, scales)
    steps = [state_error(work, matrix, metric, weights)]
    for _ in range(2):
        work.refit_books()
        steps.append(state_error(work, matrix, metric, weights))
        if scales:
            work.refit_scales()
            steps.append(state_error(work, matrix, metric, weights))
        for number in [*range(len(work.stages))] * 2:
            work.improve(number)
            steps.append(state_error(work, matrix, metric, weights))
            known = assembled(work.found(), 60, 12)
            off = matrix.double().numpy() - known
            off = off if not scales else off / work.scales.double().numpy()[:, None]
            np.testing.assert_allclose(work.left.numpy(), off, atol=2e-5)
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(steps)), steps
    if len(LAYOUTS[layout]) > 1 or calibrated:
        assert steps[-1] < 0.95 * steps[0]


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_codebooks_are_the_least_squares_ones_for_their_codes(layout, calibrated):
    """No step of any word lowers the error, and the error is the optimum's."""
    matrix, weights, metric = random(40, 12), weights_of(40), metric_of(12) if calibrated else None
    work = started(matrix, LAYOUTS[layout], metric, weights, scales=True)
    before = _gradients(work, matrix, metric, weights)
    work.refit_books()
    after = _gradients(work, matrix, metric, weights)
    if calibrated or len(work.stages) > 1:
        assert np.linalg.norm(after) < 0.02 * np.linalg.norm(before)
    else:  # k-means has nothing left to gain but its last iteration's change
        assert np.linalg.norm(after) <= max(np.linalg.norm(before), 1e-4)
    best = _optimum(work, matrix, metric, weights)
    assert state_error(work, matrix, metric, weights) == pytest.approx(best, rel=2e-4)


def _gradients(work, matrix, metric, weights):
    """Of the error by every number of every codebook, naively, in float64."""
    coded = work.found()
    off = (matrix.double().numpy() - assembled(coded, *matrix.shape)) @ used_metric(metric, matrix.shape[1])
    off *= weights.double().numpy()[:, None] * (1 if coded.scales is None else coded.scales.double().numpy()[:, None])
    parts = []
    for codes, books, partial in zip(coded.codes, coded.books, coded.partial, strict=True):
        gradient = np.zeros(books.shape)
        for number, words in enumerate(codes.tolist()):
            row = int(coded.order[number]) if partial else number
            for place, word in enumerate(words):
                piece = off[row, place * books.shape[2] : (place + 1) * books.shape[2]]
                gradient[0 if len(books) == 1 else place, word, : len(piece)] -= 2 * piece
        parts.append(gradient.ravel())
    return np.concatenate(parts)


def _optimum(work, matrix, metric, weights):
    """The least error of any codebooks with these codes, by a dense least-squares solve."""
    coded, (rows, columns) = work.found(), matrix.shape
    root = np.linalg.cholesky(used_metric(metric, columns))
    columns_of_design = []
    for stage, books in enumerate(coded.books):
        for place in np.ndindex(*books.shape):
            fresh = [torch.zeros_like(other) for other in coded.books]
            fresh[stage][place] = 1.0
            one = assembled(Coded(coded.codes, fresh, coded.partial, coded.scales, coded.order), rows, columns)
            columns_of_design.append((np.sqrt(weights.double().numpy())[:, None] * (one @ root)).ravel())
    design = np.stack(columns_of_design, axis=1)
    wanted = (np.sqrt(weights.double().numpy())[:, None] * (matrix.double().numpy() @ root)).ravel()
    solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
    return float(((wanted - design @ solution) ** 2).sum())


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_improving_tries_every_word(layout, calibrated, scales, monkeypatch):
    monkeypatch.setattr(subvectors, "GROUP_COLUMNS", 8)
    matrix, weights, metric = random(20, 12), weights_of(20), metric_of(12) if calibrated else None
    work = started(matrix, LAYOUTS[layout], metric, weights, scales)
    used = used_metric(metric, 12)
    changed = False
    for number, stage in enumerate(LAYOUTS[layout]):
        coded = Coded(*(list(part) for part in (work.codes, work.books)), work.found().partial, None, work.order)
        off = matrix.double().numpy() / (work.scales.double().numpy()[:, None] if scales else 1)
        off = off - assembled(coded, 20, 12)
        members = range(20) if stage.rows is None else work.order[: stage.rows].tolist()
        before = work.codes[number].clone()
        expected = before.clone()
        for place, block in enumerate(work.blocks(number)):
            pool = work.books[number][0 if stage.shared else place].double().numpy()[:, : block.stop - block.start]
            for index, row in enumerate(members):
                tries = np.repeat(off[row : row + 1], stage.words, axis=0)
                tries[:, block] += pool[int(expected[index, place])] - pool
                costs = np.einsum("wi,ij,wj->w", tries, used, tries)
                expected[index, place] = int(costs.argmin())
                off[row] = tries[costs.argmin()]
        work.improve(number)
        assert torch.equal(work.codes[number].long(), expected.long())
        changed = changed or not torch.equal(work.codes[number], before)
    assert changed or not calibrated
