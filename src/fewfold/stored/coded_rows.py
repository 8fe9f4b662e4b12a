"""Another number of rows for a coded matrix."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import cycle, islice
from typing import TYPE_CHECKING
from zlib import crc32

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fewfold.stored.codes import CodedMatrix

CLOSE = 64  # words nearest to the mean that a position offers at least
TRIES = 200  # draws of a row that must not equal another one


@torch.no_grad()
def resize_codes(coded: CodedMatrix, rows: int) -> None:
    """Cut rows off, or add some, in place; see :meth:`CodedMatrix.resize_`."""
    coded.unpack_()
    kept = min(rows, coded.rows)
    fresh = new_codes(coded, rows - kept) if rows > kept else {}
    specs, rank = list(coded.stages), coded.rank
    for index, stage in enumerate(coded.stages):
        codes = coded.codes(index)
        if stage.rows is None:
            codes = torch.cat([codes[:kept], *([fresh[index]] if fresh else [])])
        else:
            assert rank is not None
            inside = rank[:kept][rank[:kept] < len(codes)].sort().values
            codes = codes[inside.long()]
            specs[index] = replace(stage, rows=len(codes))
        coded._buffers[f"codes_{index}"] = codes.contiguous()
    if rank is not None:
        order = rank[:kept].argsort().argsort().to(rank)
        coded.rank = torch.cat([order, torch.arange(kept, rows).to(rank)])
    if coded.scales is not None:
        filling = coded.scales.mean().half().to(coded.scales).expand(rows - kept)
        coded.scales = nn.Parameter(torch.cat([coded.scales[:kept], filling]), coded.scales.requires_grad)
    coded.rows, coded.stages = rows, tuple(specs)


def new_codes(coded: CodedMatrix, count: int) -> dict[int, Tensor]:
    """Codes of ``count`` more rows, ``(count, positions)`` for every stage that covers all rows.

    They equal neither each other nor the codes of a row that is there; codes do not train, so equal rows would stay
    equal. Where words are used equally often, give or take one, the least used ones are drawn, which keeps that so; the
    generator is seeded with the codes. Otherwise a row gets the words nearest to what the stages before leave of the
    mean row, the next one the combination that is next nearest, and so on. Drawn rows that find no free codes get such
    combinations too; where there are too few, they are repeated.
    """
    full = [index for index, stage in enumerate(coded.stages) if stage.rows is None]
    held = [coded.codes(index) for index in full]
    if not held or held[0].is_meta:
        return {index: own.new_zeros(count, own.shape[1]) for index, own in zip(full, held, strict=True)}
    known = torch.cat([own.to("cpu", torch.int32) for own in held], 1)
    taken = _keys(known)
    pools = _pools(coded, full)
    found = _drawn(known, pools, count, taken)
    if len(found) < count:
        options = _options(coded, full, len(known) + count)
        others = (row for row in _nearest(options) if _key(row) not in taken)
        found += islice(others, count - len(found))
        found += islice(cycle(_nearest(options)), count - len(found))
    parts = torch.tensor(found).split([own.shape[1] for own in held], 1)
    return {index: part.to(own) for index, part, own in zip(full, parts, held, strict=True)}


def _key(row: Sequence[int]) -> bytes:
    return array("i", row).tobytes()


def _keys(codes: Tensor) -> set[bytes]:
    stream, size = codes.contiguous().numpy().tobytes(), 4 * codes.shape[1]
    return {stream[start : start + size] for start in range(0, len(stream), size)}


def _pools(coded: CodedMatrix, full: list[int]) -> list[tuple[int, list[int]]]:
    """Number of words, and the places in a row that use them."""
    pools, first = [], 0
    for index in full:
        words, places = coded.stages[index].words, list(range(first, first + coded.positions(index)))
        pools += [(words, places)] if coded.stages[index].shared else [(words, [place]) for place in places]
        first += len(places)
    return pools


def _drawn(known: Tensor, pools: list[tuple[int, list[int]]], count: int, taken: set[bytes]) -> list[tuple[int, ...]]:
    """At most ``count`` rows of the least used words, none if words are not used equally often; adds to ``taken``."""
    left = []
    for words, places in pools:
        used = torch.bincount(known[:, places].flatten(), minlength=words)
        if int(used.max() - used.min()) > 1:
            return []
        left.append((used == used.min()).nonzero()[:, 0].tolist())
    generator = torch.Generator().manual_seed(crc32(known.contiguous().numpy().tobytes()))
    found: list[tuple[int, ...]] = []
    for _ in range(count):
        for _ in range(TRIES):
            row, after = _draw(pools, left, known.shape[1], generator)
            if _key(row) not in taken:
                break
        else:
            exchanged = _exchanged(row, found, taken, generator)
            if exchanged is None:
                return found
            row = exchanged
        left = after
        taken.add(_key(row))
        found.append(tuple(row))
    return found


def _draw(
    pools: list[tuple[int, list[int]]], left: list[list[int]], size: int, generator: torch.Generator
) -> tuple[list[int], list[list[int]]]:
    """A row of words that are left, and what is left then; a pool that is used up starts anew."""
    row, after = [0] * size, []
    for (words, places), unused in zip(pools, left, strict=True):
        rest = unused
        for place in places:
            rest = rest or list(range(words))
            chosen = int(torch.randint(len(rest), (), generator=generator))
            row[place] = rest[chosen]
            rest = [*rest[:chosen], *rest[chosen + 1 :]]
        after.append(rest)
    return row, after


def _exchanged(
    row: list[int], found: list[tuple[int, ...]], taken: set[bytes], generator: torch.Generator
) -> list[int] | None:
    """The row after it has exchanged a word with one of ``found``, so that both equal no other row."""
    for _ in range(TRIES if found else 0):
        other = int(torch.randint(len(found), (), generator=generator))
        place = int(torch.randint(len(row), (), generator=generator))
        mine, theirs = list(row), list(found[other])
        mine[place], theirs[place] = theirs[place], mine[place]
        if mine != theirs and _key(mine) not in taken and _key(theirs) not in taken:
            taken.remove(_key(found[other]))
            taken.add(_key(theirs))
            found[other] = tuple(theirs)
            return mine
    return None


def _options(coded: CodedMatrix, full: list[int], needed: int) -> list[tuple[list[float], list[int]]]:
    """For every place of a row words by what they add to the squared distance from the mean row, and these costs.

    The first one is the word nearest to what the stages before leave. There are enough for ``needed`` combinations.
    """
    left = coded.matrix().mean(0).double()
    if coded.scales is not None:
        left = left / coded.scales.mean()
    bases = []
    for index in full:
        stage, cube = coded.stages[index], coded.cube(index, left.dtype)
        for position, wanted in enumerate(left.split(stage.width)):
            words = cube[0 if stage.shared else position, :, : len(wanted)]
            bases.append((words, int((words - wanted).square().sum(1).argmin()), position * stage.width))
        chosen = torch.tensor([code for _, code, _ in bases[-coded.positions(index) :]], device=left.device)
        left = left - coded.words(index, chosen)
    sizes, most = [len(words) for words, _, _ in bases], CLOSE
    while most < max(sizes) and math.prod(min(most, size) for size in sizes) < needed:
        most *= 2
    options = []
    for words, base, start in bases:
        rest = left[start : start + words.shape[1]]
        costs = (words - words[base] - rest).square().sum(1) - rest.square().sum()
        costs[base] = -math.inf
        least, order = costs.topk(min(most, len(costs)), largest=False)
        options.append((least.clamp(min=0).tolist(), order.tolist()))
    return options


def _nearest(options: list[tuple[list[float], list[int]]]) -> Iterator[tuple[int, ...]]:
    """All combinations of one word a place, once each, by the sum of their costs.

    A combination is the choices that differ from the first, by place; places are walked through by the cost of their
    second word, so that what follows from a combination never costs less.
    """
    places = sorted(range(len(options)), key=lambda place: options[place][0][1])
    base = [codes[0] for _, codes in options]
    yield tuple(base)

    def cost(step: int, choice: int) -> float:
        return options[places[step]][0][choice]

    heap: list[tuple[float, tuple[tuple[int, int], ...]]] = [(cost(0, 1), ((0, 1),))]
    while heap:
        total, changes = heappop(heap)
        row = list(base)
        for step, choice in changes:
            row[places[step]] = options[places[step]][1][choice]
        yield tuple(row)
        (step, choice), before = changes[-1], changes[:-1]
        if choice + 1 < len(options[places[step]][0]):
            more = total - cost(step, choice) + cost(step, choice + 1)
            heappush(heap, (more, (*before, (step, choice + 1))))
        if step + 1 < len(places):
            heappush(heap, (total + cost(step + 1, 1), (*changes, (step + 1, 1))))
            if choice == 1:
                heappush(heap, (total - cost(step, 1) + cost(step + 1, 1), (*before, (step + 1, 1))))
