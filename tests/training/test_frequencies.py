import math

import pytest
import torch
from tiny_models import make

from fewfold.lm.config import LMTraining
from fewfold.lm.corpus import word_corpus
from fewfold.lm.run import train_lm
from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.training.frequencies import begin_at_frequencies


def test_fresh_models_foretell_the_frequencies():
    torch.manual_seed(0)
    counts = torch.tensor([0, 7, 1, 40, 3, 0, 20, 9])
    model = SlimLMForCausalLM(SlimLMConfig(vocab_size=8, hidden_size=16, initializer_range=1e-4)).eval()
    assert begin_at_frequencies(model, counts)
    shares = (counts + 1) / (counts + 1).sum()
    logits = model(torch.tensor([[3, 6, 1]])).logits
    torch.testing.assert_close(logits.softmax(-1), shares.expand(1, 3, 8), rtol=1e-2, atol=1e-3)


def test_masked_models_too():
    model = make("bert_mlm").eval()
    counts = torch.arange(model.config.vocab_size)
    assert begin_at_frequencies(model, counts)
    assert model.cls.predictions.bias.argmax() == model.config.vocab_size - 1


def test_output_layers_without_a_bias_stay():
    model = make("gpt2_lm")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert not begin_at_frequencies(model, torch.ones(model.config.vocab_size))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("codes", [None, {"positions": 4, "ratio": 1}])
def test_language_models_begin_there(codes):
    corpus = word_corpus(["the cat sees the dog and the dog sees the cat"] * 40)
    size = {"input_codes": codes, "output_codes": codes} if codes else {}
    config = SlimLMConfig(vocab_size=len(corpus.tokenizer), hidden_size=16, initializer_range=0.01, **size)
    first = {}
    for begin in ("frequencies", "zeros"):
        training = LMTraining(steps=1, batch=4, bptt=8, log_steps=1, output_bias=begin)
        first[begin] = train_lm(config, corpus, training).points[0]["loss"]
    ids = corpus.train.ids
    shares = torch.bincount(torch.from_numpy(ids)) / len(ids)
    entropy = -float((shares[shares > 0] * shares[shares > 0].log()).sum())
    assert first["zeros"] == pytest.approx(math.log(len(corpus.tokenizer)), rel=0.03)
    assert first["frequencies"] == pytest.approx(entropy, rel=0.1)
