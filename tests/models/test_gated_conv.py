"""Gated convolutions: a plain loop, pieces of a text, padding, and carved kernels."""

import numpy as np
import pytest
import torch

import fewfold
from fewfold import EmbeddingSharing, ModelError
from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.models.slim_lm.gated_conv import GatedConvLayer


def model(**changes):
    torch.manual_seed(0)
    settings = {"vocab_size": 40, "hidden_size": 8, "num_layers": 3, "cell": "gated_conv", "kernel_size": 3}
    return SlimLMForCausalLM(SlimLMConfig(**{**settings, "initializer_range": 0.7, **changes})).eval()


@pytest.mark.parametrize("width", [4, 5])
def test_equation(width):
    layer = GatedConvLayer(4, width, 3).double()
    torch.nn.init.normal_(layer.conv.bias)
    inputs = torch.randn(2, 6, 4, dtype=torch.float64)
    kernel, bias, x = (tensor.detach().numpy() for tensor in (layer.conv.weight, layer.conv.bias, inputs))
    expected = np.zeros((2, 6, width))
    for row in range(2):
        for step in range(6):
            sums = bias.copy()
            for back in range(3):
                if step - back >= 0:
                    sums += kernel[:, :, 2 - back] @ x[row, step - back]
            expected[row, step] = sums[:width] / (1 + np.exp(-sums[width:]))
            if width == 4:
                expected[row, step] += x[row, step]
    np.testing.assert_allclose(layer(inputs)[0].detach().numpy(), expected, atol=1e-12)


def test_pieces_and_padding():
    lm, ids = model(), torch.randint(40, (2, 9))
    whole = lm(ids).logits
    state, parts = None, []
    for piece in ids.split([1, 3, 5], dim=1):
        found = lm(piece, state=state)
        state = found.state
        parts.append(found.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0  # padding on the left, and amid and behind
    mask[1, [2, 7, 11]] = 0
    padded = torch.full((2, 12), 7)
    padded[mask.bool()] = ids.flatten()
    found = lm(padded, attention_mask=mask)
    torch.testing.assert_close(found.logits[mask.bool()].view_as(whole), whole)
    for layer, other in zip(found.state, lm(ids).state, strict=True):
        torch.testing.assert_close(layer[0], other[0])


def test_generates_as_it_reads():
    lm, prompt = model(), torch.randint(40, (2, 4))
    written = lm.generate(prompt, max_new_tokens=6, do_sample=False)
    for length in range(4, 10):
        assert torch.equal(lm(written[:, :length]).logits[:, -1].argmax(-1), written[:, length])


def test_carved(tmp_path):
    lm = fewfold.compress(model(tie_word_embeddings=True), EmbeddingSharing(init_std=0.4), fit=False)
    first, last = lm.model.layers[0].conv, lm.model.layers[2].conv
    assert torch.equal(first.assembled_weight(), last.assembled_weight())
    assert sum(parameter.numel() for parameter in lm.model.layers.parameters()) == 3 * 16
    ids = torch.randint(40, (2, 6))
    lm(ids, labels=ids).loss.backward()
    assert float(first.store.table.weight.grad.abs().sum()) > 0
    lm.save_pretrained(tmp_path)
    torch.testing.assert_close(fewfold.load(tmp_path).eval()(ids).logits, lm.eval()(ids).logits)


def test_refusals():
    with pytest.raises(ModelError, match="recurrent cells"):
        SlimLMConfig(cell="gated_conv", weight_dropout=0.5)
    with pytest.raises(ModelError, match="kernel_size=0"):
        SlimLMConfig(kernel_size=0)
