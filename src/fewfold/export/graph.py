"""Edit an ONNX graph: add and replace nodes, keep what is equal once, and every number."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

MATRIX = 4096  # bytes of a matrix that is worth a node to transpose it


class Graph:
    """An ONNX model under edit: flat, its initializers by name."""

    def __init__(self, proto: Any) -> None:
        self.proto, self.graph = proto, proto.graph
        self.initializers: dict[str, Any] = {entry.name: entry for entry in self.graph.initializer}
        self._order: list[Any] = list(self.graph.node)
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}
        self._front: list[Any] = []
        self._fresh = 0

    def nodes(self) -> Iterator[Any]:
        """All nodes in order."""
        yield from self._front
        yield from self._order

    def array(self, name: str) -> Any:
        """An initializer's numbers."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.initializers[name])

    def add(self, values: Any, name: str | None = None) -> str:
        """A new initializer's name."""
        from onnx import numpy_helper

        name = name or self._name()
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
        return name

    def constant(self, values: Any) -> str:
        """A small initializer, the same one for equal values."""
        key = (str(values.dtype), values.tobytes(), values.shape)
        if key not in self._constants:
            self._constants[key] = self.add(values)
        return self._constants[key]

    def node(self, kind: str, inputs: list[str], before: Any = None, **attributes: Any) -> str:
        """A new node's output; it stands before ``before``, or in front of all."""
        made = self.make(kind, inputs, **attributes)
        if before is None:
            self._front.append(made)
        else:
            self.put(made, before)
        return str(made.output[0])

    def put(self, node: Any, before: Any) -> None:
        """Let a node stand before another."""
        self._order.insert(next(i for i, one in enumerate(self._order) if one is before), node)

    def follow(self, node: Any, kind: str, other: str) -> None:
        """Put a node of two inputs behind another; it makes what that one made."""
        made = self.make(kind, [self._name(), other])
        node.output[0], made.output[0], made.input[0] = made.input[0], node.output[0], made.input[0]
        self._order.insert(next(i for i, one in enumerate(self._order) if one is node) + 1, made)

    def make(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> Any:
        """A new node that stands nowhere yet."""
        from onnx import helper

        return helper.make_node(kind, inputs, [self._name() for _ in range(outputs)], **attributes)

    def ordered(self) -> list[Any]:
        """All nodes, each behind what it takes."""
        return [*_ordered(self._front), *self._order]

    def reorder(self, nodes: list[Any]) -> None:
        """Let the nodes be these, in this order."""
        self._front, self._order = [], nodes

    def constants(self) -> dict[str, Any]:
        """Values that are computed from initializers alone, with the nodes that make them."""
        made: dict[str, Any] = {}
        for node in self.ordered():
            if all(name in self.initializers or name in made or not name for name in node.input):
                made.update(dict.fromkeys(node.output, node))
        return made

    def swap(self, node: Any, user: Any) -> None:
        """Move a node of one input behind the only node that takes its result, as its first input."""
        user.input[0], node.input[0] = node.input[0], node.output[0]
        node.output[0], user.output[0] = user.output[0], node.output[0]
        self._order = [one for one in self._order if one is not node]
        self._order.insert(next(i for i, one in enumerate(self._order) if one is user) + 1, node)

    def uses(self, name: str) -> int:
        """How often nodes take a value."""
        return sum(one == name for node in self.nodes() for one in node.input)

    def row_lookups(self, name: str) -> list[Any]:
        """Nodes that gather whole rows of a value."""
        return [
            node
            for node in self._order
            if node.op_type == "Gather" and node.input[0] == name and not any(a.i for a in node.attribute)
        ]

    def row_rank(self, gather: Any) -> int:
        """Dimensions of a look-up's indices; 2 where the graph does not say."""
        for entry in (*self.graph.input, *self.graph.value_info):
            if entry.name == gather.input[1] and entry.type.tensor_type.HasField("shape"):
                return len(entry.type.tensor_type.shape.dim)
        held = self.initializers.get(gather.input[1])
        return len(held.dims) if held is not None else 2

    def rename(self, old: str, new: str) -> None:
        """Let every node that takes one value take another."""
        for node in self.nodes():
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new

    def replace(self, node: Any, output: str) -> None:
        """Take a node out; its users take another value."""
        self._order = [one for one in self._order if one is not node]
        self.rename(node.output[0], output)

    def drop(self, name: str) -> None:
        """Take an initializer out."""
        del self.initializers[name]

    def finish(self) -> Any:
        """The edited model: nothing unused, no names of nodes, no notes."""
        taken = {name for node in self.nodes() for name in node.input} | {entry.name for entry in self.graph.output}
        kept = [entry for name, entry in self.initializers.items() if name in taken]
        nodes = self.ordered()
        for field in ("node", "initializer", "value_info", "metadata_props"):
            self.graph.ClearField(field)
        self.graph.ClearField("doc_string")
        self.graph.initializer.extend(kept)
        self.graph.node.extend(nodes)
        _shorten(self.proto, {entry.name for entry in (*self.graph.input, *self.graph.output)})
        return self.proto

    def _name(self) -> str:
        self._fresh += 1
        return f"fewfold_{self._fresh}"


def _ordered(nodes: list[Any]) -> list[Any]:
    """Nodes that depend on constants and each other only, so that each stands behind what it takes."""
    waiting, done = {name for node in nodes for name in node.output}, []
    while nodes:
        ready = [node for node in nodes if not waiting.intersection(node.input)]
        done += ready
        waiting -= {name for node in ready for name in node.output}
        nodes = [node for node in nodes if waiting.intersection(node.output)]
    return done


def fold_transposes(graph: Graph) -> None:
    """Store matrices as they are multiplied, where every use is the same transpose."""
    for name in list(graph.initializers):
        users = [node for node in graph.nodes() if name in node.input]
        if not users or any(node.op_type != "Transpose" for node in users):
            continue
        perms = {tuple(node.attribute[0].ints) for node in users if len(node.attribute)}
        if perms != {(1, 0)}:
            continue
        graph.add(graph.array(name).T, name)
        for node in users:
            graph.replace(node, name)


def digest(values: Any) -> tuple[Any, ...]:
    """What equal arrays have in common."""
    return values.shape, hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def drop_copies(graph: Graph) -> None:
    """Keep initializers with equal numbers once, and a matrix and its transpose once."""
    kept: dict[tuple[Any, ...], str] = {}
    for name in list(graph.initializers):
        entry = graph.initializers[name]
        key = (entry.data_type, *digest(graph.array(name)))
        if key in kept:
            graph.rename(name, kept[key])
            graph.drop(name)
            continue
        kept[key] = name
        if len(entry.dims) == 2 and len(entry.raw_data) > MATRIX:
            other = kept.get((entry.data_type, *digest(graph.array(name).T)))
            if other is not None and other != name:
                graph.rename(name, graph.node("Transpose", [other], perm=[1, 0]))
                graph.drop(name)


def _shorten(proto: Any, kept: set[str]) -> None:
    """Drop notes and names of nodes, and give values the shortest names; inputs and outputs keep theirs."""
    counts: Counter[str] = Counter()
    for node in proto.graph.node:
        node.ClearField("name")
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        counts.update(name for name in (*node.input, *node.output) if name and name not in kept)
    short = {name: _letters(number) for number, (name, _) in enumerate(counts.most_common())}
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = short.get(name, name)
    for entry in proto.graph.initializer:
        entry.name = short[entry.name]
        entry.ClearField("doc_string")
        entry.ClearField("metadata_props")
    for entry in (*proto.graph.input, *proto.graph.output):
        entry.ClearField("metadata_props")
    proto.ClearField("metadata_props")


def _letters(number: int) -> str:
    """0, 1, … as _a, _b, …: names that no input or output has."""
    digits = "abcdefghijklmnopqrstuvwxyz"
    text = digits[number % 26]
    while number := number // 26:
        text = digits[number % 26] + text
    return f"_{text}"
