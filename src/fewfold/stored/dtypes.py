"""How a stored tensor is kept on disk: as floats, as int8 per row, or as few-bit integers in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fewfold.errors import RecipeError

StoredDtypeName = Literal["fp32", "fp16", "bf16", "int8", "int4", "int3", "int2"]

_CASTS = {"fp16": torch.float16, "bf16": torch.bfloat16}
_BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


@dataclass(frozen=True)
class StoredDtype:
    """The kept form of one matrix.

    :param name: ``fp32`` keeps the model's own float dtype; ``fp16`` and ``bf16`` cast on saving; ``int8`` keeps
        one fp32 scale a row; ``int4``, ``int3`` and ``int2`` keep one bf16 scale for every ``group`` numbers of
        a row.
    :param group: numbers that share a scale (few-bit dtypes only).
    """

    name: StoredDtypeName = "fp32"
    group: int = 32

    def __post_init__(self) -> None:
        if self.name not in get_args(StoredDtypeName):
            allowed = ", ".join(get_args(StoredDtypeName))
            raise RecipeError(f"stored_dtype={self.name!r} is unknown; allowed are {allowed}")
        if self.group < 2:
            raise RecipeError(f"group_size={self.group} is too small; a group shares one scale, use 16 … 128")

    @property
    def bits(self) -> int | None:
        """Bits a number for the integer forms, None for floats."""
        return _BITS.get(self.name)

    @property
    def is_integer(self) -> bool:
        """Whether codes and scales are kept instead of floats."""
        return self.name in _BITS

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is kept as the model has it."""
        return self.name == "fp32"

    @property
    def cast(self) -> torch.dtype | None:
        """The float dtype that saving casts to, if any."""
        return _CASTS.get(self.name)

    @property
    def scale_dtype(self) -> torch.dtype:
        """The dtype of the scales of an integer form."""
        return torch.float32 if self.name == "int8" else torch.bfloat16

    def groups(self, columns: int) -> int:
        """How many scales one row of ``columns`` numbers has."""
        return 1 if self.name == "int8" else -(-columns // self.group)

    def code_bytes(self, columns: int) -> int:
        """Bytes of the packed codes of one row of ``columns`` numbers."""
        bits = self.bits
        if bits is None:
            raise RecipeError(f"stored_dtype={self.name} has no integer codes")
        return -(-columns * bits // 8)

    def matrix_bytes(self, rows: int, columns: int, element_size: int = 4) -> int:
        """Bytes of a ``(rows, columns)`` matrix in this form.

        :param element_size: bytes of one number of the model's own dtype (used by ``fp32``).
        """
        if not self.is_integer:
            size = element_size if self.cast is None else min(2, element_size)
            return rows * columns * size
        scales = self.groups(columns) * (4 if self.name == "int8" else 2)
        return rows * (self.code_bytes(columns) + scales)
