"""Perplexities against plain loops over tokens."""

import math

import pytest
import torch
import transformers as tf

from fewfold import TaskError
from fewfold.models import ShareBertConfig, SlimLMConfig
from fewfold.tasks.perplexity import Perplexity, causal_perplexity, causal_windows, masked_perplexity, perplexity

TEXTS = ["the film is fine .", "", "she lives in rome , he lives in oslo .", "where is lima ?"]


@pytest.fixture
def gpt2(tokenizer):
    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3,
        bos_token_id=None, eos_token_id=3,
    )  # fmt: skip
    return tf.GPT2LMHeadModel(config).eval()


@pytest.fixture
def masked(make_body):
    return make_body(tf.AutoModelForMaskedLM)


def ids_of(tokenizer):
    return tokenizer("\n".join(TEXTS), add_special_tokens=False)["input_ids"]


def log_probability(logits, token):
    return float(torch.log_softmax(logits.double(), dim=-1)[token])


@torch.no_grad()
@pytest.mark.parametrize(("length", "stride"), [(8, 4), (8, 1), (8, 7), (5, 2), (32, 16)])
def test_causal_against_a_loop(length, stride, tokenizer, gpt2):
    ids = ids_of(tokenizer)
    total = 0.0
    for place in range(1, len(ids)):
        # the window that foretells this token is the first one that reaches it
        start = 0
        while start + length <= place:
            start += stride
        total += log_probability(gpt2(torch.tensor([ids[start:place]])).logits[0, -1], ids[place])
    found = causal_perplexity(gpt2, tokenizer, TEXTS, length, stride)
    assert found.tokens == len(ids) - 1
    assert found.nll == pytest.approx(-total / (len(ids) - 1), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.nll))
    words = len(" ".join(TEXTS).split())
    assert found.word_perplexity == pytest.approx(math.exp(-total / words), rel=1e-4)


def test_windows_foretell_every_token_once():
    for tokens, length, stride in ((40, 8, 3), (8, 8, 4), (9, 8, 7), (2, 8, 4)):
        windows = list(causal_windows(tokens, length, stride))
        assert [token for _, first, end in windows for token in range(first, end)] == list(range(1, tokens))
        assert all(end - start <= length and start < first for start, first, end in windows)
        assert all(first - start >= length - stride for start, first, _ in windows[1:])


@torch.no_grad()
def test_masked_one_by_one_against_a_loop(tokenizer, masked):
    ids, total = ids_of(tokenizer), 0.0
    for start in range(0, len(ids), 8):
        window = [tokenizer.cls_token_id, *ids[start : start + 8], tokenizer.sep_token_id]
        for place in range(1, len(window) - 1):
            hidden = [*window[:place], tokenizer.mask_token_id, *window[place + 1 :]]
            total += log_probability(masked(torch.tensor([hidden])).logits[0, place], window[place])
    found = masked_perplexity(masked, tokenizer, TEXTS, max_length=10)
    assert (found.kind, found.stride, found.tokens) == ("masked", 0, len(ids))
    assert found.nll == pytest.approx(-total / len(ids), rel=1e-5)


@torch.no_grad()
def test_masked_in_strides_against_a_loop(tokenizer, masked):
    ids, total = ids_of(tokenizer), 0.0
    for start in range(0, len(ids), 8):
        window = [tokenizer.cls_token_id, *ids[start : start + 8], tokenizer.sep_token_id]
        for first in range(3):
            places = [place for place in range(1, len(window) - 1) if (place - 1) % 3 == first]
            hidden = [tokenizer.mask_token_id if place in places else token for place, token in enumerate(window)]
            if places:
                logits = masked(torch.tensor([hidden])).logits[0]
                total += sum(log_probability(logits[place], window[place]) for place in places)
    found = masked_perplexity(masked, tokenizer, TEXTS, max_length=10, stride=3)
    assert found.nll == pytest.approx(-total / len(ids), rel=1e-5)
    assert found.nll != pytest.approx(masked_perplexity(masked, tokenizer, TEXTS, max_length=10).nll, rel=1e-4)


def test_the_class_decides(tokenizer, gpt2, masked, body):
    assert perplexity(gpt2, tokenizer, TEXTS, 16).kind == "causal"
    assert perplexity(gpt2, tokenizer, TEXTS, 16).stride == 8
    assert perplexity(masked, tokenizer, TEXTS, 16, max_tokens=5).tokens == 5
    assert perplexity(masked, tokenizer, TEXTS, 16, max_tokens=5).words == 5
    with pytest.raises(TaskError, match="BertModel has no language-modelling head"):
        perplexity(body, tokenizer, TEXTS)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_our_own_language_models_are_known(kind, tokenizer):
    if kind == "causal":
        model = tf.AutoModelForCausalLM.from_config(SlimLMConfig(vocab_size=len(tokenizer), hidden_size=16)).eval()
        expected = causal_perplexity(model, tokenizer, TEXTS, 16)
    else:
        config = ShareBertConfig(
            vocab_size=640, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32,
            max_position_embeddings=40,
        )  # fmt: skip
        model = tf.AutoModelForMaskedLM.from_config(config).eval()
        expected = masked_perplexity(model, tokenizer, TEXTS, 16)
    assert expected.kind == kind
    assert perplexity(model, tokenizer, TEXTS, 16) == expected


def test_text_without_spaces_has_a_perplexity_too():
    found = Perplexity("causal", 3.0, 30000, 100, 512, 256).to_dict()
    assert found["perplexity"] == pytest.approx(math.exp(3))
    assert 1e300 < found["word_perplexity"] < math.inf


def test_what_makes_no_sense(tokenizer, gpt2, masked):
    with pytest.raises(TaskError, match=r"stride=8: windows of 8 tokens move on by 1…7"):
        causal_perplexity(gpt2, tokenizer, TEXTS, 8, 8)
    with pytest.raises(TaskError, match="stride=-1"):
        masked_perplexity(masked, tokenizer, TEXTS, 8, -1)
    for measure in (
        lambda: causal_perplexity(gpt2, tokenizer, ["film"]),
        lambda: masked_perplexity(masked, tokenizer, [""]),
    ):
        with pytest.raises(TaskError, match="no token to foretell"):
            measure()
    with pytest.raises(TaskError, match="max_tokens=0"):
        masked_perplexity(masked, tokenizer, TEXTS, max_tokens=0)
