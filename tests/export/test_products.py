"""Products of int8 with weights of codes."""

import numpy as np
import pytest
from tiny_models import make

import fewfold
from fewfold import ModelError, SubvectorCodes
from fewfold.export.graph import Graph
from fewfold.export.onnx import export_onnx, session_of
from fewfold.export.products import multiply_integers
from fewfold.methods.subvector_codes.modules import CodedLinear

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def _coded(rng, more=()):
    """``x · Wᵀ`` and ``x · Uᵀ`` of two matrices whose words are the same, as Graph."""
    node, words = onnx.helper.make_node, rng.standard_normal((16, 3)).astype(np.float32)
    codes = {name: rng.integers(0, 16, (10, 20)) for name in ("a", "b")}
    nodes, entries = [], {"words": words, "shape": np.array([10, 60])}
    for name, held in codes.items():
        entries[name] = held
        nodes += [
            node("Gather", ["words", name], [f"{name}_found"]),
            node("Reshape", [f"{name}_found", "shape"], [f"{name}_w"]),
            node("Transpose", [f"{name}_w"], [f"{name}_t"], perm=[1, 0]),
            node("MatMul", ["x", f"{name}_t"], [f"{name}_y"]),
        ]
    nodes += [*more, node("Add", ["a_y", "b_y"], ["y"])]
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", 1, ["n", 60])],
        [onnx.helper.make_tensor_value_info("y", 1, None)],
        [onnx.numpy_helper.from_array(value, key) for key, value in entries.items()],
    )  # fmt: skip
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return Graph(proto), words, codes


def _dynamic(x):
    """What rounding to 256 levels leaves of x (ONNX: DynamicQuantizeLinear)."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def test_products_are_those_of_rounded_numbers(tmp_path):
    rng = np.random.default_rng(0)
    graph, words, codes = _coded(rng)
    assert multiply_integers(graph) == 2
    kinds = [node.op_type for node in graph.nodes()]
    assert (kinds.count("MatMul"), kinds.count("MatMulInteger")) == (0, 2)
    assert kinds.count("DynamicQuantizeLinear") == 1  # both products take the same numbers
    proto = graph.finish()
    assert {tuple(one.dims): one.data_type for one in proto.graph.initializer}[16, 3] == onnx.TensorProto.INT8
    assert (
        sum(len(one.dims) == 2 and one.dims[0] == 16 for one in proto.graph.initializer) == 1
    )  # words stand there once
    onnx.save_model(proto, str(tmp_path / "g.onnx"))
    x = rng.standard_normal((5, 60)).astype(np.float32)
    (y,) = session_of(tmp_path / "g.onnx").run(None, {"x": x})
    scale = np.abs(words).max() / 127
    rounded = np.rint(words / scale) * scale
    weights = sum(rounded[held].reshape(10, 60) for held in codes.values())
    np.testing.assert_allclose(y, _dynamic(x) @ weights.T, rtol=1e-4, atol=1e-4)


def test_what_others_use_stays():
    node = onnx.helper.make_node
    other = [node("Identity", ["a_w"], ["kept"]), node("Identity", ["kept"], ["kept2"])]
    graph, _, _ = _coded(np.random.default_rng(0), other)
    assert multiply_integers(graph) == 1  # a's matrix is wanted as such
    assert "words" in graph.initializers
    kinds = [node.op_type for node in graph.nodes()]
    assert (kinds.count("MatMul"), kinds.count("MatMulInteger")) == (1, 1)


def test_int8_for_memory_is_refused(tmp_path):
    with pytest.raises(ModelError, match="leave out int8"):
        export_onnx(make("bert_mlm"), tmp_path / "model.onnx", int8=True, optimize_for="memory")
    assert not list(tmp_path.iterdir())


@pytest.mark.full
@pytest.mark.parametrize("name", ["bert_mlm", "gpt2_lm"])
def test_a_model_of_codes(name, tmp_path, monkeypatch):
    monkeypatch.setattr("fewfold.export.onnx.FOLDED", 16)  # these weights are tiny
    config = SubvectorCodes(targets="linears", width=4, words=16, weighting="none", rounds=0)
    model = fewfold.compress(make(name), config)
    coded = sum(isinstance(module, CodedLinear) for module in model.modules())
    report = export_onnx(model, tmp_path / "model.onnx", int8=True)
    assert 0 < coded <= report.integers
    assert 0 < report.difference < 0.1 * report.largest
    kinds = [node.op_type for node in onnx.load(str(report.file)).graph.node]
    assert kinds.count("MatMulInteger") >= coded
