"""Folders that models are saved into: what they may replace, what is copied, what cannot be renamed."""

import importlib
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
import transformers as tf
from cases import copied
from tiny_models import make

import fewfold
from fewfold import CheckpointError
from fewfold.checkpoint.folders import atomic_folder, check_writable, write_whole


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_other_files_is_refused_and_stays(tmp_path):
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "mine.csv").write_text("1")
    for write in (lambda: fewfold.save(make("bert"), folder), lambda: check_writable(folder)):
        with pytest.raises(CheckpointError, match="no model"):
            write()
    assert contents(folder) == {"data/mine.csv"}
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


def test_what_cannot_be_renamed_is_filled(tmp_path, monkeypatch):
    folder = tmp_path / "mounted"
    folder.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    for number in range(2):
        with atomic_folder(folder) as partial:
            assert partial.parent == folder
            (partial / "config.json").write_text(str(number))
            (partial / "sub").mkdir()
            (partial / "sub" / f"file-{number}").write_text("")
        assert contents(folder) == {"config.json", f"sub/file-{number}"}
    with pytest.raises(KeyError), atomic_folder(folder):
        raise KeyError
    assert (folder / "config.json").read_text() == "1"
    assert contents(folder) == {"config.json", "sub/file-1"}


def test_the_working_directory_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_folder(".") as partial:
        (partial / "config.json").write_text("{}")
    assert Path("config.json").read_text() == "{}"
    assert contents(tmp_path) == {"config.json"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission_is_named_first(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="permission"):
        check_writable(tmp_path / "model")


@pytest.fixture
def source(tmp_path):
    """A folder as sentence-transformers and Trainer leave it."""
    folder = tmp_path / "source"
    make("bert").save_pretrained(folder)
    modules = [("", "models.Transformer"), ("1_Pooling", "models.Pooling"), ("2_Dense", "models.Dense")]
    (folder / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in modules])
    )
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "tokenizer.json",
                 "checkpoint-5/optimizer.pt", "checkpoint-5/model.safetensors", "original/consolidated.00.pth",
                 "model.gguf", "onnx/model.onnx"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    return folder


def test_modules_behind_the_transformer_keep_their_weights(source, tmp_path):
    model = copied("bert", "low_rank", "fp32")
    fewfold.save(model, tmp_path / "small", source=source)
    kept = contents(tmp_path / "small")
    assert {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "tokenizer.json"} <= kept
    assert not {name for name in kept if name.endswith((".pt", ".pth", ".gguf", ".onnx")) or "checkpoint-" in name}
    fewfold.save(model, source / "inside", source=source)
    assert not {name for name in contents(source / "inside") if "partial" in name}


def test_a_source_that_is_no_folder_is_told(tmp_path):
    with pytest.warns(UserWarning, match="is no folder"):
        fewfold.save(make("bert"), tmp_path / "small", source="somebody/model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fewfold.save(make("bert"), tmp_path / "small")


class HeadOfItsOwn(tf.BertPreTrainedModel):
    """A class that only its user knows."""

    def __init__(self, config):
        super().__init__(config)
        self.bert, self.head = tf.BertModel(config), torch.nn.Linear(config.hidden_size, 3)
        self.post_init()


def test_a_class_that_is_not_known_is_named(tmp_path):
    HeadOfItsOwn(make("bert").config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"HeadOfItsOwn\.from_pretrained"):
        fewfold.load(tmp_path)


CODE = """
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class OwnConfig(PreTrainedConfig):
    model_type = "own_thing"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(8, 8)
        self.post_init()


class OwnClassifier(PreTrainedModel):
    config_class, base_model_prefix = OwnConfig, "model"

    def __init__(self, config):
        super().__init__(config)
        self.model, self.score = OwnModel(config), nn.Linear(8, 2)
        self.post_init()
"""


def test_a_class_that_a_checkpoint_brings_is_the_one_it_was_saved_from(tmp_path, monkeypatch):
    code, out = tmp_path / "code", tmp_path / "out"
    code.mkdir()
    (code / "modeling_own.py").write_text(CODE)
    monkeypatch.syspath_prepend(code)
    own = importlib.import_module("modeling_own")
    own.OwnConfig.register_for_auto_class()
    own.OwnClassifier.register_for_auto_class("AutoModelForSequenceClassification")
    model = fewfold.compress(own.OwnClassifier(own.OwnConfig()), fewfold.Dense(targets="all", stored_dtype="int8"))
    model.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.OwnModel", **config["auto_map"]}
    (out / "config.json").write_text(json.dumps(config))
    loaded = fewfold.load(out, trust_remote_code=True)
    assert type(loaded).__name__ == "OwnClassifier"
    torch.testing.assert_close(loaded.score.weight, model.score.weight)
    del config["auto_map"]["AutoModelForSequenceClassification"]
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"OwnClassifier\.from_pretrained"):
        fewfold.load(out, trust_remote_code=True)


def test_a_folder_below_is_loaded(tmp_path):
    make("bert").save_pretrained(tmp_path / "below")
    assert type(fewfold.load(tmp_path, subfolder="below")).__name__ == "BertModel"


def test_ties_that_a_model_declares_when_it_is_made_come_back(tmp_path):
    config = tf.MarianConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    model = tf.MarianMTModel(config).eval()
    declared = dict(model.all_tied_weights_keys)
    fewfold.compress(model, fewfold.LowRank(targets="embeddings", rank=4))
    plain = fewfold.densify(model)
    assert plain.all_tied_weights_keys == declared
    plain.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 1]])
    with torch.no_grad():
        again = tf.MarianMTModel.from_pretrained(tmp_path)(input_ids=ids, decoder_input_ids=ids).logits
        torch.testing.assert_close(again, plain(input_ids=ids, decoder_input_ids=ids).logits)


def test_files_are_replaced_whole_and_links_written_through(tmp_path):
    file, link, pipe = tmp_path / "a.json", tmp_path / "link.json", tmp_path / "pipe"
    file.write_text("old")
    os.link(file, tmp_path / "other")
    write_whole(file, "new")
    assert (file.read_text(), (tmp_path / "other").read_text()) == ("new", "old")
    link.symlink_to(file)
    write_whole(link, "newer")
    assert link.is_symlink()
    assert file.read_text() == "newer"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "passed on")
    assert os.read(reader, 100) == b"passed on"
    os.close(reader)
    assert pipe.is_fifo()
    assert not list(tmp_path.glob("*.partial"))
