"""More tokens for every family: old logits stay, and what is saved loads with equal logits."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fewfold import ModelError
from fewfold.measure.parameters import unique_parameters
from fewfold.models import (
    CaptionerConfig,
    CaptionerModel,
    MaskPredictConfig,
    MaskPredictModel,
    RecurrentTranslationConfig,
    RecurrentTranslationModel,
    ShareBertConfig,
    ShareBertForMaskedLM,
    SlimLMConfig,
    SlimLMForCausalLM,
)
from fewfold.models.slim_tables import SlimTables, make_slim

WORDS, MORE, TARGET = 30, 33, 40
IDS = torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]])
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MARIAN = {
    "vocab_size": WORDS, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 20,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
SHAREBERT = {
    "vocab_size": WORDS, "factor_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 12,
}  # fmt: skip


def captioner(tied):
    return CaptionerModel(CaptionerConfig(**MARIAN, image_size=16, stem_size=8, tie_word_embeddings=tied))


def mask_predict(tied):
    return MaskPredictModel(MaskPredictConfig(**MARIAN, tie_word_embeddings=tied))


def translation(tied, target=None):
    sizes = {"vocab_size": WORDS, "decoder_vocab_size": target, "embedding_size": 8, "hidden_size": 8}
    return RecurrentTranslationModel(RecurrentTranslationConfig(**sizes, tie_word_embeddings=tied))


def two_vocabularies(tied):
    return translation(tied, TARGET)


def slim(tied):
    return SlimLMForCausalLM(SlimLMConfig(vocab_size=WORDS, hidden_size=8, tie_word_embeddings=tied))


def counting(tied):
    noise = {"loss": "nce", "loss_noise": "unigram", "loss_samples": 8}
    model = SlimLMForCausalLM(SlimLMConfig(vocab_size=WORDS, hidden_size=8, tie_word_embeddings=tied, **noise))
    model.set_word_counts(torch.arange(WORDS) + 1)
    return model


def sharebert(tied):
    return ShareBertForMaskedLM(ShareBertConfig(**SHAREBERT, mlm_head="factored" if tied else "untied"))


def made(family, tied):
    """A model with random numbers, so that each one matters."""
    torch.manual_seed(0)
    model = family(tied).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:  # sines, which are not saved
                parameter.normal_(std=0.4)
    return model


@torch.no_grad()
def logits(model):
    if isinstance(model, CaptionerModel):
        return model(PIXELS, decoder_input_ids=IDS).logits
    decoder = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    return model(input_ids=IDS, **decoder).logits


def check_saved(model, folder):
    model.save_pretrained(folder)
    again, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(logits(again.eval()), logits(model), rtol=0, atol=0)
    assert unique_parameters(again) == unique_parameters(model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "family", [captioner, mask_predict, translation, two_vocabularies, slim, counting, sharebert]
)  # fmt: skip
def test_the_vocabulary_grows(family, tied, tmp_path):
    model = made(family, tied)
    before = logits(model)
    model.resize_token_embeddings(MORE)
    rows = TARGET if family is two_vocabularies else MORE
    assert logits(model).shape[-1] == model.get_output_embeddings().out_features == rows
    torch.testing.assert_close(logits(model)[..., : before.shape[-1]], before, rtol=0, atol=1e-5)
    check_saved(model, tmp_path)


@pytest.mark.parametrize("rows", [MORE, 27])
def test_new_words_have_not_been_seen(rows):
    model = made(counting, True)
    model.resize_token_embeddings(rows)
    assert model.word_counts.tolist() == [word + 1 if word < WORDS else 0 for word in range(rows)]
    ids = torch.tensor([[rows - 1, 5, rows - 2, 6]])
    assert bool(model.train()(input_ids=ids, labels=ids).loss.isfinite())


@pytest.mark.parametrize("slim", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_two_vocabularies_grow_apart(tied, slim, tmp_path):
    model = made(two_vocabularies, tied)
    if slim:
        make_slim(model, SlimTables(2, 4))
    before = logits(model)
    for resize in (model.resize_token_embeddings, model.resize_decoder_token_embeddings):
        resize(TARGET + 4)
        torch.testing.assert_close(logits(model)[..., :TARGET], before, rtol=0, atol=1e-5)
    assert (model.config.vocab_size, model.config.decoder_vocab_size) == (TARGET + 4, TARGET + 4)
    assert logits(model).shape[-1] == model.lm_head.out_features == TARGET + 4
    check_saved(model, tmp_path)
    with pytest.raises(ModelError, match="the vocabulary is joint"):
        made(translation, tied).resize_decoder_token_embeddings(MORE)


@pytest.mark.parametrize("near", [False, True])
def test_new_tokens_of_slim_tables_are_told_apart(near, tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0)
    model = make_slim(GPT2LMHeadModel(config), SlimTables(ratio=4, positions=4))
    table = model.get_input_embeddings()
    if near:  # codes by neighbours use some words more often
        table.coded.set_codes_([table.coded.codes_0.long().clamp(max=11)])
    before = table.assembled_weight().detach().clone()
    model.resize_token_embeddings(63)
    rows = table.assembled_weight().detach()
    assert torch.equal(rows[:60], before)
    assert len(rows[60:].unique(dim=0)) == 3
    assert not bool((rows[60:, None] == before).all(-1).any())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    ids, labels = torch.tensor([[60], [61], [62]]).repeat(1, 2), torch.tensor([[5], [6], [7]]).repeat(1, 2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    assert model(input_ids=ids).logits[:, 0].argmax(1).tolist() == [5, 6, 7]
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(again.get_input_embeddings().coded.codes_0, table.coded.codes_0)
