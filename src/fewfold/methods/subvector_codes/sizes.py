"""What sizes codes come in, and what each is expected to lose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor

from fewfold.linalg.kmeans import kmeans, nearest
from fewfold.stored import StoredDtype
from fewfold.stored.stages import StageSpec, coded_bytes

# widths and words of linear maps, from eight bits a number down to an eighth of a bit; more words would cost minutes
LINEAR_SIZES = (
    (1, 256), (1, 128), (1, 64), (2, 1024), (2, 512), (2, 256), (2, 128), (2, 64), (3, 256), (3, 128), (4, 512),
    (4, 256), (5, 512), (5, 256), (6, 256), (8, 512), (8, 256), (10, 256), (12, 256), (16, 256), (24, 256), (32, 256),
    (48, 256), (64, 256),
)  # fmt: skip
FEW_WORDS, MANY_WORDS = 256, (512, 1024, 2048, 4096)  # of a codebook for each position, and of one for all
TABLE_WIDTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
TABLE_RANKS = 16  # numbers of sub-vectors that are tried with every width
FREQUENT_WIDTHS = (2, 3, 4, 6, 8, 12, 16)  # of the stage that only frequent rows have
FREQUENT_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45)  # of the rows that have it
POINTS_PER_WORD = 32  # of the sample that distortions are measured on


@cache
def distortion(width: int, words: int) -> float:
    """Mean squared error of a normal number that is kept with ``width − 1`` others as one of ``words`` sub-vectors.

    Measured by k-means on drawn normal numbers up to 256 words; from there on more bits lower it as far as theory says,
    by ``2^(−2 bits / width)``.
    """
    known = min(words, 256)
    generator = torch.Generator().manual_seed(width)
    points = torch.randn(2 * POINTS_PER_WORD * known, width, generator=generator)
    fitted, held_out = points.chunk(2)
    centres = kmeans(fitted, known, iterations=10)
    error = float((held_out - centres[nearest(held_out, centres)]).square().mean())
    return min(error, 1.0) * 2.0 ** (-2 * math.log2(words / known) / width)


def linear_sizes(
    columns: int, shared: bool, stages: int, scales: bool, words: int | None = None
) -> list[dict[str, Any]]:
    """Settings of a linear map, none of them chosen yet.

    :param words: of every codebook (None: any number).
    """
    pairs = dict.fromkeys((min(width, columns), words or any_number) for width, any_number in LINEAR_SIZES)
    return [settings([StageSpec(width, number, shared)] * stages, scales) for width, number in pairs]


def widths_of_rank(rank: int) -> list[int]:
    """The widths of whole sub-vectors that make short rows of this rank."""
    return [width for width in TABLE_WIDTHS if rank % width == 0]


def table_sizes(
    rows: int, columns: int, words: int, frequent: int | None, shared: bool, scales: bool, kept: str,
    rank: int | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Settings of a table: sub-vectors of every width, as many as fit into its rows, and more for frequent rows.

    :param frequent: how many rows have a second stage (None: any number; 0: there is none).
    :param kept: stored dtype of the map back.
    :param rank: of the short rows (None: any).
    """
    found = []
    tiers: list[list[StageSpec]] = [[]]
    if frequent != 0:
        tiered = {round(share * rows) for share in FREQUENT_SHARES} if frequent is None else {frequent}
        further = min(words, FEW_WORDS)
        tiers += [[StageSpec(w, further, shared, n)] for n in sorted(tiered - {0}) for w in FREQUENT_WIDTHS]
    any_width = dict.fromkeys(min(width, columns) for width in TABLE_WIDTHS)
    for width in any_width if rank is None else widths_of_rank(rank):
        full = columns // width
        counts = {round(full * share / TABLE_RANKS) for share in range(1, TABLE_RANKS + 1)} - {0}
        for count in sorted(counts if rank is None else {rank // width}):
            for tier in tiers:
                if all(stage.width <= width * count for stage in tier):
                    chosen = settings([StageSpec(width, words, shared), *tier], scales)
                    found.append({**chosen, "rank": width * count, "mean_row": True, "map": kept})
    return found


def settings(stages: Sequence[StageSpec], scales: bool) -> dict[str, Any]:
    """As the structure records them."""
    return {"stages": [stage.to_dict() for stage in stages], "scales": scales}


def stages_of(chosen: Any) -> list[StageSpec]:
    """The stages of recorded settings."""
    return [StageSpec.from_dict(values) for values in chosen["stages"]]


def settings_bytes(rows: int, columns: int, chosen: Any, stored: StoredDtype, element_size: int) -> int:
    """Bytes of the stored tensors of one weight, its bias left out.

    :param columns: of the dense weight.
    """
    rank = chosen.get("rank")
    size = coded_bytes(rows, rank or columns, stages_of(chosen), chosen["scales"], stored, element_size)
    if rank is not None:
        kept = StoredDtype(chosen.get("map", stored.name), stored.group)
        size += kept.matrix_bytes(columns, rank, element_size) + (columns * element_size if chosen["mean_row"] else 0)
    return size


def settings_numbers(rows: int, columns: int, chosen: Any) -> int:
    """Floating-point numbers that are stored; codes are counted in bytes only."""
    rank = chosen.get("rank")
    numbers = sum(stage.codebook_numbers(rank or columns) for stage in stages_of(chosen))
    numbers += rows if chosen["scales"] else 0
    return numbers + (0 if rank is None else columns * rank + (columns if chosen["mean_row"] else 0))


def balanced(gains: Tensor, width: int) -> Tensor:
    """An order of directions in which every block of ``width`` has about the same product of gains.

    Directions go by falling gain to the block that has room and the smallest product so far (Ge et al., CVPR 2013).

    :param gains: ``(rank,)``, falling; ``width`` divides the rank.
    :return: ``(rank,)`` the direction at every place.
    """
    blocks: list[list[int]] = [[] for _ in range(len(gains) // width)]
    logs = gains.clamp_min(1e-30).log().tolist()
    shift = min(logs) - 1.0  # so that every gain adds
    room = [(0.0, block) for block in range(len(blocks))]  # a heap of the blocks that are not full
    for direction, log in enumerate(logs):
        total, block = heappop(room)
        blocks[block].append(direction)
        if len(blocks[block]) < width:
            heappush(room, (total + log - shift, block))
    return torch.tensor([direction for block in blocks for direction in block])


def falling_blocks(gains: Tensor, width: int) -> Tensor:
    """The gains of balanced blocks of ``width`` directions, ``(blocks, width)``, falling within each."""
    return gains[balanced(gains, width)].clamp_min(1e-30).view(-1, width).sort(1, descending=True).values


def coded_error(blocks: Tensor, stages: Sequence[StageSpec]) -> float:
    """Expected squared error of a row that all of ``stages`` serve, by reverse water-filling.

    A code's bits, as many as its distortion of even gains is worth, go to the directions of its block above a level;
    those lose the level, the others all they have (Cover and Thomas, Elements of Information Theory, section 10.3).

    :param blocks: as of :func:`falling_blocks`.
    """
    width, share = blocks.shape[1], 1.0
    for stage in stages:
        share *= distortion(stage.width, stage.words)
    above = torch.arange(1, width + 1, dtype=blocks.dtype)
    levels = torch.exp2((blocks.log2().cumsum(1) + width * math.log2(share)) / above)
    last = ((levels <= blocks * (1 + 1e-9)) * above).argmax(1, keepdim=True)
    kept = (last[:, 0] + 1) * levels.gather(1, last)[:, 0]
    return float((kept + blocks.sum(1) - blocks.cumsum(1).gather(1, last)[:, 0]).sum())
