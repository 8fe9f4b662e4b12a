"""How many sub-vectors a slim table has: given as such, or worked out from a ratio or a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from fewfold.errors import ModelError
from fewfold.stored.dtypes import StoredDtype
from fewfold.stored.stages import MAX_WORDS, StageSpec, coded_bytes

Pool = Literal["positions", "free"]

_SIZES = ("words", "pool_size", "ratio", "numbers", "bytes")

ROUNDING = 1e-12  # by which a quotient may come out below the whole number that it is


@dataclass(frozen=True)
class SlimCodes:
    """The shape of a slim table of ``rows × columns``: every row is ``positions`` sub-vectors of equal width.

    :param positions: sub-vectors of a row, K; divides the columns.
    :param words: entries of a pool. Pool ``positions``: every position has one of its own, M = K · words sub-vectors in
        all. Pool ``free``: all positions share one, M = words (look-ups only: products would cost K times as much).
    :param seed: of the codes, which are drawn once and never change.
    :param stored_dtype: how the sub-vectors are kept on disk.
    """

    positions: int
    words: int
    pool: Pool = "positions"
    seed: int = 0
    stored_dtype: str = "fp32"

    @classmethod
    def sized(
        cls,
        rows: int,
        columns: int,
        positions: int = 8,
        *,
        words: int | None = None,
        pool_size: int | None = None,
        ratio: float | None = None,
        numbers: int | None = None,
        bytes: int | None = None,
        pool: Pool = "positions",
        seed: int = 0,
        stored_dtype: str = "fp32",
    ) -> SlimCodes:
        """Codes for a table of ``rows × columns`` from exactly one of five sizes.

        :param words: entries of a pool.
        :param pool_size: sub-vectors in all, M.
        :param ratio: at least so many dense numbers for each stored one, ``K · rows / M``; codes are not counted.
        :param numbers: stored numbers at most, ``M · columns / K``; codes are not counted.
        :param bytes: on disk at most: sub-vectors and packed codes.
        :raises ModelError: if not exactly one size is given, or it cannot be had.
        """
        given = {"words": words, "pool_size": pool_size, "ratio": ratio, "numbers": numbers, "bytes": bytes}
        sizes = {name: value for name, value in given.items() if value is not None}
        if len(sizes) != 1:
            named = ", ".join(sizes) or "none of them"
            raise ModelError(f"slim codes take exactly one of {', '.join(_SIZES)}; got {named}")
        name, value = next(iter(sizes.items()))
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ModelError(f"slim codes: {name}={value!r}; it must be a positive number")
        _check_positions(columns, positions)
        if pool not in ("positions", "free"):
            raise ModelError(f"slim codes: pool={pool!r}; it must be 'positions' or 'free'")
        pools = 1 if pool == "free" else positions
        if name == "bytes":
            count = _words_in_bytes(rows, columns, positions, pool, stored_dtype, int(value))
        else:
            total = {
                "words": value * pools,
                "pool_size": value,
                "ratio": positions * rows / value,
                "numbers": value * positions / columns,
            }[name]
            count = int(total / pools * (1 + ROUNDING))
        codes = cls(positions, count, pool, seed, stored_dtype)
        codes.check(rows, columns)
        return codes

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], rows: int, columns: int) -> SlimCodes:
        """From plain values, with one of the sizes of :meth:`sized`.

        :raises ModelError: naming unknown or unusable entries.
        """
        if not isinstance(values, Mapping):
            raise ModelError(f"slim codes are a dict such as {{'positions': 8, 'ratio': 10}}; got {values!r}")
        known = {field.name for field in fields(cls)} | set(_SIZES)
        unknown = sorted(set(values) - known)
        if unknown:
            raise ModelError(f"slim codes have no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return cls.sized(rows, columns, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def check(self, rows: int, columns: int) -> None:
        """Refuse what cannot stand for a table of ``rows × columns``.

        :raises ModelError: naming the value and what is allowed.
        """
        _check_positions(columns, self.positions)
        if self.pool not in ("positions", "free"):
            raise ModelError(f"slim codes: pool={self.pool!r}; it must be 'positions' or 'free'")
        slots = rows * (self.positions if self.pool == "free" else 1)
        most = min(slots, MAX_WORDS)
        if not 2 <= self.words <= most:
            raise ModelError(
                f"slim codes: {self.words} words in a pool of a {rows}×{columns} table with {self.positions} "
                f"positions; it must be 2…{most}: more would never be used"
            )
        if self.words**self.positions < rows:
            raise ModelError(
                f"slim codes: {self.positions} positions of {self.words} words tell "
                f"{self.words**self.positions} rows apart, the table has {rows}; take more words or positions"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ModelError(f"slim codes: seed={self.seed!r}; it must be a whole number")
        StoredDtype(self.stored_dtype)  # type: ignore[arg-type]

    def stage(self, columns: int) -> StageSpec:
        """The format of the coded matrix."""
        return StageSpec(columns // self.positions, self.words, self.pool == "free")

    @property
    def pool_size(self) -> int:
        """Sub-vectors in all, M."""
        return self.words * (1 if self.pool == "free" else self.positions)

    def numbers(self, columns: int) -> int:
        """Stored numbers, ``M · columns / K``."""
        return self.pool_size * (columns // self.positions)

    def ratio(self, rows: int) -> float:
        """Dense numbers for each stored one, ``K · rows / M``."""
        return self.positions * rows / self.pool_size

    def bytes(self, rows: int, columns: int) -> int:
        """Bytes on disk: sub-vectors and packed codes."""
        stored = StoredDtype(self.stored_dtype)  # type: ignore[arg-type]
        return coded_bytes(rows, columns, [self.stage(columns)], False, stored)


def _check_positions(columns: int, positions: int) -> None:
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1 or columns % positions:
        raise ModelError(f"slim codes: positions={positions!r}; it must divide the table's {columns} columns")


def _words_in_bytes(rows: int, columns: int, positions: int, pool: Pool, stored: str, limit: int) -> int:
    """The most words of a pool that fit into ``limit`` bytes, codes included."""
    low, high = 1, min(MAX_WORDS, rows * (positions if pool == "free" else 1))
    while low < high:
        middle = (low + high + 1) // 2
        fits = SlimCodes(positions, middle, pool, 0, stored).bytes(rows, columns) <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    if low < 2:
        least = SlimCodes(positions, 2, pool, 0, stored).bytes(rows, columns)
        raise ModelError(f"slim codes: bytes={limit} is too few; 2 words and the codes take {least}")
    return low
