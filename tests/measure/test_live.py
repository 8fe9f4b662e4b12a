"""Numbers that a forward reads, and the memory of its results."""

import copy

import pytest
import torch
from cases import copied
from tiny_models import make

import fewfold
from fewfold.measure.activations import activation_bytes
from fewfold.measure.live import live_parameters
from fewfold.measure.parameters import unique_parameters
from fewfold.models import ShareBertConfig, ShareBertModel


def test_dense_models_read_what_they_hold():
    model = make("bert")
    assert live_parameters(model) == unique_parameters(model)


def test_shared_layers_read_as_much_as_dense():
    model = make("bert")
    dense = live_parameters(model)
    fewfold.compress(model, fewfold.SharedLayers(delta_rank=0, weighting="none"))
    assert unique_parameters(model) < 0.8 * dense
    assert live_parameters(model) == dense


def test_chained_factors_are_read_once_a_weight():
    model = copied("bert", "low_rank", "fp32")
    fewfold.set_form(model, "chained")
    assert live_parameters(model) == unique_parameters(model)
    fewfold.set_form(model, "rebuilt")
    assert live_parameters(model) == unique_parameters(make("bert"))
    shared = copied("bert", "shared_factors", "fp32")
    fewfold.set_form(shared, "chained")
    assert live_parameters(shared) > unique_parameters(shared)


@pytest.mark.parametrize("layout", ["packed", "reference"])
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_carved_weights_are_read_as_the_plain_model_holds_them(name, layout):
    with torch.device("meta"):
        model = ShareBertModel(ShareBertConfig.preset(name, layout=layout))
        config = copy.deepcopy(model.config)
        config.materialized = True
        plain = ShareBertModel(config)
    h, i, n = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layer, pooler = 4 * h * h + 2 * h * i, h * h
    assert sum(slot.numel for slot in model.store.slots.values()) == layer + pooler
    if name == "small":
        assert layer + pooler == 37_748_736
    expansion = sum(parameter.numel() for parameter in model.store.expansion.parameters())
    assert live_parameters(model) == unique_parameters(model) - expansion + n * layer + pooler
    assert live_parameters(model) == live_parameters(plain)


class _Steps(torch.nn.Module):
    def forward(self, x):
        first = x * 2  # 4000 bytes
        second = first + 1  # 8000 alive
        del first
        third = second.reshape(10, 100).sum(0)  # 4400
        del second
        return third * 3  # 800


def test_activations_by_hand():
    assert activation_bytes(_Steps(), {"x": torch.ones(1000)}) == 8000


def test_activations_grow_with_the_batch():
    model = make("bert")
    one, two = (activation_bytes(model, batch=batch, length=8) for batch in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.15)


def test_heads_that_are_tied_read_the_table_again():
    model = make("gpt2_lm")
    dense, table = live_parameters(model), model.lm_head.weight.numel()
    assert dense == unique_parameters(model) + table
    fewfold.set_form(fewfold.compress(model, fewfold.LowRank(rank=3, targets="all", weighting="none")), "rebuilt")
    assert live_parameters(model) == dense
