"""Sampled softmax and noise-contrastive estimation against naive loops and the full softmax."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fewfold import ModelError
from fewfold.models import SlimLMConfig, SlimLMForCausalLM, SlimSoftmax
from fewfold.models.slim_lm.loss import LossOptions, lm_loss
from fewfold.models.slim_lm.noise import Noise

ROWS, COLUMNS, TOKENS = 25, 8, 30
COUNTS = torch.arange(ROWS).double() ** 2


@pytest.fixture(params=["slim", "dense"])
def head(request):
    made = SlimSoftmax(COLUMNS, ROWS, {"positions": 4, "words": 6}, std=0.5)
    made = made.double() if request.param == "slim" else made.dense().double()
    nn.init.normal_(made.bias)
    return made


def table_of(head):
    return (head.matrix() if isinstance(head, SlimSoftmax) else head.weight).detach()


def probabilities(counts):
    if counts is None:
        return [math.log((w + 2) / (w + 1)) / math.log(ROWS + 1) for w in range(ROWS)]
    return [(float(c) + 1) / (float(counts.sum()) + ROWS) for c in counts]


@pytest.mark.parametrize("counts", [None, COUNTS])
def test_noise_words_come_as_often_as_said(counts):
    noise = Noise(ROWS, counts)
    wanted = torch.tensor(probabilities(counts))
    torch.testing.assert_close(noise.log_probability(torch.arange(ROWS)).exp().float(), wanted)
    found = torch.bincount(noise.draw(200_000, torch.device("cpu")), minlength=ROWS) / 200_000
    assert float((found - wanted).abs().max()) < 0.005
    assert found.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("counts", [None, COUNTS])
@pytest.mark.parametrize("kind", ["sampled", "nce"])
def test_losses_equal_naive_loops(head, kind, counts):
    states, labels = torch.randn(TOKENS, COLUMNS).double(), torch.randint(ROWS, (TOKENS,))
    torch.manual_seed(7)
    found = float(lm_loss(states, labels, head, LossOptions(kind, samples=40, counts=counts)).detach())
    torch.manual_seed(7)
    drawn, shares = Noise(ROWS, counts).draw(40, torch.device("cpu")).tolist(), probabilities(counts)
    table, bias = table_of(head).numpy(), head.bias.detach().numpy()
    total = 0.0
    for token, label in enumerate(labels.tolist()):

        def score(word, token=token):
            return states[token].numpy() @ table[word] + bias[word] - math.log(40 * shares[word])

        if kind == "sampled":
            others = [math.exp(score(word)) for word in drawn if word != label]
            own = states[token].numpy() @ table[label] + bias[label]
            total += math.log(math.exp(own) + sum(others)) - own
        else:
            fixed = math.log(ROWS)
            total += math.log1p(math.exp(fixed - score(label)))
            total += sum(math.log1p(math.exp(score(word) - fixed)) for word in drawn)
    assert found == pytest.approx(total / TOKENS, rel=1e-9)


def test_many_samples_point_where_the_full_softmax_does(head):
    states, labels = torch.randn(TOKENS, COLUMNS).double(), torch.randint(ROWS, (TOKENS,))
    gradients = {}
    for kind in ("full", "sampled"):
        head.zero_grad()
        lm_loss(states, labels, head, LossOptions(kind, samples=50_000)).backward()
        gradients[kind] = torch.cat([p.grad.flatten() for p in head.parameters()])
    assert torch.cosine_similarity(gradients["full"], gradients["sampled"], dim=0) > 0.999
    assert float(gradients["sampled"].norm() / gradients["full"].norm()) == pytest.approx(1.0, abs=0.1)


def test_rows_that_nobody_asked_for_get_no_gradient():
    head = SlimSoftmax(COLUMNS, ROWS, {"positions": 1, "words": ROWS}).double()
    states, labels = torch.randn(3, COLUMNS).double(), torch.tensor([4, 4, 9])
    torch.manual_seed(1)
    lm_loss(states, labels, head, LossOptions("nce", samples=5)).backward()
    torch.manual_seed(1)
    asked = {4, 9, *Noise(ROWS).draw(5, torch.device("cpu")).tolist()}
    codes = head.coded.codes(0)[:, 0].long()
    touched = {row for row in range(ROWS) if head.coded.codebooks["0"].weight.grad[codes[row]].any()}
    assert touched == asked
    np.testing.assert_array_equal(np.flatnonzero(head.bias.grad.numpy()), sorted(asked))


def test_models_train_on_noise_and_are_judged_on_the_full_softmax():
    ids = torch.randint(ROWS, (2, 9))
    for kind, noise in (("nce", "log_uniform"), ("sampled", "unigram")):
        config = SlimLMConfig(
            vocab_size=ROWS, hidden_size=8, loss=kind, loss_samples=6, loss_noise=noise,
            output_codes={"positions": 4, "words": 6},
        )  # fmt: skip
        model = SlimLMForCausalLM(config).train()
        if noise == "unigram":
            with pytest.raises(ModelError, match=r"call model\.set_word_counts"):
                model(ids, labels=ids)
            model.set_word_counts(COUNTS)
        torch.manual_seed(0)
        first = model(ids, labels=ids).loss
        first.backward()
        torch.manual_seed(0)
        assert torch.equal(first, model(ids, labels=ids).loss)
        model.eval()
        logits = model(ids).logits[:, :-1].flatten(0, 1)
        full = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        torch.testing.assert_close(model(ids, labels=ids).loss, full)
