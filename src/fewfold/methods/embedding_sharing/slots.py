"""Slots: which columns of the carved matrix each weight is made of.

The carved matrix ``A`` is ``(rows, columns)``, one row a token. A weight of ``L`` numbers takes ``ceil(L / rows)``
neighbouring columns, all rows of them; read row by row, the first ``L`` numbers are the weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Order = Literal["packed", "reference"]


@dataclass(frozen=True)
class Slot:
    """One carved weight.

    :param shape: of the weight: ``(in, out)`` of a linear map, as torch has it of anything else.
    :param offset: its first column.
    :param columns: how many it takes.
    """

    shape: tuple[int, ...]
    offset: int
    columns: int

    @property
    def numel(self) -> int:
        """Numbers of the weight."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The first column after it."""
        return self.offset + self.columns


def columns_of(shape: tuple[int, ...], rows: int) -> int:
    """Columns of ``rows`` numbers that a weight takes."""
    return -(-math.prod(shape) // rows)


def columns_needed(shapes: Mapping[str, tuple[int, ...]], rows: int) -> int:
    """Columns that all weights take together."""
    return sum(columns_of(shape, rows) for shape in shapes.values())


def allocate(
    shapes: Mapping[str, tuple[int, ...]], rows: int, order: Order = "packed", columns: int | None = None
) -> dict[str, Slot]:
    """Give every weight its columns, in the order of ``shapes``.

    :param rows: of the carved matrix.
    :param order: ``packed`` goes from the first column to the right, ``reference`` from the last one to the left.
    :param columns: of the carved matrix (None: as many as are taken).
    :raises ValueError: if there are too few columns.
    """
    needed = columns_needed(shapes, rows)
    columns = needed if columns is None else columns
    if needed > columns:
        raise ValueError(f"the weights take {needed} columns of {rows} numbers, and there are {columns}")
    slots, taken = {}, 0
    for name, shape in shapes.items():
        width = columns_of(shape, rows)
        offset = taken if order == "packed" else columns - taken - width
        slots[name] = Slot(tuple(shape), offset, width)
        taken += width
    return slots
