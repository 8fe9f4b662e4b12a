import copy

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from fewfold.measure.fidelity import Reference, fidelity, nearest_neighbours, sentence_embeddings

TEXTS = [
    "A man is playing a flute.",
    "Two dogs run.",
    "The committee has not yet decided whether the new bridge will be built of wood or of stone.",
    "Snow.",
    "Prices rose again in the third quarter of the year.",
    "She sings.",
    "A woman is slicing an onion in the kitchen.",
]


def one_by_one(model, tokenizer, texts, max_length=128):
    """Hidden states of each text alone: no padding and no batches."""
    with torch.no_grad():
        return [
            model(**tokenizer(t, return_tensors="pt", truncation=True, max_length=max_length))
            .last_hidden_state[0].numpy().astype(np.float64)
            for t in texts
        ]  # fmt: skip


def unit(rows):
    rows = np.stack(rows)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def disturbed(model, amount=0.3):
    torch.manual_seed(1)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.encoder.parameters():
            weight.add_(amount * weight.std().nan_to_num() * torch.randn_like(weight))
    return other


def test_embeddings_equal_those_of_each_text_alone(minilm, tokenizer):
    expected = unit([h.mean(axis=0) for h in one_by_one(minilm, tokenizer, TEXTS)])
    minilm.train()
    found = sentence_embeddings(minilm, tokenizer, TEXTS, batch_size=3)
    assert minilm.training
    minilm.eval()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_long_texts_are_cut_at_the_models_last_position(tiny_bert, tokenizer):
    long = "word " * 100
    found = sentence_embeddings(tiny_bert, tokenizer, [long, "word"])
    expected = unit([h.mean(axis=0) for h in one_by_one(tiny_bert, tokenizer, [long], max_length=32)])
    np.testing.assert_allclose(found[:1].numpy(), expected, atol=1e-5)


def test_a_head_changes_nothing(tiny_bert, tokenizer):
    headed = BertForMaskedLM(tiny_bert.config).eval()
    headed.bert.load_state_dict(tiny_bert.state_dict(), strict=False)
    expected = sentence_embeddings(tiny_bert, tokenizer, TEXTS)
    torch.testing.assert_close(sentence_embeddings(headed, tokenizer, TEXTS), expected)


def test_decoder_without_padding_token_and_encoder_decoder(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    size = len(tokenizer)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=8, n_layer=1, n_head=2)).eval()
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=size, d_model=8, d_kv=4, num_heads=2, d_ff=8, num_layers=1)
    ).eval()
    for model in (gpt2, t5):
        together = sentence_embeddings(model, tokenizer, TEXTS)
        alone = torch.cat([sentence_embeddings(model, tokenizer, [text]) for text in TEXTS])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_neighbours_against_a_loop():
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(30, 6), dim=1)
    found = nearest_neighbours(rows, 4, block=7)
    for i in range(30):
        others = sorted((j for j in range(30) if j != i), key=lambda j: -float(rows[i] @ rows[j]))
        assert found[i].tolist() == others[:4]


def test_figures_against_loops(minilm, tokenizer):
    other = disturbed(minilm)
    a, b = (one_by_one(model, tokenizer, TEXTS) for model in (minilm, other))
    u, v = (unit([h.mean(axis=0) for h in states]) for states in (a, b))
    shares = []
    for i in range(len(TEXTS)):
        first, second = (
            set(sorted((j for j in range(len(TEXTS)) if j != i), key=lambda j: -(e[i] @ e[j]))[:3]) for e in (u, v)
        )
        shares.append(len(first & second) / 3)
    error = np.sqrt(sum(((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)))
    error /= np.sqrt(sum((x**2).sum() for x in a))
    found = fidelity(minilm, other, tokenizer, TEXTS, neighbours=3)
    assert found.cosine == pytest.approx((u * v).sum(axis=1).mean(), abs=1e-5)
    assert found.neighbour_overlap == pytest.approx(np.mean(shares))
    assert found.hidden_error == pytest.approx(error, abs=1e-5)
    assert 0 < found.hidden_error < 2
    assert found.neighbour_overlap < 1


def test_a_model_agrees_with_itself(minilm, tokenizer):
    found = Reference(minilm, tokenizer, TEXTS, neighbours=3).compare(minilm)
    assert found.cosine == pytest.approx(1)
    assert found.neighbour_overlap == 1
    assert found.hidden_error == 0


def test_bad_calls(minilm, tiny_bert, tokenizer):
    with pytest.raises(ValueError, match="10 neighbours need at least 11 texts, and there are 7"):
        fidelity(minilm, minilm, tokenizer, TEXTS)
    with pytest.raises(ValueError, match="hidden size"):
        fidelity(minilm, tiny_bert, tokenizer, TEXTS, neighbours=2)
    with pytest.raises(ValueError, match="at least one text"):
        sentence_embeddings(minilm, tokenizer, [])
