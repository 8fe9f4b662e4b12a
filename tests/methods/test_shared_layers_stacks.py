"""Encoder–decoder models: maps by stack, and one block for both."""

import pytest
import torch
import transformers as tf
from tiny_models import VOCAB, inputs, make, outputs

import fewfold
from fewfold import SharedLayers
from fewfold.checkpoint.config import structure_of

PLAIN = {"weighting": "none", "delta_rank": 0, "align": False}


def t5(layers=4):
    torch.manual_seed(0)
    config = tf.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=layers, num_decoder_layers=layers, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return tf.T5ForConditionalGeneration(config).eval()


def bart(layers=4):
    torch.manual_seed(0)
    config = tf.BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return tf.BartForConditionalGeneration(config).eval()


def groups(model):
    """Which targets have a store in common."""
    found = {}
    for record in structure_of(model).targets:
        found.setdefault(record.store, []).append(record.module)
    return sorted(sorted(names) for names in found.values())


@pytest.mark.parametrize(("build", "count"), [(t5, 6 + 10), (bart, 6 + 10)])
def test_each_stack_is_mapped_by_itself(build, count):
    model = build()
    fewfold.compress(model, SharedLayers(map="cycle", blocks=2, **PLAIN))
    assert len(groups(model)) == 2 * count
    for names in groups(model):
        assert len(names) == 2
        assert len({name.split(".")[0 if build is t5 else 1] for name in names}) == 1
        layers = sorted(int(next(piece for piece in name.split(".") if piece.isdigit())) for name in names)
        assert layers in ([0, 2], [1, 3])


def test_stacks_by_maps_of_their_own():
    model = t5()
    fewfold.compress(
        model,
        [
            SharedLayers(targets="encoder.*", map="all", **PLAIN),
            SharedLayers(targets="decoder.*", map="pairs", **PLAIN),
        ],
    )
    sizes = [len(names) for names in groups(model) if names[0].startswith("encoder")]
    assert sizes == [4] * 6
    assert {len(names) for names in groups(model) if names[0].startswith("decoder")} == {2}


@pytest.mark.parametrize("build", [t5, bart])
def test_encoder_and_decoder_share_layer_by_layer(build):
    model = build()
    fewfold.compress(model, SharedLayers(map="unshared", across_stacks=True, norms_and_biases="shared", **PLAIN))
    prefix = "" if build is t5 else "model."
    cross = "EncDecAttention" if build is t5 else "encoder_attn"
    together = [names for names in groups(model) if len(names) > 1]
    assert len(groups(model)) > len(together)
    for names in groups(model):
        assert len(names) == (1 if any(cross in name for name in names) else 2) or "norm" in names[0]
    pair = {
        t5: ["decoder.block.1.layer.2.DenseReluDense.wi", "encoder.block.1.layer.1.DenseReluDense.wi"],
        bart: ["decoder.layers.1.fc1", "encoder.layers.1.fc1"],
    }[build]
    assert [prefix + name for name in pair] in groups(model)
    norms = {
        t5: ["decoder.block.1.layer.2.layer_norm", "encoder.block.1.layer.1.layer_norm"],
        bart: ["decoder.layers.1.final_layer_norm", "encoder.layers.1.final_layer_norm"],
    }[build]
    assert [prefix + name for name in norms] in groups(model)
    for first, second in zip(*[[p for p in pair], [pair[1], pair[0]]], strict=True):
        a, b = (model.get_submodule(prefix + name) for name in (first, second))
        assert a.store is b.store


def test_one_block_for_everything_generates_and_is_loaded(tmp_path):
    model = t5(2)
    fewfold.compress(model, SharedLayers(map="all", across_stacks=True, **PLAIN))
    ids = inputs("t5_lm")["input_ids"]
    with torch.no_grad():
        cached = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True)
        assert torch.equal(cached, model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))
    expected = outputs(model, "t5_lm")
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again, "t5_lm"), expected, rtol=0, atol=1e-6)


def test_equal_layers_share_without_loss_across_stacks():
    """An encoder and a decoder of equal self-attention and feed-forward weights lose nothing."""
    model = make("bart_lm")
    encoder, decoder = model.model.encoder.layers[0], model.model.decoder.layers[0]
    decoder.load_state_dict(encoder.state_dict(), strict=False)
    dense = outputs(model, "bart_lm")
    fewfold.compress(model, SharedLayers(map="all", across_stacks=True, norms_and_biases="shared", **PLAIN))
    torch.testing.assert_close(outputs(model, "bart_lm"), dense, rtol=1e-5, atol=1e-6)
