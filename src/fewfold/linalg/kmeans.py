"""Weighted k-means of many short vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewfold.linalg.finite import is_finite

CROSS_ENTRIES = 2**20  # entries of one block of products between points and centres: stays in the cache
SAMPLE_PER_WORD = 128  # points a centre that the iterations see; the rest is only assigned at the end
SAMPLE = 2**18  # points that are enough for any number of centres, 64 for each of 4,096
START_TURNS = 16  # in which the first centres are drawn
TOLERANCE = 1e-4  # relative gain of an iteration below which it was the last
APART = 0x5EED  # from the seeds that points may be drawn with: a sample must not go with its points


def nearest(points: Tensor, words: Tensor) -> Tensor:
    """The closest word of every point, by Euclidean distance.

    :param points: ``(count, width)``.
    :param words: ``(words, width)``; of equally close ones the first is taken.
    :return: ``(count,)`` int64.
    """
    step = max(1, CROSS_ENTRIES // len(words))
    # |x − w|² / 2 less the point's own part, as one product: a column of ones meets the words' half norms
    factor = torch.cat([-words, words.square().sum(1, keepdim=True) / 2], 1).T
    found = torch.empty(len(points), dtype=torch.int64, device=points.device)
    known = torch.nn.functional.pad(points[:step], (0, 1), value=1.0)
    cross = torch.empty(len(known), len(words), dtype=points.dtype, device=points.device)
    for start in range(0, len(points), step):
        block = points[start : start + step]
        known[: len(block), :-1] = block
        torch.mm(known[: len(block)], factor, out=cross[: len(block)])
        _first_least(cross[: len(block)], found[start : start + step])
    return found


def _first_least(cross: Tensor, found: Tensor) -> None:
    """Write the place of the first least entry of every row into ``found``."""
    if cross.device.type == "cpu":
        np.argmin(cross.numpy(), axis=1, out=found.numpy())  # ten times as fast as torch's on one thread
    else:
        torch.argmin(cross, 1, out=found)


def kmeans(points: Tensor, words: int, weights: Tensor | None = None, iterations: int = 20, seed: int = 0) -> Tensor:
    """Centres of least weighted squared distance to the points (Lloyd's iterations).

    Starts at points drawn in a few turns, by weight times squared distance to those drawn before (cf. Bahmani et al.,
    VLDB 2012); a centre that loses all its points moves to a point that is far from its own. Where there are many
    points, the iterations see a sample, drawn by weight.

    :param points: ``(count, width)`` floats.
    :param words: how many centres; where there are no more distinct points than that, some centres repeat.
    :param weights: ``(count,)``, not negative; all equal if absent.
    :param iterations: at most.
    :param seed: of the start; the global generator is left alone.
    :return: ``(words, width)`` fp32.
    :raises ValueError: if shapes disagree or a number is not finite.
    """
    if points.dim() != 2 or 0 in points.shape or words < 1:
        raise ValueError(f"points {tuple(points.shape)} and {words} words: expected (count, width) and at least 1")
    points = points.detach().to(torch.float32)
    mass = torch.ones(len(points)) if weights is None else weights.detach().to(torch.float32)
    if mass.shape != points.shape[:1]:
        raise ValueError(f"weights {tuple(mass.shape)}: there are {len(points)} points")
    if not is_finite(points) or not is_finite(mass) or bool((mass < 0).any()):
        raise ValueError("points and weights must be finite, and weights not negative")
    generator = torch.Generator().manual_seed(seed)
    enough = sample_size(words)
    if len(points) > enough:
        chosen, mass = priority_sample(mass, enough, torch.Generator().manual_seed(seed + APART))
        points = points[chosen]
    centres = _start(points, mass, words, generator)
    before = float("inf")
    for _ in range(iterations):
        owner = nearest(points, centres)
        distance = mass * (points - centres[owner]).square().sum(1)
        total = torch.zeros(words).index_add_(0, owner, mass)
        sums = torch.zeros_like(centres).index_add_(0, owner, points * mass[:, None])
        held = total > 0
        centres[held] = sums[held] / total[held, None]
        idle = int((~held).sum())
        if idle:
            centres[~held] = points[_draw(distance, idle, generator)]
        now = float(distance.sum(dtype=torch.float64))
        if not idle and before - now <= TOLERANCE * now:
            break
        before = now
    return centres


def sample_size(words: int) -> int:
    """How many points are enough to find so many centres."""
    return min(SAMPLE_PER_WORD * words, max(SAMPLE, 16 * words))


def priority_sample(mass: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """So many places, heavy ones first, with masses that stand for all (Duffield et al., J. ACM 2007).

    :param mass: ``(points,)``, not negative, more of them than ``count``.
    :return: ``(count,)`` places and their masses.
    """
    priority = mass / torch.rand(len(mass), generator=generator).clamp_min(1e-12)
    first = priority.topk(count + 1)
    chosen = first.indices[:count]
    return chosen, mass[chosen].clamp_min(first.values[count])


def _start(points: Tensor, mass: Tensor, words: int, generator: torch.Generator) -> Tensor:
    """Points to start at, ``(words, width)``; the first turn draws by distance to the origin."""
    size = -(-words // START_TURNS)
    distance = points.square().sum(1)
    drawn: list[Tensor] = []
    for first in range(0, words, size):
        fresh = points[_draw(mass * distance, min(size, words - first), generator)]
        drawn.append(fresh)
        away = (points - fresh[nearest(points, fresh)]).square().sum(1)
        distance = torch.minimum(distance, away) if first else away
    return torch.cat(drawn)


def _draw(mass: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices drawn by mass, without repetition as far as there is mass."""
    noise = torch.rand(len(mass), generator=generator).clamp_min(1e-12)
    keys = noise.log() / mass.double().clamp_min(1e-30)  # the largest keys are a weighted sample (Efraimidis, Spirakis)
    order = keys.topk(min(count, len(mass))).indices
    repeats = torch.arange(count) % len(order)
    return order[repeats]
