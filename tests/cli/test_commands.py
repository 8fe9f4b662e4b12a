"""inspect, measure, densify, recipes and the command itself."""

import json
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch
import transformers as tf
from transformers import AutoModel

import fewfold
from fewfold.recipe import PRESETS, Recipe


def test_inspect_compressed(run, small, texts):
    result = run("inspect", small.folder, "--json")
    assert result.code == 0
    data = json.loads(result.out)
    assert data["compressed"]
    assert data["rows"] == small.json["rows"]
    assert data["budgets"] == small.json["budgets"]
    assert data["provenance"]["steps"][0]["calibration"]["name"] == texts.name
    shown = run("inspect", small.folder).out
    assert "encoder.layer.0.attention.self.query" in shown
    assert "budget parameters=1/2 of linears" in shown


def test_inspect_dense(run, encoder):
    data = json.loads(run("inspect", encoder, "--json").out)
    model = AutoModel.from_pretrained(encoder)
    assert not data["compressed"]
    assert data["rows"] == []
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert data["compressible"]["linears"]["weights"] == len(linears)
    assert data["compressible"]["linears"]["parameters"] == sum(module.weight.numel() for module in linears)
    assert "dense BertModel" in run("inspect", encoder).out
    named = {one["name"]: one for one in json.loads(run("inspect", encoder, "--targets", "--json").out)["targets"]}
    query = named["encoder.layer.0.attention.self.query"]
    assert (query["kind"], query["rows"], query["columns"], query["refused"]) == ("linear", 32, 32, None)
    assert sum(one["kind"] == "embedding" for one in named.values()) == data["compressible"]["embeddings"]["weights"]
    assert "encoder.layer.1.output.dense" in run("inspect", encoder, "--targets").out.replace("\n", "")


def test_damaged_checkpoint_is_named(run, small, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(small.folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    result = run("inspect", broken)
    assert result.code == 1
    assert "model.safetensors" in result.err
    weights.unlink()
    assert run("inspect", broken).code == 1


@pytest.mark.full
def test_measure_against(measured, small, encoder):
    data = measured.json
    assert data["environment"]["torch"] == metadata.version("torch")
    ours, dense = data["models"][str(small.folder)], data["models"][str(encoder)]
    assert ours["parameters"] == small.json["parameters"]
    assert ours["weight_file_bytes"] == small.json["weight_file_bytes"]
    assert data["ratios"]["parameters"] == dense["parameters"] / ours["parameters"]
    assert ours["macs_per_token"] < dense["macs_per_token"]
    assert min(ours["latency_ms"], ours["load_seconds"], ours["peak_bytes"]) > 0


@pytest.mark.full
def test_measure_alone(run, encoder):
    result = run("measure", encoder, "--length", 8, "--repeats", 1)
    assert result.code == 0
    assert "MACs a token" in result.out
    assert "ratios" not in result.out


@pytest.mark.checkpoint
def test_densify_gives_a_plain_model(run, small, encoder, tmp_path):
    plain = tmp_path / "plain"
    result = run("densify", small.folder, plain, "--json")
    assert result.code == 0
    assert json.loads(result.out)["parameters"] == small.json["before"]["parameters"]
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    assert (plain / "README.md").read_text() == (encoder / "README.md").read_text()
    assert not (plain / "README.original.md").exists()
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        dense, compressed = AutoModel.from_pretrained(plain).eval(), fewfold.load(small.folder).eval()
        torch.testing.assert_close(
            dense(ids).last_hidden_state, compressed(ids).last_hidden_state, atol=1e-4, rtol=1e-4
        )


def test_densify_of_a_dense_model(run, encoder, tmp_path):
    result = run("densify", encoder, tmp_path / "plain")
    assert result.code == 1
    assert "nothing to densify" in result.err
    assert not (tmp_path / "plain").exists()


def test_recipes(run, tmp_path):
    listed = json.loads(run("recipes", "--json").out)
    assert [preset["name"] for preset in listed] == list(PRESETS)
    assert all(preset["source"] for preset in listed)
    shown = run("recipes").out
    assert all(name in shown for name in PRESETS)
    file = tmp_path / "mine.yaml"
    file.write_text(run("recipes", "low-rank-all").out)
    assert Recipe.from_yaml(file) == Recipe.preset("low-rank-all")
    assert run("recipes", "none-such").code == 1


@pytest.mark.parametrize(
    "words",
    [
        ("measure", "--write", "no/dir.json"),
        ("evaluate", "--task", "neighbours", "--out", "."),
        ("evaluate", "--task", "sst2", "--finetune", "--predictions", "no/p.jsonl"),
        ("evaluate", "--task", "perplexity", "--text", "t.txt", "--finetune"),
        ("evaluate", "--task", "neighbours", "--text", "t.txt", "--predictions", "p.jsonl"),
    ],
)
def test_results_that_cannot_be_written_are_refused_first(words, run, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(words[0], encoder, *words[1:])
    assert result.code == 1
    said = " ".join(result.err.split())
    assert "cannot be written" in said or "is a folder" in said or "leave it out" in said


def test_names_of_tied_weights_are_json(run, tmp_path):
    config = tf.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    tf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    targets = json.loads(run("inspect", tmp_path / "gpt2", "--targets", "--json").out)["targets"]
    assert ["lm_head"] in [one["also"] for one in targets]


COMMANDS = ("compress", "inspect", "measure", "evaluate", "densify", "recipes", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run, command):
    result = run(command, "--help")
    assert result.code == 0
    assert f"fewfold {command}" in " ".join(result.out.split())
    assert "Example:" in result.out


def test_the_console_entry_starts_without_torch():
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        "(entry,) = [e for e in entry_points(group='console_scripts') if e.name == 'fewfold']\n"
        "app = entry.load(); sys.argv = ['fewfold', '--version']\n"
        "try: app()\n"
        "finally: assert not {'torch', 'transformers', 'fewfold'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"fewfold {metadata.version('fewfold')}"


@pytest.mark.full
def test_other_libraries_are_silent(encoder):
    """In a process of its own, where transformers and torchao are imported by the command."""
    command = [sys.executable, "-m", "fewfold_cli.main", "inspect", str(encoder), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["architecture"] == "BertModel"
    assert result.stderr == ""
