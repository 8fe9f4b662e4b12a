"""Whole numbers of any few bits in an ONNX graph: planes of 8, 4, 2 and 1 bits, each packed into bytes.

ONNX has integers of 8 and 16 bits, codes have 4, 9 or 12: rounded up they would be most of a small file. A plane holds
some bits of every number, as many numbers to a byte as fit, row by row, so that rows can be looked up before they are
made into numbers. The lowest bits of a row's bytes are the first numbers, the next ones go on: no number moves then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewfold.export.graph import Graph

WIDTHS = (8, 4, 2, 1)
NODES = 512  # bytes of the nodes that put a plane's numbers together, about
_LIMIT = 16  # bits from which an integer of ONNX's own is as short
# Bits that stay a byte: what planes would save in the file, a session would take several times over in memory.
_BYTE = range(5, 9)


@dataclass(frozen=True)
class Planes:
    """Numbers ``(…, columns)`` as planes: a width in bits and the name of ``(…, bytes)`` for each, low bits first."""

    columns: int
    parts: tuple[tuple[int, str], ...]


def bits_of(values: Any) -> int | None:
    """Bits of the largest number; None where one is negative, there are none, or planes are not worth it."""
    if not values.ndim or not values.size or int(values.min()) < 0:
        return None
    bits = max(int(values.max()).bit_length(), 1)
    return None if bits in _BYTE or bits >= _LIMIT else bits


def packed_bytes(values: Any, bits: int) -> int:
    """Bytes of the planes and of the nodes that read them."""
    rows, columns = values.size // values.shape[-1], values.shape[-1]
    widths = widths_of(bits)
    return sum(rows * -(-columns * width // 8) for width in widths) + NODES * len(widths)


def widths_of(bits: int) -> list[int]:
    """The planes of so many bits, low bits first: 12 is 8 and 4."""
    return [width for width in WIDTHS if bits & width]


def pack_planes(values: Any, bits: int) -> list[tuple[int, Any]]:
    """Planes of whole numbers ``(…, columns)``, none negative and none of more bits: widths and ``(…, bytes)``."""
    planes, shift = [], 0
    for width in widths_of(bits):
        part = (values >> shift) & (2**width - 1)
        count = 8 // width
        padding = -part.shape[-1] % count
        part = np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, padding)]).reshape(*part.shape[:-1], count, -1)
        planes.append((width, (part << (width * np.arange(count)[:, None])).sum(-2).astype(np.uint8)))
        shift += width
    return planes


def add_planes(graph: Graph, values: Any, bits: int) -> Planes:
    """New initializers that hold the numbers."""
    parts = tuple((width, graph.add(plane)) for width, plane in pack_planes(values, bits))
    return Planes(values.shape[-1], parts)


def read_planes(graph: Graph, planes: Planes, kind: int, lookup: Any = None) -> str:
    """Nodes that make numbers of what planes hold.

    :param kind: the dtype that they get.
    :param lookup: the node that looks rows up; the nodes stand in front of it and make those rows alone.
    """
    reader = _Reader(graph, lookup)
    low, high, shift = "", "", 0
    for width, name in planes.parts:
        part = reader.numbers(width, name, planes.columns)
        if width == 8:
            low = reader.node("Cast", [part], to=kind)
            continue
        if shift:
            part = reader.node("BitShift", [part, reader.byte(shift)], direction="LEFT")
        high = reader.node("BitwiseOr", [high, part]) if high else part
        shift += width
    if not high:
        return low
    high = reader.node("Cast", [high], to=kind)
    if not low:
        return high
    from onnx import helper

    above = graph.constant(np.array(256, helper.tensor_dtype_to_np_dtype(kind)))
    return reader.node("Add", [low, reader.node("Mul", [high, above])])


@dataclass(frozen=True)
class _Reader:
    """Adds nodes in front of a look-up, or of all where there is none."""

    graph: Graph
    lookup: Any

    def node(self, operation: str, inputs: list[str], **attributes: Any) -> str:
        """A new node's output."""
        return self.graph.node(operation, inputs, before=self.lookup, **attributes)

    def byte(self, value: int) -> str:
        """A constant."""
        return self.graph.constant(np.array(value, np.uint8))

    def numbers(self, width: int, name: str, columns: int) -> str:
        """The numbers of one plane, a byte each."""
        if self.lookup is not None:
            name = self.node("Gather", [name, self.lookup.input[1]])
        if width == 8:
            return name
        runs = []
        for start in range(0, 8, width):
            run = self.node("BitShift", [name, self.byte(start)], direction="RIGHT") if start else name
            last = start + width == 8
            runs.append(run if last else self.node("BitwiseAnd", [run, self.byte(2**width - 1)]))
        found = self.node("Concat", runs, axis=-1)
        if columns % (8 // width) == 0:
            return found
        ends = [self.graph.constant(np.array([one])) for one in (0, columns, -1)]
        return self.node("Slice", [found, *ends])
