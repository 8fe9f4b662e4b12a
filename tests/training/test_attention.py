"""Attention in fp32 inside training under autocast: where it applies, and that it computes the same."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fewfold.training.attention import LONGEST, attention_for_training

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of processors alone")


def attended(length, *, bf16, mask=None, autocast=True, dropout_p=0.0):
    """Attention over random inputs, and its three gradients."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, length, 8).bfloat16().float().requires_grad_() for _ in range(3)]
    with attention_for_training(bf16), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        cast = [value.bfloat16() if autocast else value for value in inputs]
        out = scaled_dot_product_attention(*cast, attn_mask=mask, dropout_p=dropout_p)
    out.float().square().sum().backward()
    return out, [value.grad for value in inputs]


def by_hand(length, mask=None):
    """The same in float64."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8).bfloat16().double().requires_grad_() for _ in range(3))
    scores = q @ k.mT / 8**0.5
    if mask is not None:
        scores = scores + (torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask)
    out = scores.softmax(-1) @ v
    out.square().sum().backward()
    return out, [value.grad for value in (q, k, v)]


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_attention_is_that_of_fp32_rounded(kind):
    mask = None if kind == "none" else torch.ones(6, 6, dtype=torch.bool).tril()
    if kind == "float":
        mask = torch.zeros(6, 6).masked_fill(~mask, -3.0).bfloat16()
    out, gradients = attended(6, bf16=True, mask=mask)
    wanted, expected = by_hand(6, mask)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, wanted.float().bfloat16())  # rounded once, at the end
    for found, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, right.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "values",
    [
        {"length": 6, "bf16": False},
        {"length": LONGEST, "bf16": True},
        {"length": 6, "bf16": True, "autocast": False},
        {"length": 6, "bf16": True, "dropout_p": 0.5},
    ],
)
def test_elsewhere_nothing_is_converted(values):
    with attention_for_training(False):
        plain = attended(**{**values, "bf16": False})
    found = attended(**values)
    assert torch.equal(plain[0], found[0])
    for one, other in zip(plain[1], found[1], strict=True):
        assert torch.equal(one, other)


def test_without_gradients_bfloat16_stays():
    torch.manual_seed(0)
    query = torch.randn(2, 3, 6, 8).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = scaled_dot_product_attention(query, query, query)
        with attention_for_training(True):
            assert torch.equal(scaled_dot_product_attention(query, query, query), plain)
