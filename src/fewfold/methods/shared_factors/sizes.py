"""What a stack of slices keeps at every size, from one decomposition at full size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewfold.linalg.spectra import eigh_descending
from fewfold.linalg.tucker import side_gram, slice_gram
from fewfold.methods.slices.metrics import Weighing


def energy_kept(weighed: Weighing, sizes: Sequence[tuple[int | None, int, int]]) -> tuple[float, list[float]]:
    """The energy of a stack, and the part of it that its HOSVD keeps at each size.

    Truncations of the HOSVD are nested, so that one of full size tells them all; alternating sweeps keep a little more.

    :param sizes: cores in the bank (None: one a slice) and the ranks of rows and columns.
    :return: total, and one value a size.
    """
    slices = [weighed.seen(number) for number in range(len(weighed))]
    left = eigh_descending(side_gram(slices, "left"))[1].float()
    right = eigh_descending(side_gram(slices, "right"))[1].float()
    banks = sorted({bank for bank, _, _ in sizes if bank is not None})
    row_ends = sorted({rank for _, rank, _ in sizes})
    column_ends = sorted({rank for _, _, rank in sizes})
    mix = eigh_descending(slice_gram(slices))[1].float() if banks else None
    total = sum(float(part.square().sum(dtype=torch.float64)) for part in slices)
    for number, part in enumerate(slices):
        slices[number] = left.t() @ (part @ right)
    if mix is None:
        energy = torch.zeros(slices[0].shape, dtype=torch.float64)
        for part in slices:
            energy += part.square()
        table = _cumulated(energy, row_ends, column_ends)
        return total, [float(table[row_ends.index(a), column_ends.index(b)]) for _, a, b in sizes]
    ends = sorted({*banks, len(slices)})
    core_energy = torch.zeros(len(ends), *slices[0].shape, dtype=torch.float64)
    rows = slices[0].shape[0]
    for row in range(rows):
        chunk = torch.stack([part[row] for part in slices])
        mixed = (mix.t() @ chunk).square().double().cumsum(0)
        core_energy[:, row] = torch.stack([mixed[end - 1] for end in ends])
    kept = [_cumulated(energy, row_ends, column_ends) for energy in core_energy]
    return total, [
        float(kept[ends.index(bank or len(slices))][row_ends.index(a), column_ends.index(b)]) for bank, a, b in sizes
    ]


def _cumulated(energy: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """Sums over the leading corner of ``(rows, columns)`` for each pair of ends."""
    table = energy.cumsum(0).cumsum(1)
    return table[[end - 1 for end in rows]][:, [end - 1 for end in columns]]
