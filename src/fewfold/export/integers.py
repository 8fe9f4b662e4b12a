"""Integer-stored weights kept as integers in an ONNX graph: their numbers are made where they are used.

ONNX Runtime folds what is made from constants when a session starts, so a product runs as fast as a dense one. Rows of
a table are looked up first and made into numbers afterwards, so a table stays small in memory too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from fewfold.export.graph import Graph, digest
from fewfold.linalg.quantize import unpack_codes
from fewfold.stored.modules import Stored


def keep_integers(graph: Graph, model: nn.Module) -> int:
    """Put codes and scales where float weights of integer-stored leaves stand.

    Weights are known by their numbers, as exporting may have renamed or transposed them.

    :return: how many weights are integers in the graph.
    """
    known: dict[tuple[Any, ...], tuple[Stored, bool]] = {}
    for leaf in model.modules():
        if isinstance(leaf, Stored) and leaf.stored.is_integer:
            values = leaf.matrix().detach().float().numpy()
            known.setdefault(digest(values.T), (leaf, True))
            known[digest(values)] = (leaf, False)
    count = 0
    for name in list(graph.initializers):
        values = graph.array(name)
        found = known.get(digest(values)) if values.dtype == np.float32 and values.ndim == 2 else None
        if found is not None:
            count += _keep(graph, name, *found)
    return count


def _keep(graph: Graph, name: str, leaf: Stored, transposed: bool) -> bool:
    """Replace one initializer; False where it has to stay as it is."""
    bits, (rows, columns) = leaf.stored.bits, leaf.matrix_shape
    codes, scales = leaf.grid()
    assert bits is not None
    numbers = unpack_codes(codes, bits, columns).numpy()
    groups = scales.shape[-1]
    width = columns if groups == 1 else leaf.stored.group
    if bits not in (4, 8) and groups == 1:
        bits = 8  # numbers of few bits in a byte each: still a quarter of a float
    if bits not in (4, 8) or (bits == 4 and (groups * width) % 2):
        return False
    scale = scales.float().numpy().reshape(rows, groups)
    if bits == 4:
        padded = np.zeros((rows, groups * width), np.uint8)
        padded[:, :columns] = (numbers.astype(np.int16) + 8).astype(np.uint8)
        numbers = padded[:, ::2] | (padded[:, 1::2] << 4)
    elif groups > 1:
        numbers = np.pad(numbers, ((0, 0), (0, groups * width - columns)))
    if bits == 8 and groups == 1 and _multiplied(graph, name):
        _scale_products(graph, name, numbers.T if transposed else numbers, scale, transposed)
        return True
    if transposed:
        straight = graph.add(graph.array(name).T)
        graph.rename(name, graph.node("Transpose", [straight], perm=[1, 0]))
        graph.drop(name)
        name = straight
    _expand(graph, name, numbers, scale, (columns, groups, width), bits)
    return True


def _multiplied(graph: Graph, name: str) -> bool:
    """Whether products with it, from the right, are all that a matrix is used for."""
    users = [node for node in graph.nodes() if name in node.input]
    return all(node.op_type == "MatMul" and list(node.input).index(name) == 1 for node in users)


def _scale_products(graph: Graph, key: str, codes: Any, scale: Any, transposed: bool) -> None:
    """Multiply by whole numbers; the scales go to the products, or to what is multiplied."""
    row = graph.add(scale.reshape(-1))
    for node in [one for one in graph.nodes() if key in one.input]:
        if transposed:
            graph.follow(node, "Mul", row)
        else:
            node.input[0] = graph.node("Mul", [node.input[0], row], before=node)
    graph.rename(key, graph.node("Cast", [graph.add(codes)], to=1))
    graph.drop(key)


def _expand(graph: Graph, key: str, codes: Any, scale: Any, sizes: tuple[int, int, int], bits: int) -> None:
    """Replace one float initializer: its look-ups by look-ups of codes, its other uses by one made matrix."""
    gathers = graph.row_lookups(key)
    others = graph.uses(key) > len(gathers)
    name = {"codes": graph.add(codes), "scale": graph.add(scale)}
    for node in gathers:
        found = {part: graph.node("Gather", [name[part], node.input[1]], before=node) for part in name}
        graph.replace(node, _numbers(graph, found, sizes, bits, node))
    if others:
        graph.rename(key, _numbers(graph, name, sizes, bits, None))
    graph.drop(key)


def _numbers(graph: Graph, held: dict[str, str], sizes: tuple[int, int, int], bits: int, before: Any) -> str:
    """Nodes that turn ``(…, bytes)`` codes and ``(…, groups)`` scales into ``(…, columns)`` numbers."""
    columns, groups, width = sizes
    codes, scale = held["codes"], held["scale"]

    def node(kind: str, inputs: list[str], **attributes: Any) -> str:
        return graph.node(kind, inputs, before=before, **attributes)

    def constant(*values: int) -> str:
        return graph.constant(np.array(values, np.int64))

    if bits == 4:
        low = node("BitwiseAnd", [codes, graph.constant(np.array(15, np.uint8))])
        high = node("BitShift", [codes, graph.constant(np.array(4, np.uint8))], direction="RIGHT")
        pair = [node("Unsqueeze", [part, constant(-1)]) for part in (low, high)]
        codes = node("Concat", pair, axis=-1)
    rank = graph.row_rank(before) if before is not None else 1
    lead = [0] * rank  # Reshape keeps a size of 0 as it is
    values = node("Cast", [codes], to=1)
    if bits == 4:
        values = node("Sub", [values, graph.constant(np.array(8, np.float32))])
    if groups == 1 and bits == 8:
        return node("Mul", [values, scale])
    values = node("Reshape", [values, constant(*lead, groups, width)])
    values = node("Mul", [values, node("Unsqueeze", [scale, constant(-1)])])
    values = node("Reshape", [values, constant(*lead, groups * width)])
    if groups * width == columns:
        return values
    return node("Slice", [values, constant(0), constant(columns), constant(-1)])
