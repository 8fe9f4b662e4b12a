"""What a budget of multiply-accumulates counts, against the products that run."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import fewfold
from fewfold import Dense, EmbeddingAutoencoder, LowRank, SubvectorCodes
from fewfold.budget.cost import CostModel
from fewfold.measure.macs import macs_per_token
from fewfold.methods.registry import method_named
from fewfold.surgery.targets import find_targets


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=401, n_embd=16, n_layer=2, n_head=4, n_positions=40, bos_token_id=0, eos_token_id=0)
    ).eval()


def unit_of(model, config):
    table = next(target for target in find_targets(model) if target.module.endswith("wte"))
    (unit,) = method_named(config.method).units(config, [table], 16)
    return unit


def test_a_tied_output_layer_is_work(gpt2):
    costs, unit = CostModel(gpt2), unit_of(gpt2, Dense(targets="embeddings"))
    (table,) = unit.targets
    assert (table.heads, table.dense_macs) == (1, table.numel)
    assert costs.dense("macs", unit) == table.numel
    assert costs.rest("macs", [unit]) + table.numel == macs_per_token(gpt2).weights


@pytest.mark.parametrize(
    "config",
    [
        Dense(targets="embeddings", stored_dtype="int8"),
        LowRank(targets="embeddings", rank=4),
        EmbeddingAutoencoder(rank=4),
        SubvectorCodes(targets="embeddings", width=4, words=16, rank=8),
    ],
    ids=lambda config: config.method,
)
@pytest.mark.filterwarnings("ignore:no calibration data")
def test_a_tied_output_layer_is_counted_as_it_runs(gpt2, config):
    costs, unit = CostModel(gpt2), unit_of(gpt2, config)
    counted = costs.rest("macs", [unit]) + costs.choice("macs", unit, method_named(config.method).fixed(unit))
    compressed = fewfold.compress(gpt2, config)
    compressed.transformer.wte.form = "factored"
    assert macs_per_token(compressed, batch=2, length=30).weights == counted


def test_a_table_under_an_activation_is_multiplied_whole(gpt2):
    unit = unit_of(gpt2, EmbeddingAutoencoder(rank=4, decoder_activation="elu"))
    (table,) = unit.targets
    method = method_named(unit.method)
    assert method.cost(unit, method.fixed(unit)).macs == 4 * 16 + table.numel
