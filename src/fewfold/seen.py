"""Whether tensors are what they were: for what is kept between calls while nothing that it depends on changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class Seen:
    """Tensors as they are now; equal to what is seen of the very same ones, unchanged.

    It holds them, so that no other tensor comes to stand at the address of one. Writes through ``.data`` are invisible
    to it.

    :param tensors: None stands for one that is not there.
    :param also: what else has to be equal.
    """

    __slots__ = ("key", "tensors")

    def __init__(self, tensors: Iterable[Tensor | None], *also: Any) -> None:
        self.tensors = tuple(tensors)
        self.key = (
            also,
            [
                None if t is None else (id(t), t.data_ptr(), t.dtype, None if t.is_inference() else t._version)
                for t in self.tensors
            ],
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and self.key == other.key

    __hash__ = None  # type: ignore[assignment]
