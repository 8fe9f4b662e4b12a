import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from fewfold.measure.disk import file_bytes, folder_bytes
from fewfold.measure.parameters import stored_bytes


def test_one_file(tmp_path):
    save_file({"a": torch.zeros(10)}, tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    save_file({"a": torch.zeros(10)}, tmp_path / "sub" / "other.safetensors")
    assert file_bytes(tmp_path) == size == file_bytes(tmp_path / "model.safetensors")
    assert folder_bytes(tmp_path) == 2 * size + 2


def test_shards_add_up_to_the_stored_bytes_and_their_headers(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=32, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    files = set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert len(files) > 1
    headers = sum(8 + int.from_bytes((tmp_path / f).read_bytes()[:8], "little") for f in files)
    assert file_bytes(tmp_path) == stored_bytes(model) + headers


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        file_bytes(tmp_path)
    with pytest.raises(NotADirectoryError):
        folder_bytes(tmp_path / "none")
