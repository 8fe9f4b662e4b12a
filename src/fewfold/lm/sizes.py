"""Sizes of slim tables as people write them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from fewfold.errors import TaskError


def slim_size(given: str | float | None, positions: int, seed: int = 0) -> dict[str, Any] | None:
    """Read a slim table's size: a share of the dense table's numbers (``1/10``, ``0.1``) or bytes (``200KB``, ``1MB``).

    :param given: What was asked for; None for a dense table.
    :param positions: Sub-vectors a word.
    :param seed: Of the codes.
    :return: Codes as `SlimLMConfig` takes them.
    :raises TaskError: If it cannot be understood.
    """
    if given is None:
        return None
    found = re.fullmatch(r"([\d.]+)\s*([kKM]?)B", str(given).strip())
    if found:
        size = int(float(found[1]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6}[found[2]])
        return {"positions": positions, "seed": seed, "bytes": size}
    try:
        share = Fraction(str(given).strip())
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not 0 < share <= 1:
        raise TaskError(f"slim size {given!r}: give a share of the numbers, such as 1/10, or bytes, such as 200KB")
    return {"positions": positions, "seed": seed, "ratio": float(1 / share)}
