"""The format of coded matrices: stages, how their integers are packed, and what all of it takes on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewfold.linalg.packing import pack_bits, packed_length, unpack_bits
from fewfold.stored.dtypes import StoredDtype

MAX_WORDS = 65536


@dataclass(frozen=True)
class StageSpec:
    """One layer of sub-vectors that add up to a matrix.

    :param width: numbers of a sub-vector; the last one of a row is cut where the width does not divide the columns.
    :param words: sub-vectors in a codebook, 2 … 65536.
    :param shared: one codebook for all positions of a row, instead of one for each.
    :param rows: the stage covers only so many of the most important rows (None: all).
    """

    width: int
    words: int
    shared: bool = False
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"a stage's width is {self.width}; it must be at least 1")
        if not 2 <= self.words <= MAX_WORDS:
            raise ValueError(f"a stage has {self.words} words; it must have 2…{MAX_WORDS}")
        if self.rows is not None and self.rows < 0:
            raise ValueError(f"a stage covers {self.rows} rows; it must cover at least none")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StageSpec:
        """From what :meth:`to_dict` gives.

        :raises ValueError: naming unknown or unusable entries.
        """
        unknown = set(values) - {"width", "words", "shared", "rows"}
        if unknown or not {"width", "words"} <= set(values):
            raise ValueError(f"a stage has width, words, shared and rows; got {dict(values)}")
        numbers = (values["width"], values["words"], values.get("rows"))
        if any(isinstance(number, bool) or not isinstance(number, int | None) for number in numbers):
            raise ValueError(f"a stage's width, words and rows are whole numbers; got {dict(values)}")
        if not isinstance(values.get("shared", False), bool):
            raise ValueError(f"a stage is shared or not, true or false; got {dict(values)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the structure."""
        return asdict(self)

    @property
    def bits(self) -> int:
        """Bits of a code on disk."""
        return integer_bits(self.words)

    @property
    def code_dtype(self) -> torch.dtype:
        """The smallest dtype that holds a code in memory."""
        return torch.uint8 if self.words <= 256 else torch.int16 if self.words <= 32768 else torch.int32

    def positions(self, columns: int) -> int:
        """Sub-vectors of a row."""
        return -(-columns // self.width)

    def covered(self, rows: int) -> int:
        """How many of ``rows`` rows take part."""
        return rows if self.rows is None else min(self.rows, rows)

    def codebook_rows(self, columns: int) -> int:
        """Sub-vectors of all codebooks together."""
        return self.words * (1 if self.shared else self.positions(columns))

    def codebook_numbers(self, columns: int) -> int:
        """Stored numbers of all codebooks."""
        return self.codebook_rows(columns) * self.width


def integer_bits(count: int) -> int:
    """Bits that hold ``0 … count - 1``."""
    return max(1, (count - 1).bit_length())


def packed_integers_length(count: int, bits: int) -> int:
    """Bytes of :func:`pack_integers`."""
    return packed_length(count, min(bits, 16)) + (packed_length(count, bits - 16) if bits > 16 else 0)


def pack_integers(values: Tensor, bits: int) -> Tensor:
    """All of ``values`` as one flat stream of bits; above 16 bits the high parts follow the low ones.

    :return: ``(packed_integers_length(values.numel(), bits),)`` uint8.
    """
    if values.is_meta:
        return torch.empty(packed_integers_length(values.numel(), bits), dtype=torch.uint8, device="meta")
    flat = values.reshape(-1).to(torch.int32)
    if bits <= 16:
        return pack_bits(flat, bits)
    return torch.cat([pack_bits(flat & 0xFFFF, 16), pack_bits(flat >> 16, bits - 16)])


def unpack_integers(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack_integers`: int32 of ``shape``."""
    count = 1
    for size in shape:
        count *= size
    if packed.is_meta:
        return torch.empty(tuple(shape), dtype=torch.int32, device="meta")
    if bits <= 16:
        return unpack_bits(packed, bits, count).to(torch.int32).view(tuple(shape))
    cut = packed_length(count, 16)
    low, high = unpack_bits(packed[:cut], 16, count), unpack_bits(packed[cut:], bits - 16, count)
    return (low | (high.to(torch.int32) << 16)).view(tuple(shape))


def coded_bytes(
    rows: int,
    columns: int,
    stages: Sequence[StageSpec],
    scales: bool,
    stored: StoredDtype,
    element_size: int = 4,
    borrowed: Sequence[bool] | None = None,
) -> int:
    """Bytes of a coded ``(rows, columns)`` matrix on disk: codes, order of importance, codebooks and scales.

    :param element_size: bytes of one number of the model's own dtype.
    :param borrowed: by stage, whether its codebook is owned elsewhere and not counted here.
    """
    total = rows * min(2, element_size) if scales else 0
    if any(stage.rows is not None for stage in stages):
        total += packed_integers_length(rows, integer_bits(rows))
    for index, stage in enumerate(stages):
        total += packed_integers_length(stage.covered(rows) * stage.positions(columns), stage.bits)
        if borrowed is None or not borrowed[index]:
            total += stored.matrix_bytes(stage.codebook_rows(columns), stage.width, element_size)
    return total
