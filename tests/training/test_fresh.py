import math

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from fewfold.models import CaptionerConfig, CaptionerModel
from fewfold.training.fresh import draw_linears

SIZES = {
    "vocab_size": 40, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.5,
    "pad_token_id": 0, "decoder_start_token_id": 1,
}  # fmt: skip
TABLES = ("shared", "embed_tokens", "embed_positions", "lm_head", "positions")


@pytest.mark.parametrize(("kind", "config"), [(MarianMTModel, MarianConfig), (CaptionerModel, CaptionerConfig)])
def test_linear_maps_are_drawn_and_nothing_else(kind, config):
    torch.manual_seed(0)
    model = kind(config(**SIZES))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(3.0)
    draw_linears(model)
    drawn = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            drawn += 1
            bound = 1 / math.sqrt(module.in_features)
            assert module.weight.abs().max() <= bound
            assert float(module.weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
            assert not module.bias.any()
    assert drawn >= 4 + 2 + 8 + 2  # of an encoder's and a decoder's layer
    for name, value in model.state_dict().items():
        if any(table in name for table in TABLES):
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert model.lm_head.weight is model.get_input_embeddings().weight
