"""Weights that are made at every run, shortly before their use, instead of once a session.

ONNX Runtime computes what depends on constants alone when a session starts, and keeps the results; what it needs on the
way stays with the process. What takes its shape from an input is left to the run. Here a shape gets a zero added, the
difference of the multiplied value's size and itself. That value has to be there first, so a weight is made when it
is its turn, and its memory serves the next one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewfold.export.graph import Graph

LARGE = 1024  # bytes of a constant that is held back
_VIEWS = ("Reshape", "Transpose")  # a product takes them in passing


def make_late(graph: Graph) -> int:
    """Hold every large constant back that something is computed from; numbers stay as they are.

    :return: how many constants are held back.
    """
    return _Late(graph, wholly=True).run()


def shape_late(graph: Graph) -> int:
    """Hold back only that looked-up words become a matrix: a copy when a session starts, free at a run.

    :return: how many matrices are shaped at every run.
    """
    return _Late(graph, wholly=False).run()


class _Late:
    """One pass over the nodes: those of constants move in front of what first takes their results."""

    def __init__(self, graph: Graph, wholly: bool) -> None:
        self.graph, self.wholly, self.made = graph, wholly, graph.constants()
        self.order: list[Any] = []
        self.placed: set[str] = set()
        self.held: dict[str, str] = {}
        self.zeros: dict[str, str] = {}

    def run(self) -> int:
        """Reorder, hold back and count."""
        for node in self.graph.ordered():
            if node.output[0] in self.made:
                continue
            moving = next(name for name in node.input if name and not self._is_constant(name))
            for name in node.input:
                self._place(name, moving)
            self.order.append(node)
        for entry in self.graph.graph.output:
            self._place(entry.name, self.graph.graph.input[0].name)
        self.graph.reorder(self.order)
        return len(self.held)

    def _is_constant(self, name: str) -> bool:
        return name in self.graph.initializers or name in self.made

    def _place(self, name: str, moving: str) -> None:
        """Put the nodes that make a value here, if they do not stand further up."""
        node = self.made.get(name)
        if node is None or name in self.placed:
            return
        self.placed.update(node.output)
        for place, one in enumerate(node.input):
            if one not in self.graph.initializers:
                self._place(one, moving)
            elif self.wholly:
                node.input[place] = self._hold(one, moving)
        if not self.wholly and self._shapes_words(node):
            self.held[name] = node.input[1] = self._node("Add", [node.input[1], self._zero(moving)])
        self.order.append(node)

    def _hold(self, name: str, moving: str) -> str:
        """A constant as it is, but only once ``moving`` is there."""
        entry = self.graph.initializers[name]
        if name not in self.held:
            if len(entry.raw_data) < LARGE:
                return name
            shape = self.graph.constant(np.array(entry.dims, np.int64))
            self.held[name] = self._node("Reshape", [name, self._node("Add", [shape, self._zero(moving)])])
        return self.held[name]

    def _shapes_words(self, node: Any) -> bool:
        """Whether a node is all that stands between a look-up and products."""
        if node.op_type != "Reshape" or node.input[1] not in self.graph.initializers:
            return False
        source = self.made.get(node.input[0])
        return source is not None and source.op_type == "Gather" and self._is_multiplied(node.output[0])

    def _is_multiplied(self, name: str) -> bool:
        users = [node for node in self.graph.nodes() if name in node.input]
        return all(
            node.op_type == "MatMul" or (node.op_type in _VIEWS and self._is_multiplied(node.output[0]))
            for node in users
        )

    def _zero(self, moving: str) -> str:
        if moving not in self.zeros:
            size = self._node("Size", [moving])
            self.zeros[moving] = self._node("Sub", [size, size])
        return self.zeros[moving]

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        made = self.graph.make(kind, inputs, **attributes)
        self.order.append(made)
        return str(made.output[0])
