"""Wrapped models: what is compressed is the transformers model inside, so that it can be saved."""

import warnings

import pytest
import torch
from tiny_models import make, outputs
from torch import nn

import fewfold
from fewfold.checkpoint.config import structure_of
from fewfold.errors import CheckpointError, ModelError
from fewfold.surgery.wrappers import inner_model

RECIPE = fewfold.LowRank(rank=4, weighting="none")


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = make("bert_mlm"), make("gpt2_lm")


class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = make("bert_mlm")
        self.head = nn.Linear(8, 8)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, nn.Sequential])
def test_a_wrapped_model_is_saved_and_loaded(wrap, tmp_path):
    model = make("bert_mlm")
    wrapper = wrap(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert fewfold.compress(wrapper, RECIPE) is wrapper
    assert all(not record.module.startswith(("module.", "_orig_mod.", "0.")) for record in structure_of(model).targets)
    fewfold.save(model, tmp_path / "out")
    torch.testing.assert_close(outputs(fewfold.load(tmp_path / "out"), "bert_mlm"), outputs(model, "bert_mlm"))
    assert fewfold.summary(wrapper) == fewfold.summary(model)
    assert len(fewfold.summary(wrapper).rows) == 12
    assert fewfold.densify(wrapper) is wrapper
    assert structure_of(model) is None


def test_the_layers_of_a_wrapped_model_are_unshared():
    model = make("bert")
    wrapper = nn.Sequential(model)
    fewfold.compress(wrapper, fewfold.SharedLayers(init="mean", align="none"))
    shared = sum(parameter.numel() for parameter in model.parameters())
    assert fewfold.unshare(wrapper) is wrapper
    assert sum(parameter.numel() for parameter in model.parameters()) > shared


def test_sentence_transformers_are_saved_by_themselves(tmp_path):
    transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Dense
    from transformers import BertTokenizerFast

    make("bert_mlm").bert.save_pretrained(tmp_path / "plain")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]
    vocabulary = {word: place for place, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(tmp_path / "plain")
    model = transformers.SentenceTransformer(str(tmp_path / "plain"), device="cpu")
    model.append(Dense(inner_model(model).config.hidden_size, 6))
    fewfold.compress(model, RECIPE)
    expected = model.encode(["a b c", "d"])
    model.save(str(tmp_path / "out"))
    loaded = transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert structure_of(inner_model(loaded)) is not None
    torch.testing.assert_close(loaded.encode(["a b c", "d"]), expected)


@pytest.mark.parametrize(("kind", "named"), [(Pair, "'first'.*BertForMaskedLM.*'second'"), (Headed, "'body'")])
def test_weights_beside_a_model_are_warned_of(kind, named):
    model = kind()
    with pytest.warns(UserWarning, match=named):
        fewfold.compress(model, RECIPE)
    assert structure_of(model) is not None


def test_modules_without_a_transformers_model_are_taken_as_they_are():
    model = nn.Sequential(nn.Linear(8, 8))
    assert inner_model(model) is model


def test_adapters_are_refused():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(make("bert_mlm"), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ModelError, match="merge_and_unload"):
        fewfold.compress(model, RECIPE)


def test_a_part_compressed_by_itself_is_not_saved_with_the_whole(tmp_path):
    model = make("t5_lm")
    fewfold.compress(model.encoder, RECIPE)
    with pytest.raises(CheckpointError, match=r"encoder\.block.*targets='encoder\.\*'"):
        fewfold.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_on_a_compressed_model_are_saved(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(fewfold.compress(make("bert_mlm"), RECIPE), peft.LoraConfig(target_modules=["down"]))
    fewfold.save(model, tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
