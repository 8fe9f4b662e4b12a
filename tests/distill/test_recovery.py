"""Recovery as a step of compression."""

import copy

import pytest
import torch
from distill_models import config, make_tokenizer, sentences

import fewfold
from fewfold import DistillError, LowRank, Recipe
from fewfold.checkpoint.config import structure_of
from fewfold.distill.recovery import Recovery

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
        ({"recovery": Recovery(data=iter(sentences(9))), "tokenizer": make_tokenizer()}, "not an iterator"),
        ({"recover": "sometimes"}, "no distillation config"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_done(teacher, options, message):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    with pytest.raises(DistillError, match=message):
        fewfold.compress(teacher, PLAIN, **{"recover": "5 steps", **options})
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert structure_of(teacher) is None
