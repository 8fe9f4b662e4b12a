"""Products of whole numbers with weights of codes: ONNX Runtime multiplies bytes, and the codes stay codes in the file.

What codes look up becomes int8 with one scale for a codebook, so the matrix that a session makes of it holds bytes; the
other factor is rounded to bytes as it comes (dynamic quantization). Factors of rows follow the product as before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewfold.export.graph import Graph

LEVELS = 127  # on either side of 0
_MOVES = ("Reshape", "Transpose")


def multiply_integers(graph: Graph) -> int:
    """Let products with weights of codes be products of int8.

    :return: how many products.
    """
    made = {node.output[0]: node for node in graph.nodes()}
    rounded: dict[str, list[str]] = {}
    words: dict[str, tuple[str, str]] = {}
    count = 0
    for product in [node for node in graph.nodes() if node.op_type == "MatMul"]:
        lookup = _lookup_behind(graph, made, product.input[1])
        if lookup is None:
            continue
        book, states = lookup.input[0], product.input[0]
        if book not in words:
            words[book] = _as_bytes(graph, book)
        if states not in rounded:
            rounding = graph.make("DynamicQuantizeLinear", [states], outputs=3)
            graph.put(rounding, before=product)
            rounded[states] = list(rounding.output)
        lookup.input[0] = words[book][0]
        values, scale, zero = rounded[states]
        total = graph.node("MatMulInteger", [values, product.input[1], zero], before=product)
        total = graph.node("Cast", [total], before=product, to=1)
        both = graph.node("Mul", [scale, words[book][1]], before=product)
        graph.replace(product, graph.node("Mul", [total, both], before=product))
        count += 1
    for book in words:
        if graph.uses(book) == 0:
            graph.drop(book)
    return count


def _lookup_behind(graph: Graph, made: dict[str, Any], name: str) -> Any:
    """The node that looks words up, where a matrix is those words, moved, and nothing else takes them."""
    while name in made:
        node = made[name]
        if graph.uses(name) != 1:
            return None
        if node.op_type == "Gather":
            held = graph.initializers.get(node.input[0])
            if held is None or any(attribute.i for attribute in node.attribute) or len(held.dims) != 2:
                return None
            return node if graph.array(node.input[0]).dtype == np.float32 else None
        if node.op_type not in _MOVES:
            return None
        name = node.input[0]
    return None


def _as_bytes(graph: Graph, book: str) -> tuple[str, str]:
    """Words as int8, and their scale."""
    values = graph.array(book).astype(np.float32)
    scale = np.float32(max(float(np.abs(values).max()), np.finfo(np.float32).tiny) / LEVELS)
    return graph.add(np.rint(values / scale).astype(np.int8)), graph.add(np.array(scale))
