"""What tells one model from another when a training is resumed."""

from transformers import BertConfig, BertModel

import fewfold
from fewfold.training.identity import config_of

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def made(rank=2, **changes):
    return fewfold.compress(BertModel(BertConfig(**SIZES, **changes)), fewfold.LowRank(rank=rank), fit=False)


def test_the_same_model_made_again_is_the_same():
    model = made()
    model.config.quantization_config.structure.provenance = {"made": "another day"}
    model.config.transformers_version = "4.0"
    assert config_of(model) == config_of(made())


def test_what_the_config_or_the_structure_changes_is_told():
    assert config_of(made(hidden_dropout_prob=0.3)) != config_of(made())
    assert config_of(made(rank=3)) != config_of(made())
