"""Fused projections with a common name whose q, k and v lie in an order of their own: CodeGen and GPTBigCode."""

from functools import partial

import pytest
import torch
import transformers as tf
from tiny_models import VOCAB, randomized
from transformers.models.gpt_bigcode import modeling_gpt_bigcode

import fewfold
from fewfold.surgery.targets import find_targets, read_bias, read_weight, split_fused

SMALL = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "bos_token_id": 0,
         "eos_token_id": 1, "attn_implementation": "eager"}  # fmt: skip


def _bigcode(multi_query):
    return tf.GPTBigCodeModel(tf.GPTBigCodeConfig(**SMALL, multi_query=multi_query))


def _codegen():
    return tf.CodeGenModel(tf.CodeGenConfig(**SMALL, rotary_dim=4))


# by family: the model, the fused projection, names in their order, blocks
FAMILIES = {
    "codegen": (_codegen, "qkv_proj", "qvk", 4),
    "bigcode": (partial(_bigcode, False), "c_attn", "qkv", 4),
    "bigcode_multi_query": (partial(_bigcode, True), "c_attn", "qkv", 1),
}


def made(family):
    return randomized(FAMILIES[family][0])


def attended(model, attention, projection, monkeypatch):
    """What the projection reads, and q, k and v as the attention has them, of texts of one token, ``(batch, rows)``."""
    seen, apart = [], []
    owner, name = (
        (attention, "_attn") if hasattr(attention, "_attn") else (modeling_gpt_bigcode, "eager_attention_forward")
    )
    inner = getattr(owner, name)

    def spy(*args, **kwargs):
        apart.append([a.transpose(1, 2).flatten(1) for a in args if torch.is_tensor(a)][:3])
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, spy)
    projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(torch.arange(3, 9)[:, None], use_cache=False)
    return seen[-1], apart[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_what_the_attention_uses(family, monkeypatch):
    model = made(family)
    _, last, names, blocks = FAMILIES[family]
    target = [target for target in find_targets(model) if target.module.endswith(last)][-1]
    parts = split_fused(model, target)
    assert [part.name for part in parts] == [f"{target.name}:{name}" for name in names]
    assert {part.part.blocks for part in parts} == {blocks}
    parent, _, _ = target.module.rpartition(".")
    states, apart = attended(model, model.get_submodule(parent), model.get_submodule(target.module), monkeypatch)
    for part in parts:
        weight, bias = read_weight(model, part), read_bias(model, part)
        expected = states.double() @ weight.double().T + (0 if bias is None else bias.double())
        used = apart["qkv".index(part.name[-1])]
        torch.testing.assert_close(used.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_and_factored_at_full_rank_it_computes_the_same(family):
    model, ids = made(family), torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        before = model(ids, use_cache=False).last_hidden_state
        full = {"overrides": {"*:k": {"rank": 8}, "*:v": {"rank": 8}}} if family == "bigcode_multi_query" else {}
        targets = f"*{FAMILIES[family][1]}*"
        config = fewfold.LowRank(targets=targets, rank=32, weighting="none", fused="split", **full)
        fewfold.compress(model, config)
        after = model(ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
