"""Numbers of an ONNX graph in the shortest form that holds them, and where they become long again."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewfold.export.graph import Graph
from fewfold.export.planes import add_planes, bits_of, packed_bytes, read_planes

WORTH = 256  # bytes that a shorter dtype has to save to be worth its nodes
_INTEGERS = (np.uint8, np.int8, np.int16, np.int32)
_MOVES = ("Reshape", "Transpose")  # nodes that only move numbers


def shorten_dtypes(graph: Graph, cast_last: bool = False) -> None:
    """Keep each initializer in the smallest dtype that holds all its numbers exactly, with a cast behind it.

    Whole numbers of a few bits, as codes are, stand in planes of bits where those are shorter still. Rows that inputs
    look up are cast behind the look-up. Words that codes look up are cast before it, as a codebook is smaller than they
    are many.

    :param cast_last: cast those words behind all that moves them instead, for sessions that make them once: what they
        keep on the way is half as large.
    """
    constants = graph.constants()
    for name in list(graph.initializers):
        values = graph.array(name)
        if _keep_planes(graph, name, values):
            continue
        short = _shortest(values)
        if short is None or values.nbytes - values.size * short.itemsize < WORTH:
            continue
        kind = graph.initializers[name].data_type
        if graph.uses(name) == 0:
            continue
        gathers = [node for node in graph.row_lookups(name) if cast_last or node.output[0] not in constants]
        others = graph.uses(name) > len(gathers)
        held = graph.add(values.astype(short))
        for node in gathers:
            rows = graph.node("Gather", [held, node.input[1]], before=node)
            cast = graph.make("Cast", [rows], to=kind)
            graph.put(cast, before=node)
            graph.replace(node, cast.output[0])
            if node.output[0] in constants:
                _sink(graph, cast)
        if others:
            graph.rename(name, graph.node("Cast", [held], to=kind))
        graph.drop(name)


def _keep_planes(graph: Graph, name: str, values: Any) -> bool:
    """Put planes of bits in the place of whole numbers; False where that would not be shorter."""
    if values.dtype.kind not in "iu" or graph.uses(name) == 0:
        return False
    bits, short = bits_of(values), _shortest(values) or values.dtype
    if bits is None or values.size * short.itemsize - packed_bytes(values, bits) < WORTH:
        return False
    kind, gathers, planes = graph.initializers[name].data_type, graph.row_lookups(name), add_planes(graph, values, bits)
    others = graph.uses(name) > len(gathers)
    for node in gathers:
        graph.replace(node, read_planes(graph, planes, kind, lookup=node))
    if others:
        graph.rename(name, read_planes(graph, planes, kind))
    graph.drop(name)
    return True


def _sink(graph: Graph, cast: Any) -> None:
    """Move a cast behind what only moves its numbers."""
    while True:
        users = [node for node in graph.nodes() for name in node.input if name == cast.output[0]]
        if len(users) != 1 or users[0].op_type not in _MOVES or users[0].input[0] != cast.output[0]:
            return
        graph.swap(cast, users[0])


def _shortest(values: Any) -> Any:
    """The smallest dtype that holds all values, or None where that is their own."""
    if values.dtype == np.float32:
        from ml_dtypes import bfloat16  # onnx brings it

        for kind in (np.float16, bfloat16):
            with np.errstate(over="ignore"):
                short = values.astype(kind)
            if np.array_equal(short.astype(np.float32), values):
                return np.dtype(kind)
        return None
    if values.dtype in (np.int64, np.int32, np.int16) and values.size:
        low, high = int(values.min()), int(values.max())
        for kind in _INTEGERS:
            info = np.iinfo(kind)
            if info.min <= low and high <= info.max:
                return np.dtype(kind) if np.dtype(kind).itemsize < values.dtype.itemsize else None
    return None
