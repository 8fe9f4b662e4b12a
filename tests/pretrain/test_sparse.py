"""Scoring labelled tokens alone: loss, gradients and logits are those of the whole."""

import pytest
import torch
import transformers as tf
from torch import nn
from torch.nn.functional import cross_entropy

import fewfold
from fewfold import EmbeddingSharing
from fewfold.models import ShareBertConfig
from fewfold.pretrain.masking import IGNORED
from fewfold.pretrain.sparse import labelled_alone, scores_tokens_apart

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 0, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0}  # fmt: skip
CONFIGS = {
    "bert": lambda: tf.BertConfig(**SIZES),
    "roberta": lambda: tf.RobertaConfig(**SIZES),
    "electra": lambda: tf.ElectraConfig(**SIZES, embedding_size=8),
    "distilbert": lambda: tf.DistilBertConfig(
        vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32, dropout=0.0, attention_dropout=0.0
    ),
    "sharebert": lambda: ShareBertConfig.preset("tiny", vocab_size=80, hidden_size=32, num_attention_heads=2,
                                                intermediate_size=48, hidden_dropout_prob=0.0,
                                                attention_probs_dropout_prob=0.0),
}  # fmt: skip


def made(family):
    torch.manual_seed(0)
    return tf.AutoModelForMaskedLM.from_config(CONFIGS[family]()).train()


def batch(empty=False):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (3, 12), generator=generator)
    labels = ids.masked_fill(torch.rand(3, 12, generator=generator) > 0.3, IGNORED)
    return {"input_ids": ids, "labels": torch.full_like(ids, IGNORED) if empty else labels}


def gradients(model, given):
    model.zero_grad()
    output = model(**given)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [*CONFIGS, "carved bert"])
def test_loss_and_gradients_are_the_same(family):
    model = made(family.split()[-1])
    if family == "carved bert":
        fewfold.compress(model, EmbeddingSharing(), fit=False)
    given = batch()
    whole, expected = gradients(model, given)
    by_hand = cross_entropy(whole.logits.flatten(0, 1), given["labels"].flatten())
    assert scores_tokens_apart(model, given)
    assert model.training
    with labelled_alone(model):
        part, found = gradients(model, given)
    chosen = given["labels"] != IGNORED
    assert part.logits.shape == (1, int(chosen.sum()), model.config.vocab_size)
    torch.testing.assert_close(part.logits[0], whole.logits[chosen])
    torch.testing.assert_close(part.loss, by_hand)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=1e-6, rtol=1e-4, msg=name)
    assert gradients(model, given)[0].logits.shape == whole.logits.shape  # and afterwards as before


def test_calls_without_labels_are_left_alone():
    model = made("bert")
    ids = batch()["input_ids"]
    with labelled_alone(model):
        assert model(input_ids=ids).logits.shape == (3, 12, 60)
        assert model(**batch(empty=True)).logits.shape == (3, 12, 60)
        assert model(**batch()).logits.shape[0] == 1
        torch.testing.assert_close(model.base_model(ids).last_hidden_state.shape, torch.Size([3, 12, 16]))


def test_a_head_that_mixes_tokens_is_found_out():
    class Mixed(tf.BertForMaskedLM):
        def __init__(self, config):
            super().__init__(config)
            self.cls = nn.Sequential(_Mixing(), self.cls)

    class _Mixing(nn.Module):
        def forward(self, states):
            return states + 5 * states.cumsum(1)

    torch.manual_seed(0)
    model = Mixed(tf.BertConfig(**SIZES))
    model.cls.apply(lambda m: nn.init.normal_(m.weight) if isinstance(m, nn.Linear) else None)
    assert not scores_tokens_apart(model, batch())
    assert not scores_tokens_apart(tf.BertModel(tf.BertConfig(**SIZES)), batch())
