"""The model card: its header, its numbers, and that its two lines load the model."""

import re

import pytest
import torch
from huggingface_hub import ModelCard
from tiny_models import MODELS

import fewfold
from fewfold.checkpoint.card import base_model

ORIGINAL = """---
license: mit
language: en
datasets: [wikipedia, snli]
tags: [feature-extraction]
library_name: sentence-transformers
---

# The original
"""


@pytest.fixture
def small():
    return fewfold.compress(MODELS["bert"].build().eval(), fewfold.LowRank(rank=3, stored_dtype="int8"))


def _card(folder):
    return ModelCard.load(folder / "README.md")


def test_the_header_keeps_what_holds_and_adds_what_is_new(small, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_text(ORIGINAL)
    fewfold.save(small, tmp_path / "small", source=source)
    data = _card(tmp_path / "small").data
    assert (data.license, data.language, data.datasets) == ("mit", "en", ["wikipedia", "snli"])
    assert data.tags == ["feature-extraction", "fewfold", "compression", "low-rank"]
    assert data.library_name == "sentence-transformers"
    assert data.base_model is None  # a folder is no name on the Hub
    assert (tmp_path / "small" / "README.original.md").read_text() == ORIGINAL


@pytest.mark.parametrize(
    ("card", "name"),
    [
        (ORIGINAL, "The original"),
        ("<!-- # made by a tool -->\n# all-MiniLM-L6-v2 \nA model\n# Other", "all-MiniLM-L6-v2"),
        ("A model.\n\n# Load it\n", "source"),
        ("---\n# a comment\nlicense: mit\n---\n\ntext", "source"),
        ("# [a link](https://example.org)\n", "source"),
        ("", "source"),
        (None, "source"),
    ],
)
def test_a_folder_is_named_by_its_card(card, name, small, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    if card is not None:
        (source / "README.md").write_text(card)
    for _ in range(2):  # saving again reads the same
        fewfold.save(small, tmp_path / "small", source=source)
        text = (tmp_path / "small" / "README.md").read_text()
        assert f"# {name}, compressed with fewfold\n" in text
        assert f"made from `{name}`." in text


def test_a_name_on_the_hub_becomes_the_base_model(small, tmp_path):
    small.config.name_or_path = "org/model"
    fewfold.save(small, tmp_path / "small")
    data = _card(tmp_path / "small").data
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("org/model", "quantized")
    assert "# model, compressed with fewfold" in _card(tmp_path / "small").content
    assert "(https://huggingface.co/org/model)" in _card(tmp_path / "small").content


@pytest.mark.parametrize(
    ("name", "base"), [("org/model", "org/model"), ("model", "model"), ("/a/b/model", "model"), ("./x/model", "model")]
)
def test_base_models(small, name, base):
    assert base_model(small, name) == base


def test_saving_again_repeats_nothing(small, tmp_path):
    small.config.name_or_path = "org/model"
    fewfold.save(small, tmp_path / "one")
    fewfold.save(small, tmp_path / "two", source=tmp_path / "one")
    one, two = _card(tmp_path / "one").data, _card(tmp_path / "two").data
    assert two.tags == one.tags
    assert two.base_model == "org/model"


def test_numbers_are_told(small, tmp_path):
    fewfold.save(small, tmp_path / "small", numbers={"STS-B dev": 0.86312345, "bytes": 4997200, "text": "mixed-512"})
    text = _card(tmp_path / "small").text
    assert "| STS-B dev | 0.8631 |" in text
    assert "| bytes | 4,997,200 |" in text
    assert "| text | mixed-512 |" in text


def test_the_two_lines_load_the_model(small, tmp_path):
    fewfold.save(small, tmp_path / "small")
    lines = re.search(r"```python\n(.*?)```", _card(tmp_path / "small").text, re.DOTALL)[1]
    assert len(lines.strip().splitlines()) == 2
    names = {}
    exec(lines.replace("name or folder", str(tmp_path / "small")), names)
    tokens = torch.tensor([[2, 5, 9]])
    with torch.no_grad():
        ours = names["model"].eval()(tokens).last_hidden_state
        assert torch.equal(ours, fewfold.load(tmp_path / "small").eval()(tokens).last_hidden_state)
