"""ONNX: equal outputs at any batch and length, each number once and in its kept form."""

import numpy as np
import pytest
import torch
from cases import copied
from tiny_models import make
from transformers import BertConfig, BertModel

import fewfold
from fewfold import Dense, LowRank, ModelError, SubvectorCodes
from fewfold.export.dtypes import shorten_dtypes
from fewfold.export.graph import Graph, fold_transposes
from fewfold.export.late import make_late, shape_late
from fewfold.export.onnx import compare_onnx, export_onnx, session_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
FULL = pytest.mark.full


def medium():
    """Large enough that the graph's own nodes weigh little."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=3000, hidden_size=128, num_hidden_layers=1, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=64,
    )  # fmt: skip
    return BertModel(config).eval()


@pytest.mark.parametrize("stored", [*(pytest.param(stored, marks=FULL) for stored in ("fp32", "fp16", "int8")), "int4"])
def test_the_file_is_as_large_as_the_stored_tensors(stored, tmp_path):
    model = fewfold.compress(medium(), Dense(targets="all", stored_dtype=stored))
    report = export_onnx(model, tmp_path / "model.onnx")
    assert report.difference < 1e-4 * report.largest
    assert report.bytes == (tmp_path / "model.onnx").stat().st_size
    assert report.overhead < 1.08  # position and segment tables, norms and biases stay fp32 in both
    onnx.checker.check_model(str(report.file))
    assert (report.integers > 0) == stored.startswith("int")


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=FULL)])
def test_models_in_two_bytes_stay_so_in_the_file(dtype, tmp_path):
    model = fewfold.compress(medium().to(dtype), LowRank(rank=32, weighting="none"))
    report = export_onnx(model, tmp_path / "model.onnx")
    assert report.difference < 1e-4 * report.largest  # both compute in fp32
    assert report.overhead < 1.08
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_what_cannot_be_run_is_not_left_behind(tmp_path, monkeypatch):
    def broken(model, file):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("fewfold.export.onnx.compare_onnx", broken)
    monkeypatch.setattr("fewfold.export.onnx.LIMIT", 1000)  # weights beside the graph
    with pytest.raises(RuntimeError, match="no kernel"):
        export_onnx(copied("bert_mlm", "low_rank", "fp32"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [*(pytest.param(words, marks=FULL) for words in (256, 512)), 4096])
def test_codes_stay_codes(words, tmp_path):
    config = SubvectorCodes(targets="all", width=4, words=words, codebooks="matrix", weighting="none")
    model = fewfold.compress(medium(), config, fit=False)
    report = export_onnx(model, tmp_path / "model.onnx")
    assert report.difference < 1e-4 * report.largest
    assert report.overhead < 1.15
    kinds = [entry.data_type for entry in onnx.load(str(report.file)).graph.initializer if np.prod(entry.dims) > 10_000]
    assert kinds.count(onnx.TensorProto.UINT8) >= 3  # equal codes stand there once


@pytest.mark.full
@pytest.mark.parametrize("name", ["gpt2_lm", "t5_lm", "vit_cls"])
def test_decoders_pairs_and_images(name, tmp_path):
    report = export_onnx(copied(name, "low_rank", "int4"), tmp_path / "model.onnx")
    assert report.difference < 1e-3 * report.largest
    assert not any(node.doc_string or node.name or node.metadata_props for node in onnx.load(report.file).graph.node)


@pytest.mark.full
def test_int8_on_top(tmp_path):
    model = fewfold.compress(medium(), LowRank(rank=64, weighting="none"))
    plain = export_onnx(model, tmp_path / "plain.onnx")
    quantized = export_onnx(model, tmp_path / "int8.onnx", int8=True)
    assert quantized.bytes < 0.4 * plain.bytes
    assert plain.difference < quantized.difference < 0.2 * quantized.largest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "plain.onnx"]


@pytest.mark.full
def test_what_differs_is_refused(tmp_path):
    with pytest.raises(ModelError, match="differ from torch's by"):
        export_onnx(make("bert"), tmp_path / "model.onnx", tolerance=0.0)
    assert not (tmp_path / "model.onnx").exists()
    with pytest.raises(ModelError, match="has no config"):
        export_onnx(torch.nn.Linear(2, 2), tmp_path / "model.onnx")


@pytest.mark.full
def test_comparing_sees_a_wrong_number(tmp_path):
    model = make("bert")
    export_onnx(model, tmp_path / "model.onnx")
    assert compare_onnx(model, tmp_path / "model.onnx")[0] < 1e-4
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[0] += 0.5
    assert compare_onnx(model, tmp_path / "model.onnx")[0] > 0.01


def coded():
    """Codes whose words reach beyond the last column, with factors for rows, and int8 elsewhere."""
    recipe = [
        SubvectorCodes(targets="linears", width=6, words=64, weighting="none"),
        Dense(targets="embeddings", stored_dtype="int8"),
    ]
    return fewfold.compress(medium(), recipe, fit=False)


def _kept_bytes(file, folder):
    """Bytes of the constants that a session of ONNX Runtime holds, each weight once."""
    return sum(onnx.numpy_helper.to_array(entry).nbytes for entry in _optimized(file, folder).initializer)


def _products_with_constants(file, folder):
    """Products whose matrix a session can pack when it starts."""
    graph = _optimized(file, folder)
    held = {entry.name for entry in graph.initializer}
    return sum(node.op_type in ("MatMul", "FusedMatMul", "Gemm") and node.input[1] in held for node in graph.node)


def _optimized(file, folder):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


@pytest.mark.full
def test_a_session_holds_dense_weights_or_only_the_stored_tensors(tmp_path):
    model = coded()
    dense = sum(4 * m.in_features * m.out_features for m in model.modules() if hasattr(m, "coded"))
    fast, even, lean = (
        export_onnx(model, tmp_path / f"{form}.onnx", optimize_for=form) for form in ("speed", "balance", "memory")
    )
    for report in (fast, even, lean):
        assert report.difference < 1e-4 * report.largest
        onnx.checker.check_model(str(report.file))
    assert lean.bytes < 1.05 * fast.bytes
    assert _kept_bytes(lean.file, tmp_path) < 1.1 * lean.bytes
    for report in (fast, even):
        assert dense < _kept_bytes(report.file, tmp_path) < dense + 1.1 * report.bytes
    packed = [_products_with_constants(report.file, tmp_path) for report in (fast, even, lean)]
    assert packed[0] > packed[1] == packed[2]


@pytest.mark.full
@pytest.mark.parametrize("stored", ["int4", "int8", "fp16"])
def test_stored_dtypes_stay_in_memory(stored, tmp_path):
    model = fewfold.compress(medium(), Dense(targets="all", stored_dtype=stored))
    report = export_onnx(model, tmp_path / "model.onnx", optimize_for="memory")
    assert report.difference < 1e-4 * report.largest
    assert _kept_bytes(report.file, tmp_path) < 1.1 * report.bytes


def _graph(nodes, held, outputs=("y",)):
    helper = onnx.helper
    value = [helper.make_tensor_value_info(name, 1, None) for name in ("x", *outputs)]
    graph = helper.make_graph(
        nodes, "g", value[:1], value[1:], [onnx.numpy_helper.from_array(values, name) for name, values in held.items()]
    )
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_edits_keep_the_numbers(tmp_path):
    node = onnx.helper.make_node
    matrix = np.random.default_rng(0).integers(-9, 9, (40, 30)).astype(np.float32)
    graph = _graph([node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])], {"w": matrix})
    fold_transposes(graph)
    shorten_dtypes(graph)
    proto = graph.finish()
    assert [one.op_type for one in proto.graph.node] == ["Cast", "MatMul"]
    assert [(one.data_type, list(one.dims)) for one in proto.graph.initializer] == [(10, [30, 40])]
    onnx.save_model(proto, str(tmp_path / "g.onnx"))
    x = np.random.default_rng(1).standard_normal((3, 30)).astype(np.float32)
    (y,) = session_of(tmp_path / "g.onnx").run(None, {"x": x})
    np.testing.assert_allclose(y, x @ matrix.T, rtol=1e-5)


@pytest.mark.parametrize("late", [make_late, shape_late])
def test_weights_are_made_where_they_are_multiplied(late, tmp_path):
    node = onnx.helper.make_node
    rng = np.random.default_rng(0)
    words, codes = rng.standard_normal((16, 3)).astype(np.float32), rng.integers(0, 16, (50, 20))
    graph = _graph(
        [
            node("Cast", ["codes"], ["places"], to=6), node("Gather", ["words", "places"], ["found"]),
            node("Reshape", ["found", "shape"], ["w"]), node("Transpose", ["w"], ["t"], perm=[1, 0]),
            node("Relu", ["x"], ["states"]), node("MatMul", ["states", "t"], ["y"]),
        ],
        {"words": np.tile(words, (30, 1)), "codes": codes.repeat(2, 0), "shape": np.array([100, 60])},
    )  # fmt: skip
    assert late(graph) == (2 if late is make_late else 1)
    kinds = [one.op_type for one in graph.nodes()]
    first = kinds.index("Cast" if late is make_late else "Reshape")
    assert kinds.index("Relu") < first < kinds.index("MatMul") == len(kinds) - 1
    onnx.save_model(graph.finish(), str(tmp_path / "g.onnx"))
    x = rng.standard_normal((4, 60)).astype(np.float32)
    (y,) = session_of(tmp_path / "g.onnx").run(None, {"x": x})
    expected = np.maximum(x, 0) @ words[codes.repeat(2, 0)].reshape(100, 60).T
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_numbers_that_a_short_dtype_would_change_stay():
    values = np.full((40, 30), 0.1, np.float32)
    graph = _graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": values})
    shorten_dtypes(graph)
    assert graph.array("w") is not None
    np.testing.assert_array_equal(graph.array("w"), values)


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_stood_there_is_replaced_only_by_what_was_written_whole(tmp_path, monkeypatch):
    model = fewfold.compress(medium(), LowRank(rank=32, weighting="none"))
    (tmp_path / "model.fp32.onnx").write_bytes(b"mine")
    export_onnx(model, tmp_path / "model.onnx")
    before = _bytes(tmp_path)
    with pytest.raises(ModelError, match="Nothing was written"):
        export_onnx(model, tmp_path / "model.onnx", tolerance=0.0)
    assert _bytes(tmp_path) == before
    monkeypatch.setattr("fewfold.export.onnx.LIMIT", 1000)  # weights beside the graph
    reports = [export_onnx(model, tmp_path / "model.onnx") for _ in range(2)]
    data = tmp_path / "model.onnx.data"
    assert reports[0].bytes == reports[1].bytes == data.stat().st_size + (tmp_path / "model.onnx").stat().st_size
    small = export_onnx(model, tmp_path / "model.onnx", int8=True)
    assert small.external
    assert small.bytes < 0.4 * reports[0].bytes  # int8 alone, no fp32 before it
    monkeypatch.undo()
    whole = export_onnx(model, tmp_path / "model.onnx")
    assert not data.exists()
    assert whole.bytes == (tmp_path / "model.onnx").stat().st_size
    export_onnx(model, tmp_path / "model.onnx", int8=True)
    assert sorted(_bytes(tmp_path)) == ["model.fp32.onnx", "model.onnx"]
    assert (tmp_path / "model.fp32.onnx").read_bytes() == b"mine"
