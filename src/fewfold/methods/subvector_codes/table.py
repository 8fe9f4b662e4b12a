"""Coding a table: short rows of falling weight, turned so that every sub-vector carries as much, then k-means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewfold.linalg.subvectors import Coded, fit_codes
from fewfold.linalg.subvectors_by_columns import fit_codes_by_columns
from fewfold.linalg.tables import CHUNK_ROWS, TableDirections, row_weighted_directions, smoothed_counts
from fewfold.methods.subvector_codes.remembered import RememberedCodes, remembered_kmeans
from fewfold.methods.subvector_codes.sizes import balanced, coded_error, falling_blocks, settings, stages_of
from fewfold.stored.stages import StageSpec

OUTPUT_DAMPING = 1.0  # share of the mean eigenvalue that is added to the metric at a table's output
CUT_OFF = 20.0  # a share t of the energy that is cut off counts as t · (1 + 20 t²): measured on sentence vectors
HELD_AT_ONCE = 2**26  # numbers of short rows coded in one piece: a larger table without factors is not held twice
RIDGE = 1e-3  # pull of the refitted map towards the directions, as a share of the mean energy


@dataclass(frozen=True)
class ShortRows:
    """What is known of a table before a size is chosen.

    :param directions: of its rows, the first ones weighing most.
    :param weights: of the rows, ``(vocab,)``.
    :param unit: what makes errors comparable with those of other targets.
    """

    directions: TableDirections
    weights: Tensor
    unit: float


def short_rows(table: Tensor, counts: Tensor | None, metric: Tensor | None, power: float) -> ShortRows:
    """The directions of a table's weighted covariance.

    :param counts: ``(vocab,)`` how often each row was looked up, or None.
    :param metric: ``(dim, dim)``, ``E[g gᵀ]`` of gradients at its output, or None.
    """
    weights = torch.ones(len(table), dtype=torch.float64) if counts is None else smoothed_counts(counts).pow(power)
    weights = weights / weights.sum()
    size = 0.0 if metric is None else float(metric.diagonal().double().mean())
    if metric is None or size == 0:
        directions = row_weighted_directions(table, weights)
        return ShortRows(directions, weights, 1.0 / max(float(directions.gains.sum()), torch.finfo(torch.float64).tiny))
    # short rows are as large as the table's, whatever the gradients' unit: fp16 has to hold them and the map
    return ShortRows(row_weighted_directions(table, weights, metric / size, OUTPUT_DAMPING), weights, size)


def table_errors(short: ShortRows, sizes: Sequence[Mapping[str, Any]]) -> list[float]:
    """The expected error of every size: directions that are cut off, and what coding loses of the others.

    Rows that a further stage serves lose what both stages together leave.
    """
    gains, energy = short.directions.gains, float(short.directions.gains.sum())
    tails = torch.nn.functional.pad(gains.flip(0).cumsum(0).flip(0), (0, 1)).tolist()  # from each direction on
    falling = short.weights.sort(descending=True).values
    mass = torch.nn.functional.pad(falling.cumsum(0) / falling.sum(), (1, 0)).tolist()  # of so many heaviest rows
    blocks: dict[tuple[int, int], Tensor] = {}
    coded: dict[tuple[Any, ...], float] = {}

    def lost(rank: int, stages: Sequence[StageSpec]) -> float:
        """Of a row that so many directions and these stages serve; the same for any number of rows."""
        key = (rank, *((stage.width, stage.words) for stage in stages))
        if key not in coded:
            start = (rank, stages[0].width)
            if start not in blocks:
                blocks[start] = falling_blocks(gains[:rank], stages[0].width)
            coded[key] = coded_error(blocks[start], stages)
        return coded[key]

    found = []
    for size in sizes:
        rank, stages = size["rank"], stages_of(size)
        whole = [stage for stage in stages if stage.rows is None]
        cut = tails[rank] / max(energy, torch.finfo(torch.float64).tiny)
        total, before = energy * cut * (1 + CUT_OFF * cut**2), 0.0
        for stage in reversed([stage for stage in stages if stage.rows is not None]):
            reached = mass[min(stage.rows or 0, len(falling))]
            inside = [s for s in stages if s.rows is None or s.rows >= (stage.rows or 0)]
            total += (reached - before) * lost(rank, inside)
            before = reached
        total += (1.0 - before) * lost(rank, whole)
        found.append(min(total, energy) * short.unit)
    return found


def fit_table(
    table: Tensor,
    short: ShortRows,
    chosen: Mapping[str, Any],
    book_dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Codes, codebooks and the map back.

    :return: tensors by their name in the module.
    """
    stages, rank = stages_of(chosen), chosen["rank"]
    order = balanced(short.directions.gains[:rank], stages[0].width)
    coded = _codes(table, short, stages, order, chosen["scales"], book_dtype, seed)
    back, mean = _map_back(table, coded, short, order)
    return {"up.weight": back.T, "up.bias": mean, **coded.tensors("coded.")}


def _codes(
    table: Tensor, short: ShortRows, stages: Sequence[StageSpec], order: Tensor, scales: bool, book_dtype: torch.dtype,
    seed: int,
) -> Coded:  # fmt: skip
    """Codes of the short rows; those of a large table are made some columns at a time."""
    large = len(table) * len(order) > HELD_AT_ONCE
    if not large or scales:
        return fit_codes(
            short.directions.coordinates(table, order), stages, None, short.weights, scales, rounds=int(not large),
            sweeps=1, book_dtype=book_dtype, seed=seed, in_place=True, cluster=remembered_kmeans,
        )  # fmt: skip

    def take(rows: Tensor | None, columns: slice) -> Tensor:
        return short.directions.coordinates(table if rows is None else table[rows], order[columns])

    kept = RememberedCodes()
    coded = fit_codes_by_columns(
        take, len(table), len(order), stages, short.weights, book_dtype=book_dtype, seed=seed,
        cluster=remembered_kmeans, keep=kept,
    )  # fmt: skip
    kept.forget()
    return coded


def _map_back(table: Tensor, coded: Coded, short: ShortRows, order: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted least-squares map from what the codes say to the rows, ``(rank, dim)``, and its constant."""
    rank, mean = len(order), short.directions.mean
    inner = torch.zeros(rank + 1, rank + 1, dtype=torch.float64)
    cross = torch.zeros(rank + 1, table.shape[1], dtype=torch.float64)
    for start in range(0, len(table), CHUNK_ROWS):
        run = slice(start, start + CHUNK_ROWS)
        said = coded.rows(torch.arange(len(table))[run], rank)
        known = torch.nn.functional.pad(said, (0, 1), value=1.0)
        weighted = (known * short.weights[run].float()[:, None]).T
        inner += (weighted @ known).double()
        cross += (weighted @ (table[run].float() - mean.float())).double()
    energy = inner.diagonal()[:-1].mean().clamp_min(torch.finfo(torch.float32).tiny)  # 0 where all rows are equal
    strength = RIDGE * energy * torch.eye(rank + 1, dtype=torch.float64)
    strength[-1, -1] = 0.0
    wanted = torch.nn.functional.pad(short.directions.back[order], (0, 0, 0, 1))
    back = torch.linalg.solve(inner + strength, cross + strength @ wanted)
    return back[:-1], mean + back[-1]


def table_settings(
    width: int, words: int, rank: int, frequent: tuple[int, int] | None, shared: bool, scales: bool, kept: str
) -> dict[str, Any]:
    """The settings of fixed values.

    :param frequent: rows of a second stage and its width, or None.
    :param kept: stored dtype of the map back.
    """
    stages = [StageSpec(width, words, shared)]
    if frequent is not None:
        stages.append(StageSpec(frequent[1], words, shared, frequent[0]))
    return {**settings(stages, scales), "rank": rank, "mean_row": True, "map": kept}
