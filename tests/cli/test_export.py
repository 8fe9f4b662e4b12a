"""``fewfold export``: ONNX beside the tokenizer, stand-alone and dense checkpoints; and ``measure`` over a grid."""

import json

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import fewfold
from fewfold.measure.parameters import stored_bytes


@pytest.mark.parametrize(
    "form", ["memory", *(pytest.param(form, marks=pytest.mark.full) for form in ("speed", "balance"))]
)
def test_onnx_is_compared_and_complete(run, small, tmp_path, monkeypatch, form):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    monkeypatch.setattr("fewfold.export.late.LARGE", 64)  # these weights are tiny
    result = run("export", small.folder, tmp_path / "out", "--to", "onnx", "--optimize-for", form, "--json")
    assert result.code == 0
    data = json.loads(result.out)
    kinds = [node.op_type for node in onnx.load(data["file"]).graph.node]
    assert ("Sub" in kinds, data["optimized_for"]) == (form == "memory", form)
    model = fewfold.load(small.folder)
    assert data["file"] == str(tmp_path / "out" / "onnx" / "model.onnx")
    assert data["bytes"] == (tmp_path / "out" / "onnx" / "model.onnx").stat().st_size
    assert data["unique_bytes"] == stored_bytes(model)
    assert data["max_difference"] < 1e-4 * data["largest_output"]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    values = AutoTokenizer.from_pretrained(tmp_path / "out")(
        ["the big cat sees", "a dog"], padding=True, return_tensors="np"
    )
    session = onnxruntime.InferenceSession(data["file"], providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {entry.name: values[entry.name] for entry in session.get_inputs()})
    with torch.no_grad():
        expected = model(**{key: torch.from_numpy(value) for key, value in values.items()}).last_hidden_state
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.full
def test_a_refused_graph_leaves_nothing(run, small, tmp_path):
    pytest.importorskip("onnxruntime")
    result = run("export", small.folder, tmp_path / "out", "--tolerance", "0")
    assert result.code == 1
    assert "differ from torch's" in result.err
    assert not (tmp_path / "out").exists()
    assert run("export", small.folder, small.folder, "--force").code == 1


@pytest.mark.parametrize("option", [["--tolerance", "0.1"], ["--optimize-for", "speed"], ["--with-past"]])
def test_options_of_onnx_are_refused_elsewhere(run, small, tmp_path, option):
    result = run("export", small.folder, tmp_path / "out", "--to", "dense", *option)
    assert result.code == 1
    assert f"{option[0]} is about ONNX graphs" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("to", "trust"), [("standalone", True), ("dense", False)])
def test_checkpoints(run, small, encoder, tmp_path, to, trust):
    result = run("export", small.folder, tmp_path / "out", "--to", to)
    assert result.code == 0
    assert "fewfold is not needed" in result.out
    loaded, dense = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=trust), fewfold.load(small.folder)
    for name, tensor in fewfold.densify(dense).state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert (tmp_path / "out" / "vocab.txt").read_text() == (encoder / "vocab.txt").read_text()
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()


def test_a_dense_model_has_no_standalone_form(run, encoder, tmp_path):
    result = run("export", encoder, tmp_path / "out", "--to", "standalone")
    assert result.code == 1
    assert "not compressed" in result.err


@pytest.mark.full
def test_measure_over_a_grid(run, small, encoder, tmp_path):
    arguments = ["measure", small.folder, encoder, "--batch", 1, "--batch", 2, "--length", 4, "--length", 8]
    arguments += [
        "--repeats",
        2,
        "--warmup",
        1,
        "--threads",
        1,
        "--write",
        tmp_path / "m.json",
        "--plot",
        tmp_path / "m.png",
    ]
    result = run(*arguments)
    assert result.code == 0
    assert "parameters a forward reads" in result.out
    data = json.loads((tmp_path / "m.json").read_text())
    points = data["grid"][str(small.folder)]
    assert [(point["batch"], point["length"]) for point in points] == [(1, 4), (1, 8), (2, 4), (2, 8)]
    for point in points:
        assert point["low"] <= point["median"] <= point["high"]
        assert point["sequences_per_second"] == pytest.approx(1e3 * point["batch"] / point["median"])
    ours, dense = data["models"][str(small.folder)], data["models"][str(encoder)]
    assert (
        dense["live_parameters"]
        == dense["parameters"]
        == sum(p.numel() for p in AutoModel.from_pretrained(encoder).parameters())
    )
    assert ours["parameters"] < dense["parameters"]
    assert ours["activation_bytes"] > 0
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"
