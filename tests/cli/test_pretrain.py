"""fewfold pretrain: a config and a text file to a model that can be fine-tuned; the dense twin; what is wrong."""

import json

import pytest

from fewfold.pretrain.config import preset_names

CONFIG = """
family: bert
model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, type_vocab_size: 1}
methods: [{method: embedding_sharing}]
vocabulary: 90
length: 16
training: {steps: 4, batch: 4}
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "text.txt").write_text("the cat sees the dog\nthe dog likes a tree\n" * 30)
    return ("--config", tmp_path / "config.yaml", "--text", tmp_path / "text.txt")


def test_carved_and_its_dense_twin(run, files, tmp_path):
    records = {}
    for name, more in (("carved", ()), ("dense", ("--dense",))):
        result = run("pretrain", tmp_path / name, *files, "--steps", 6, "--seed", 3, *more, "--json")
        assert result.code == 0, result.err
        records[name] = json.loads(result.out)
        assert records[name]["training"]["steps"] == 6
        assert records[name]["config"]["training"]["seed"] == 3
        assert records[name]["config"]["training"]["batch"] == 4
    assert records["carved"]["model"]["compressed"]
    assert not records["dense"]["model"]["compressed"]
    assert records["carved"]["model"]["parameters"] < records["dense"]["model"]["parameters"]
    assert records["carved"]["data"] == records["dense"]["data"]
    again = run("pretrain", tmp_path / "carved", *files)
    assert again.code == 1
    assert "--force" in again.err


def test_sharebert(run, files, tmp_path):
    result = run("pretrain", tmp_path / "m", *files[2:], "--config", "sharebert-tiny", "--steps", 2, "--length", 16)
    assert result.code == 0, result.err
    assert "ShareBertForMaskedLM" in result.out


def test_the_list(run):
    shown = run("pretrain", "--list").out
    for name in preset_names():
        assert name in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--batch", 6, "--micro-batch", 4), "no multiple of micro_batch=4"),
        (("--config", "nothing"), "give a .yaml file, or one of bert-base"),
        (("--tokenizer", "/no/such"), "cannot be loaded"),
        (("--text", "/no/such.txt"), "no such file"),
        (("--length", 2), "length"),
    ],
)
def test_errors_are_one_message(run, files, tmp_path, more, message):
    result = run("pretrain", tmp_path / "m", *files, *more)
    assert result.code == 1
    assert message in " ".join(result.err.split())
