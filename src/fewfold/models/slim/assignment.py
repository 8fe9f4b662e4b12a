"""Which sub-vectors a row is made of, no two rows alike: balanced and at random, or by vectors of the rows."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewfold.linalg.kmeans import kmeans, nearest
from fewfold.stored.stages import StageSpec

TRIES = 200  # rows that a row which equals another one may exchange a code with
CLOSE = 32  # words that a row which equals another one may take instead, at each position


def balanced_codes(rows: int, positions: int, words: int, free: bool, seed: int) -> Tensor:
    """Codes that use all words of a pool equally often, give or take one; no two rows are equal: both always hold.

    Drawn with a generator of its own. A row that comes out equal to an earlier one exchanges a code with another row,
    which leaves the balance as it is; where so many of the possible rows are needed that this fails, they are counted
    off instead.

    :param words: of a pool; ``words ** positions`` is at least ``rows``.
    :param free: one pool for all positions, instead of one for each.
    :return: ``(rows, positions)`` int64, ``0 … words - 1``.
    """
    generator = torch.Generator().manual_seed(seed)
    if free:
        codes = (torch.randperm(rows * positions, generator=generator) % words).view(rows, positions)
    else:
        drawn = [torch.randperm(rows, generator=generator) % words for _ in range(positions)]
        codes = torch.stack(drawn, 1)
    if _told_apart(codes, generator):
        return codes
    return (_families if free else _counted_off)(rows, positions, words, generator)


def _told_apart(codes: Tensor, generator: torch.Generator) -> bool:
    """Exchange codes in place until no two rows are equal; whether that was reached."""
    _, group, counts = codes.unique(dim=0, return_inverse=True, return_counts=True)
    if int(counts.max()) == 1:
        return True
    later = torch.ones(len(codes), dtype=torch.bool)
    later[counts.cumsum(0) - counts] = False
    twins = group.argsort(stable=True)[later].tolist()
    listed = [tuple(row) for row in codes.tolist()]
    known = Counter(listed)
    for twin in twins:
        others = torch.randint(len(codes), (TRIES,), generator=generator).tolist()
        places = torch.randint(codes.shape[1], (TRIES,), generator=generator).tolist()
        for other, place in zip(others, places, strict=True):
            old = (listed[twin], listed[other])
            new = (_with(old[0], place, old[1][place]), _with(old[1], place, old[0][place]))
            if new[0] != new[1] and not known[new[0]] and not known[new[1]]:
                known.subtract(old)
                known.update(new)
                listed[twin], listed[other] = new
                break
        else:
            return False
    codes.copy_(torch.tensor(listed))
    return True


def _with(row: tuple[int, ...], place: int, code: int) -> tuple[int, ...]:
    return (*row[:place], code, *row[place + 1 :])


def _counted_off(rows: int, positions: int, words: int, generator: torch.Generator) -> Tensor:
    """The numbers 0 … rows - 1 in base ``words``, each digit shifted by the number itself, words and rows shuffled.

    Within every run of ``words`` numbers a shifted digit takes every value once: that is the balance.
    """
    numbers = torch.randperm(rows, generator=generator)
    digits = [numbers % words, *(numbers // words**place + numbers for place in range(1, positions))]
    return torch.stack([torch.randperm(words, generator=generator)[digit % words] for digit in digits], 1)


def _families(rows: int, positions: int, words: int, generator: torch.Generator) -> Tensor:
    """Whole families of rows, and a part of one, out of a single pool; words and rows shuffled.

    A family is a row and what comes of it when 1 … words - 1 is added to all of its codes: together they use every word
    equally often. The one that is taken in part is that of 0, 1, 2, …, whose rows are laid end to end.
    """
    whole, rest = divmod(rows, words)
    in_part = sum(place % words * words ** (place - 1) for place in range(1, positions))
    chosen = torch.randperm(min(words ** (positions - 1), rows), generator=generator)
    chosen = (chosen[chosen != in_part] if rest else chosen)[:whole]
    digits = [torch.zeros_like(chosen)]
    for _ in range(1, positions):
        digits.append(chosen % words)
        chosen = chosen // words
    full = torch.stack(digits, 1)[:, None] + torch.arange(words)[:, None]
    turn = words // math.gcd(words, positions)  # after so many rows the next one would be the first
    number = torch.arange(rest)
    part = (number * positions + number // turn)[:, None] + torch.arange(positions)
    codes = torch.cat([full.flatten(0, 1), part]) % words
    return torch.randperm(words, generator=generator)[codes][torch.randperm(rows, generator=generator)]


def codes_of_vectors(vectors: Tensor, stage: StageSpec, weights: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes by which rows that have like vectors share words, and the words: the centres of the vectors' pieces.

    Every row takes the nearest words. Of rows that come out equal the weightiest stays, and the others take a word a
    little further away at one position, or any that are left. They differ wherever there are as many possible rows.

    :param vectors: ``(rows, columns)`` floats.
    :param weights: ``(rows,)``, not negative: heavier rows draw words towards themselves.
    :param seed: of the k-means.
    :return: codes ``(rows, positions)`` int64, and words ``(positions · words or words, width)`` fp32.
    """
    positions = stage.positions(vectors.shape[1])
    pieces = pad(vectors.float(), (0, positions * stage.width - vectors.shape[1])).unflatten(1, (positions, -1))
    weights = weights.clamp(min=1e-3 * float(weights.max()))
    if stage.shared:
        words = kmeans(pieces.flatten(0, 1), stage.words, weights.repeat_interleave(positions), seed=seed)
        books = [words] * positions
    else:
        books = [
            kmeans(pieces[:, place].contiguous(), stage.words, weights, seed=seed * positions + place)
            for place in range(positions)
        ]
        words = torch.cat(books)
    codes = torch.stack([nearest(pieces[:, place].contiguous(), books[place]) for place in range(positions)], 1)
    _take_others(codes, pieces, books, weights, torch.Generator().manual_seed(seed))
    return codes, words


def _take_others(
    codes: Tensor, pieces: Tensor, books: list[Tensor], weights: Tensor, generator: torch.Generator
) -> None:
    """Change codes in place, each at one position and by as little as can be, until no two rows are equal.

    Where all words close by are taken, a row draws its codes until they are free; where nearly all possible rows are
    needed, it gets the first one that is left. Only where there are more rows than possible ones do some stay equal.
    """
    order = weights.argsort(descending=True, stable=True).tolist()
    listed = [tuple(row) for row in codes.tolist()]
    taken: set[tuple[int, ...]] = set()
    free = (codes for codes in itertools.product(*(range(len(book)) for book in books)) if codes not in taken)
    for row in order:
        if listed[row] in taken:
            distances = [torch.cdist(pieces[row, place][None], book)[0].square() for place, book in enumerate(books)]
            options = []
            for place, distance in enumerate(distances):
                least, word = distance.topk(min(CLOSE, len(distance)), largest=False)
                further = (least - distance[listed[row][place]]).tolist()
                options += [(more, place, code) for more, code in zip(further, word.tolist(), strict=True)]
            for _, place, code in sorted(options):
                other = _with(listed[row], place, code)
                if other not in taken:
                    break
            else:
                for _ in range(len(codes) + TRIES):
                    other = tuple(int(torch.randint(len(book), (), generator=generator)) for book in books)
                    if other not in taken:
                        break
                else:
                    other = next(free, listed[row])
            listed[row] = other
        taken.add(listed[row])
    codes.copy_(torch.tensor(listed))
