"""Tensor trains of stacks of matrices, by sequential truncation from the right (TT-SVD) with Gram matrices.

Rows and columns of every matrix are split into factors and paired, so that a ``(i₁i₂) × (j₁j₂)`` matrix is a tensor
with the modes ``(i₁j₁, i₂j₂)``: the TT-matrix of Oseledets, Tensor-train decomposition (SIAM J. Sci. Comput. 2011),
section 4.3. All cores but the first are shared by the whole stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fewfold.linalg.spectra import eigh_descending
from fewfold.linalg.tucker import slice_gram


@dataclass(frozen=True)
class Train:
    """``W_s[i₁…, j₁…] = Σ head_s[i₁, j₁, r₁] · core[r₁, i₂, j₂, r₂] · …``.

    :param heads: ``(slices or size, i₁, j₁, r₁)``.
    :param mix: ``(slices, size)`` where heads are mixed from fewer, or None.
    :param cores: ``(r, i, j, r')`` each, the last with ``r' = 1``.
    :param error: relative error of the whole stack.
    """

    heads: Tensor
    mix: Tensor | None
    cores: list[Tensor]
    error: float


def balanced_factors(width: int, count: int) -> list[int]:
    """``count`` factors of ``width`` that are as equal as its divisors allow (least sum), the smallest first."""
    if count == 1:
        return [width]
    smallest = [d for d in range(1, width + 1) if d**count <= width and width % d == 0]
    return min((sorted([d, *balanced_factors(width // d, count - 1)]) for d in smallest), key=sum)


def train_ranks(rows: Sequence[int], columns: Sequence[int], rank: int, slices: int) -> list[int]:
    """The ranks between neighbouring cores: ``rank``, cut to what the modes can hold."""
    modes = [i * j for i, j in zip(rows, columns, strict=True)]
    return [min(rank, prod(modes[place + 1 :]), slices * prod(modes[: place + 1])) for place in range(len(modes) - 1)]


def tensor_train(
    slices: Sequence[Tensor], rows: Sequence[int], columns: Sequence[int], rank: int, size: int | None = None
) -> Train:
    """Decompose matrices ``(Π rows, Π columns)``.

    :param rank: the largest rank between two cores.
    :param size: heads are mixed from this many; None keeps one a slice.
    :return: deterministic; quasi-optimal, each truncation the best for what the ones before it left.
    :raises ValueError: if shapes or sizes do not fit.
    """
    if not slices or rank < 1:
        raise ValueError(f"a train has at least one slice and ranks of at least 1, not {len(slices)} and {rank}")
    shape = (prod(rows), prod(columns))
    if len(rows) != len(columns) or any(tuple(part.shape) != shape for part in slices):
        raise ValueError(f"slices of {shape} are wanted for rows {list(rows)} and columns {list(columns)}")
    if size is not None and not 1 <= size <= len(slices):
        raise ValueError(f"{len(slices)} slices take 1…{len(slices)} heads, not {size}")
    modes = [i * j for i, j in zip(rows, columns, strict=True)]
    ranks = train_ranks(rows, columns, rank, len(slices))
    order = [place for pair in zip(range(len(rows)), range(len(rows), 2 * len(rows)), strict=True) for place in pair]
    parts = [part.reshape(*rows, *columns).permute(order).reshape(prod(modes[:-1]), modes[-1]) for part in slices]
    energy = sum(float(part.square().sum(dtype=torch.float64)) for part in parts)
    cores: list[Tensor] = []
    after = 1
    for place in range(len(modes) - 1, 0, -1):
        gram = torch.zeros(modes[place] * after, modes[place] * after, dtype=torch.float64)
        for part in parts:
            gram += (part.t() @ part).double()
        basis = eigh_descending(gram)[1][:, : ranks[place - 1]]
        cores.insert(0, basis.t().reshape(-1, rows[place], columns[place], after))
        after = ranks[place - 1]
        width = modes[place - 1] * after
        parts = [(part @ basis.to(part.dtype)).reshape(-1, width) for part in parts]
    heads, mix = torch.stack([part.flatten() for part in parts]), None
    if size is not None:
        mix = eigh_descending(slice_gram(list(heads[:, None])))[1][:, :size]
        heads = mix.t().to(heads.dtype) @ heads
    kept = float(heads.square().sum(dtype=torch.float64))
    error = (max(energy - kept, 0.0) / energy) ** 0.5 if energy > 0 else 0.0
    return Train(heads.reshape(-1, rows[0], columns[0], after), mix, cores, error)
