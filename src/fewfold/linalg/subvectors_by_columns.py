"""Codes of a matrix that is too large to be held a second time: a group of columns is made, coded and let go.

Without a metric the columns of a matrix do not know of one another, so that groups in which the sub-vectors of all
stages end can be coded apart. Codebooks that all positions share are found first, from a sample of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewfold.linalg.kmeans import kmeans, priority_sample
from fewfold.linalg.subvectors import MOST_POINTS, Cluster, Coded, fit_codes
from fewfold.progress import track
from fewfold.stored.stages import StageSpec

GROUP_COLUMNS = 64  # of a group, or as many as the stages' widths ask for

Take = Callable[[Tensor | None, slice], Tensor]
Keep = Callable[[str, Sequence[Tensor], Callable[[], Coded]], Coded]


def fit_codes_by_columns(
    take: Take,
    rows: int,
    columns: int,
    stages: Sequence[StageSpec],
    row_weights: Tensor,
    rounds: int = 1,
    sweeps: int = 1,
    book_dtype: torch.dtype = torch.float16,
    seed: int = 0,
    cluster: Cluster = kmeans,
    keep: Keep | None = None,
) -> Coded:
    """As `fit_codes` without metric and scales, holding some columns of the matrix at a time.

    :param take: gives rows ``(indices, or None for all)`` of a run of columns, fp32.
    :param rows: of the matrix.
    :param columns: of the matrix.
    :param stages: coarse first, either all of one codebook for each position or all with a shared one.
    :param row_weights: ``(rows,)``, not negative.
    :param rounds: turns of codebooks and codes (shared codebooks follow the codes of their sample).
    :param keep: gives the codes of a group of columns, made now or kept from an earlier run: told are the settings in
        words, the tensors that the codes depend on, and what makes them.
    :return: as of `fit_codes`; which rows the partial stages cover is the same in every group.
    :raises ValueError: as `fit_codes`, or if some stages share their codebook and others do not.
    """
    if len({stage.shared for stage in stages}) != 1:
        raise ValueError("stages with a shared codebook and with one for each position cannot be fitted by columns")
    books = None
    if stages[0].shared:
        books = _shared_books(take, rows, columns, stages, row_weights, rounds, sweeps, book_dtype, seed, cluster)
    step = math.lcm(*(stage.width for stage in stages))
    step *= max(1, GROUP_COLUMNS // step)
    told = f"{list(stages)} rounds={rounds} sweeps={sweeps} {book_dtype} seed={seed}"
    parts: list[Coded] = []
    for start in track(range(0, columns, step), "coding columns"):
        group = take(None, slice(start, min(start + step, columns)))

        def code(group: Tensor = group) -> Coded:
            return fit_codes(
                group, stages, None, row_weights, False, rounds=rounds, sweeps=sweeps, book_dtype=book_dtype, seed=seed,
                in_place=True, cluster=cluster, books=books,
            )  # fmt: skip

        parts.append(code() if keep is None else keep(told, [group, row_weights, *(books or [])], code))
        del group, code  # before the next one is made
    codes = [torch.cat([part.codes[number] for part in parts], 1) for number in range(len(stages))]
    if books is None:
        books = [torch.cat([part.books[number] for part in parts]) for number in range(len(stages))]
    return replace(parts[0], codes=codes, books=books)


def _shared_books(
    take: Take, rows: int, columns: int, stages: Sequence[StageSpec], weights: Tensor, rounds: int, sweeps: int,
    book_dtype: torch.dtype, seed: int, cluster: Cluster,
) -> list[Tensor]:  # fmt: skip
    """One codebook a stage, fitted to some rows of all columns."""
    count = MOST_POINTS // -(-columns // stages[0].width)
    chosen, mass = torch.arange(rows), weights.float()
    if rows > count:
        chosen, mass = priority_sample(weights.float(), count, torch.Generator().manual_seed(seed))
    # in the order of importance that the whole matrix has, so that a partial stage finds its rows among them
    place = torch.empty(rows, dtype=torch.int64)
    place[weights.argsort(descending=True, stable=True)] = torch.arange(rows)
    order = place[chosen].argsort()
    chosen, mass = chosen[order], mass[order]
    inside = [
        stage if stage.rows is None else replace(stage, rows=max(1, int((place[chosen] < stage.rows).sum())))
        for stage in stages
    ]
    sample = take(chosen, slice(0, columns))
    return fit_codes(
        sample, inside, None, mass, False, rounds=rounds, sweeps=sweeps, book_dtype=book_dtype, seed=seed,
        in_place=True, cluster=cluster,
    ).books  # fmt: skip
