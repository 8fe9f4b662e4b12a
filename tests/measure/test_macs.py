import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)
from transformers.pytorch_utils import Conv1D

from fewfold.measure.macs import macs_per_token

B, L = 2, 6


class Calls(nn.Module):
    """Wraps a function of x and a weight of shape (8, 5)."""

    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 5))
        self.function = function

    def forward(self, x):
        return self.function(x, self.weight)


def count(module, *shape):
    return macs_per_token(module, {"x" if isinstance(module, Calls) else "input": torch.randn(*shape)})


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x @ w,
        lambda x, w: (w.T @ x.transpose(1, 2)).transpose(1, 2),
        lambda x, w: functional.linear(x, w.T),
        lambda x, w: functional.linear(x, w.T, torch.zeros(5)),
        lambda x, w: torch.einsum("bld,de->ble", x, w),
        lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1)),
        lambda x, w: torch.addmm(torch.zeros(5), x.reshape(-1, 8), w),
        lambda x, w: torch.stack([w.T @ row for row in x.reshape(-1, 8)]),
    ],
)
def test_every_way_to_multiply_by_a_weight_is_weights(function):
    macs = count(Calls(function), B, L, 8)
    assert (macs.weights, macs.attention, macs.tokens) == (40, 0, B * L)


def test_products_of_activations_are_attention():
    macs = count(Calls(lambda x, w: x @ x.transpose(1, 2) @ x), B, L, 8)
    assert (macs.weights, macs.attention) == (0, 2 * L * 8)
    fused = count(Calls(lambda x, w: functional.scaled_dot_product_attention(x, x, x)), B, 1, L, 8)
    assert (fused.weights, fused.attention) == (0, 2 * L * 8)


def test_written_in_place_still_depends_on_the_inputs():
    def function(x, w):
        buffer = torch.zeros(B, L, 8)
        buffer[:, :3] = x[:, :3]
        return x @ buffer.transpose(1, 2)

    assert count(Calls(function), B, L, 8).attention == L * 8


def test_assembling_a_weight_counts_as_weights():
    macs = count(Calls(lambda x, w: x @ (w @ w.T)), B, L, 8)
    assert macs.weights == pytest.approx(64 + 8 * 5 * 8 / (B * L))
    assert macs.attention == 0


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_callers_mode_does_not_matter(mode):
    with mode():
        module = nn.Sequential(nn.Linear(8, 5), Conv1D(3, 5))
        assert count(module, B, L, 8).weights == 40 + 15


def test_convolution_and_recurrent_layers():
    conv = count(nn.Conv1d(8, 5, kernel_size=3, padding=1), B, 8, L)
    assert conv.weights * conv.tokens == B * L * 8 * 5 * 3
    for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3)):
        macs = count(kind(8, 5, batch_first=True), B, L, 8)
        assert (macs.weights, macs.attention) == (gates * 5 * (8 + 5), 0)


def test_fused_transformer_layer_is_opened_and_settings_come_back():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    macs = macs_per_token(layer, {"src": torch.randn(B, L, 8)})
    assert (macs.weights, macs.attention) == (4 * 64 + 2 * 8 * 16, 2 * L * 8)
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == before
    assert layer.training


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert(attention):
    d, f, layers, vocabulary = 16, 40, 3, 60
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=d, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=f, attn_implementation=attention,
    )  # fmt: skip
    encoder = layers * (4 * d * d + 2 * d * f)
    macs = macs_per_token(BertModel(config), batch=B, length=L)
    assert macs.weights == pytest.approx(encoder + d * d / L)  # the pooler sees one token of a sequence
    assert macs.attention == layers * 2 * L * d
    assert macs.total == macs.weights + macs.attention
    headed = macs_per_token(BertForMaskedLM(config), batch=B, length=L)
    assert headed.weights == encoder + d * d + d * vocabulary


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gpt2(attention):
    d, layers, vocabulary = 16, 2, 60
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=d,
        n_layer=layers,
        n_head=4,
        n_positions=8,
        attn_implementation=attention,
    )
    macs = macs_per_token(GPT2LMHeadModel(config), batch=1, length=100)
    assert macs.tokens == 8
    assert macs.weights == layers * 12 * d * d + d * vocabulary
    assert macs.attention == layers * 2 * 8 * d


def test_t5_counts_encoder_and_decoder_tokens():
    d, inner, f, vocabulary = 16, 24, 32, 60
    config = T5Config(
        vocab_size=vocabulary, d_model=d, d_kv=6, num_heads=4, d_ff=f, num_layers=2, num_decoder_layers=3,
        decoder_start_token_id=0,
    )  # fmt: skip
    macs = macs_per_token(T5ForConditionalGeneration(config), batch=B, length=L)
    encoder = 2 * (4 * d * inner + 2 * d * f)
    decoder = 3 * (8 * d * inner + 2 * d * f) + d * vocabulary
    assert macs.tokens == 2 * B * L
    assert macs.weights == (encoder + decoder) / 2
    assert macs.attention == (2 + 3 + 3) * 2 * L * inner / 2


def test_vit_counts_patches():
    d, f, layers = 16, 32, 2
    config = ViTConfig(
        hidden_size=d, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=f,
        image_size=12, patch_size=4, num_channels=3,
    )  # fmt: skip
    macs = macs_per_token(ViTModel(config, add_pooling_layer=False), batch=B)
    patches, positions = 9, 10  # the class token is worked on and not counted
    weights = patches * 3 * 16 * d + positions * layers * (4 * d * d + 2 * d * f)
    assert macs.tokens == B * patches
    assert macs.weights == pytest.approx(weights / patches)
    assert macs.attention == pytest.approx(layers * 2 * positions**2 * d / patches)


def test_total_agrees_with_torchs_own_counter(tiny_bert):
    tiny_bert.set_attn_implementation("eager")
    tokens = torch.randint(5, 50, (B, L))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        tiny_bert(tokens)
    macs = macs_per_token(tiny_bert, {"input_ids": tokens})
    assert macs.total * macs.tokens == pytest.approx(counter.get_total_flops() / 2)
