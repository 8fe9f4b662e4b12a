"""Recovery as a step of compression."""

import copy
import sys

import pytest
import torch
import transformers
from distill_models import config, make_tokenizer, sentences

import fewfold
from fewfold import DistillError, LowRank, Recipe
from fewfold.checkpoint.config import structure_of
from fewfold.distill.recovery import Recovery
from fewfold.distill.rehearsal import rehearse
from fewfold.distill.tokens import tokenise

PLAIN = LowRank(rank=6, weighting="none")


def distance(one, other):
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        return float((one(ids).last_hidden_state - other(ids).last_hidden_state).norm())


def test_one_call_compresses_and_recovers(teacher, tokenizer, texts):
    plain, model = copy.deepcopy(teacher), copy.deepcopy(teacher)
    fewfold.compress(plain, PLAIN)
    recipe = Recipe(methods=[PLAIN], recover=config(steps=40))
    recovery = Recovery(data=texts, exclude=(text for text in texts[:3]), name="ours")
    assert fewfold.compress(model, recipe, tokenizer=tokenizer, recovery=recovery) is model
    assert distance(model, teacher) < 0.8 * distance(plain, teacher)
    (record,) = structure_of(model).provenance["recoveries"]
    assert (record["steps"], record["data"]) == (40, "ours")
    assert record["loss_after"] < record["loss_before"]


def test_a_rehearsal_leaves_modes_as_they_are(teacher, tokenizer, texts):
    teacher.train().encoder.layer[0].eval()
    modes = [module.training for module in teacher.modules()]
    rehearse(teacher, texts, [config(anchors={"count": 4})], tokenizer, ())
    assert [module.training for module in teacher.modules()] == modes


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (sentences(5), {}, "batch"),
        (sentences(40), {"hidden": [], "logits": {"weight": 1.0}}, "logits"),
        (sentences(40), {"hidden": [{"layers": [9]}]}, "9"),
    ],
)
def test_what_would_stop_the_recovery_is_found_before_anything_is_compressed(
    data, settings, message, teacher, tokenizer
):
    model = copy.deepcopy(teacher)
    with pytest.raises(DistillError, match=message):
        fewfold.compress(model, PLAIN, recover=config(**settings), recovery=Recovery(data=data), tokenizer=tokenizer)
    assert structure_of(model) is None
    assert distance(model, teacher) == 0


def test_layers_that_cannot_be_recovered_one_by_one_are_found_before_anything_is_compressed(tokenizer, texts):
    model = transformers.AlbertModel(
        transformers.AlbertConfig(
            vocab_size=len(tokenizer), embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip
    with pytest.raises(DistillError, match=r"AlbertModel cannot be recovered layer by layer: .*once.*local_steps"):
        fewfold.compress(
            model, PLAIN, recover=config(local_steps=2), recovery=Recovery(data=texts), tokenizer=tokenizer
        )
    assert structure_of(model) is None
    table = fewfold.Dense(targets="embeddings", stored_dtype="int8")  # no layer is to be recovered
    fewfold.compress(
        copy.deepcopy(model), table, recover=config(steps=2, local_steps=2), recovery=Recovery(data=texts),
        tokenizer=tokenizer,
    )  # fmt: skip
    fewfold.compress(model, PLAIN, recover=config(steps=2), recovery=Recovery(data=texts), tokenizer=tokenizer)
    assert structure_of(model) is not None


def test_layers_are_recovered_one_by_one_after_compression(teacher, tokenizer, texts):
    model = copy.deepcopy(teacher)
    fewfold.compress(
        model, PLAIN, recover=config(steps=2, local_steps=2), recovery=Recovery(data=["", " ", *texts]),
        tokenizer=tokenizer,
    )  # fmt: skip
    (record,) = structure_of(model).provenance["recoveries"]
    assert record["steps"] == 2


def test_calibration_texts_serve_both(teacher, tokenizer, texts):
    model = copy.deepcopy(teacher)
    options = {"calibration": texts, "tokenizer": tokenizer, "cache": False}
    fewfold.compress(model, LowRank(rank=6), recover=config(steps=3), **options)
    assert structure_of(model).provenance["recoveries"][0]["steps"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "recovery needs texts"),
        ({"recovery": Recovery(data=[]), "tokenizer": make_tokenizer()}, "data is empty"),
        ({"recovery": Recovery(data=sentences(9))}, "need a tokenizer"),
        ({"calibration": iter(sentences(9)), "tokenizer": make_tokenizer()}, "not an iterator"),
        ({"recover": "sometimes"}, "no distillation config"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_done(teacher, options, message):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with pytest.raises(DistillError, match=message):
        fewfold.compress(teacher, PLAIN, **{"recover": "5 steps", **options})
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert structure_of(teacher) is None


def test_texts_are_read_and_tokenised_once(teacher, tokenizer, texts, monkeypatch):
    read = []
    reading = sys.modules["fewfold.distill.reading"]
    monkeypatch.setattr(reading, "tokenise", lambda *given: read.append(1) or tokenise(*given))
    model = copy.deepcopy(teacher)
    recovery = Recovery(data=(text for text in texts))
    fewfold.compress(model, PLAIN, tokenizer=tokenizer, recover=[config(steps=2)] * 2, recovery=recovery)
    assert read == [1]
    assert [record["steps"] for record in structure_of(model).provenance["recoveries"]] == [2, 2]


def test_a_folder_of_another_recovery_is_found_before_anything_is_compressed(
    teacher, tokenizer, texts, tmp_path, monkeypatch
):
    def recover(**settings):
        model = copy.deepcopy(teacher)
        recovery = Recovery(data=texts, folder=tmp_path / "run")
        fewfold.compress(
            model, PLAIN, tokenizer=tokenizer, recover=config(checkpoint_minutes=1e-9, **settings), recovery=recovery
        )
        return model

    done = recover(steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["fewfold.compress"], "read_weight", lambda *_: pytest.fail("began to compress"))
        with pytest.raises(DistillError, match="phase-1 holds checkpoints of a run with other"):
            recover(steps=3, learning_rate=0.5)
    assert distance(recover(steps=3), done) == 0  # its own are gone on from
