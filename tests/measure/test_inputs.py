import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from fewfold.measure.inputs import clipped_length, dummy_inputs, token_count

SMALL = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)


def test_text_encoder_uses_every_usable_position_and_no_more():
    config = RobertaConfig(vocab_size=40, max_position_embeddings=18, pad_token_id=1, **SMALL)
    model = RobertaModel(config)
    inputs = dummy_inputs(model, batch=3, length=100)
    assert inputs["input_ids"].shape == (3, 16)
    assert (inputs["input_ids"] != 1).all()
    assert model(**inputs).last_hidden_state.shape == (3, 16, 8)
    assert token_count(model, inputs) == 48


def test_decoder_clips_and_repeats_itself():
    model = GPT2Model(GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=10))
    inputs = dummy_inputs(model, length=128)
    assert inputs["input_ids"].shape == (1, 10)
    assert inputs["input_ids"].equal(dummy_inputs(model, length=128)["input_ids"])
    assert int(inputs["input_ids"].max()) < 40
    model(**inputs)


def test_encoder_decoders_get_both_sides():
    t5 = T5Model(T5Config(vocab_size=40, d_model=8, d_kv=4, num_heads=2, d_ff=8, num_layers=1))
    bart = BartModel(
        BartConfig(
            vocab_size=40, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=600,
        )
    )  # fmt: skip
    for model in (t5, bart):
        inputs = dummy_inputs(model, batch=2, length=600)
        assert inputs["decoder_input_ids"].shape == (2, 600)
        assert token_count(model, inputs) == 2400
    t5(**dummy_inputs(t5, 1, 5))
    bart(**dummy_inputs(bart, 1, 5))


def test_vision_and_two_towers():
    vit = ViTModel(ViTConfig(image_size=(8, 12), patch_size=4, **SMALL)).bfloat16()
    inputs = dummy_inputs(vit, batch=2)
    assert inputs["pixel_values"].shape == (2, 3, 8, 12)
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert token_count(vit, inputs) == 2 * 6
    vit(**inputs)
    clip = CLIPModel(
        CLIPConfig(
            text_config=dict(vocab_size=40, max_position_embeddings=7, **SMALL),
            vision_config=dict(image_size=8, patch_size=4, **SMALL),
        )
    )
    inputs = dummy_inputs(clip, batch=2)
    assert token_count(clip, inputs) == 2 * 7 + 2 * 4
    clip(**inputs)


def test_tokens_of_other_inputs():
    assert token_count(nn.Identity(), {"x": torch.zeros(2, 5, 8)}) == 10
    assert token_count(nn.Identity(), {"x": torch.zeros(2, 5, dtype=torch.long)}) == 10
    with pytest.raises(ValueError, match="no tensor"):
        token_count(nn.Identity(), {"x": None})


def test_modules_without_config_ask_for_inputs():
    with pytest.raises(ValueError, match="pass inputs"):
        dummy_inputs(nn.Linear(3, 3))


def test_models_without_positions_take_any_length():
    assert clipped_length(T5Config(), 4000) == 4000


def test_a_compiled_model_gets_the_inputs_of_the_model_in_it(tiny_bert):
    plain, compiled = dummy_inputs(tiny_bert, 2, 5), dummy_inputs(torch.compile(tiny_bert), 2, 5)
    assert {name: value.tolist() for name, value in plain.items()} == {
        name: value.tolist() for name, value in compiled.items()
    }
