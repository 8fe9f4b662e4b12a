"""Numbers of a few bits in planes."""

import numpy as np
import pytest

from fewfold.export.dtypes import shorten_dtypes
from fewfold.export.graph import Graph
from fewfold.export.onnx import session_of
from fewfold.export.planes import bits_of, pack_planes, packed_bytes

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
BITS = [1, 3, 4, 6, 7, 8, 9, 11, 12, 15]


def _unpacked(planes, columns):
    """Bit by bit."""
    total, shift = None, 0
    for width, held in planes:
        wide = np.zeros((*held.shape[:-1], columns), np.int64)
        for place in np.ndindex(*held.shape[:-1]):
            for column in range(columns):
                turn, byte = divmod(column, held.shape[-1])
                for bit in range(width):
                    wide[(*place, column)] |= ((int(held[(*place, byte)]) >> (turn * width + bit)) & 1) << bit
        total = (wide << shift) + (0 if total is None else total)
        shift += width
    return total


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [1, 5, 8, 19])
def test_planes_hold_every_bit(bits, columns):
    values = np.random.default_rng(bits).integers(0, 2**bits, (2, 3, columns))
    planes = pack_planes(values, bits)
    assert sum(width for width, _ in planes) == bits
    np.testing.assert_array_equal(_unpacked(planes, columns), values)
    assert sum(held.nbytes for _, held in planes) <= packed_bytes(values, bits)


def test_what_planes_cannot_hold():
    assert bits_of(np.array([3, -1])) is None
    assert bits_of(np.array([2**15])) is None
    assert bits_of(np.array([], np.int64)) is None
    assert bits_of(np.array(7)) is None
    assert bits_of(np.array([0, 0])) == 1
    assert bits_of(np.array([256])) == 9
    assert [bits_of(np.array([number])) for number in (15, 16, 255)] == [4, None, None]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [16, 19])
def test_a_graph_reads_them(bits, columns, tmp_path):
    """Looked up by an input, and as codes that look words up themselves."""
    rng, node = np.random.default_rng(bits), onnx.helper.make_node
    codes, words = rng.integers(0, 2**bits, (900, columns)), rng.standard_normal((2**bits, 2)).astype(np.float32)
    codes[0, 0] = 2**bits - 1
    graph = onnx.helper.make_graph(
        [
            node("Gather", ["codes", "rows"], ["mine"]),
            node("Gather", ["words", "mine"], ["found"]),
            node("Gather", ["words", "codes"], ["all"]),
            node("ReduceSum", ["all", "axis"], ["sums"], keepdims=1),
            node("Add", ["found", "sums"], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("rows", 7, ["n"])],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(v, k) for k, v in (("codes", codes), ("words", words), ("axis", np.array([0])))],
    )
    edited = Graph(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10))
    shorten_dtypes(edited)
    proto = edited.finish()
    held = sum(len(one.raw_data) for one in proto.graph.initializer)
    kept = 8 if bits_of(codes) is None else bits
    assert held <= words.nbytes + 900 * columns * kept / 8 + 900 * len(pack_planes(codes, bits)) + 300
    onnx.save_model(proto, str(tmp_path / "g.onnx"))
    rows = np.array([0, 7, 899, 7])
    (y,) = session_of(tmp_path / "g.onnx").run(None, {"rows": rows})
    np.testing.assert_allclose(y, words[codes[rows]] + words[codes].sum(0), rtol=1e-4, atol=1e-3)
