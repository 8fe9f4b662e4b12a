"""Sizes that a budget chooses between: there is always one, and what only grows may stay as it is."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import fewfold
from fewfold import (
    Budget,
    Dense,
    EmbeddingAutoencoder,
    LowRank,
    SharedBasis,
    SharedFactors,
    SubvectorCodes,
    TensorTrain,
    Tucker,
)
from fewfold.checkpoint.config import structure_of
from fewfold.methods.registry import method_named
from fewfold.surgery.targets import Target

EVERYWHERE = [Dense(), LowRank(), LowRank(square_core=True), SubvectorCodes(), SubvectorCodes(words=4096)]
TABLES = [EmbeddingAutoencoder()]
LINEARS = [SharedBasis(), SharedFactors(), Tucker(), TensorTrain(), SubvectorCodes(stages=8)]
CASES = [(config, kind) for kind in ("linear", "embedding") for config in EVERYWHERE]
CASES += [(config, "linear") for config in LINEARS] + [(config, "embedding") for config in TABLES]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (1, 768), (2, 768), (768, 2), (3, 3)], ids=str)
@pytest.mark.parametrize(("config", "kind"), CASES, ids=lambda case: getattr(case, "method", case))
def test_every_weight_has_a_size(config, kind, shape):
    name = "encoder.layer.0.output.dense"
    target, method = Target(name, name, kind, *shape, bias=kind == "linear"), method_named(config.method)
    (unit,) = method.units(config, [target], max(shape))
    sizes = method.sizes(unit)
    assert sizes
    assert all(method.cost(unit, size).bytes > 0 for size in sizes)


@pytest.mark.parametrize("fit", [True, False])
def test_tables_too_small_to_gain_stay_under_a_budget(fit):
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=512,
        )
    ).eval()  # fmt: skip
    codes = SubvectorCodes(targets="rest", weighting="none", words=16)
    fewfold.compress(model, codes, budget=Budget(bytes="1/2 of all"), fit=fit)
    assert {record.module for record in structure_of(model).targets} == {
        "embeddings.position_embeddings", "pooler.dense",
    }  # fmt: skip
    assert type(model.embeddings.token_type_embeddings) is nn.Embedding
