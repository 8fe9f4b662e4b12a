"""Fused projections whose q, k and v are interleaved by heads: GPT-NeoX, Bloom, Persimmon and the three Falcons."""

from functools import partial

import pytest
import torch
import transformers as tf
from tiny_models import VOCAB, randomized
from torch import nn
from transformers.models.bloom.modeling_bloom import BloomAttention

import fewfold
from fewfold import LowRank, SharedFactors
from fewfold.calibration.statistics import Moments, Statistics
from fewfold.checkpoint.config import structure_of
from fewfold.surgery.layouts import FusedLinear, fused_parts, join
from fewfold.surgery.roles import writes_residual
from fewfold.surgery.targets import find_targets, read_bias, read_weight, split_fused

SMALL = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
FALCON = {**SMALL, "bias": True, "ffn_hidden_size": 24}


def _neox():
    return tf.GPTNeoXModel(tf.GPTNeoXConfig(**SMALL, intermediate_size=24, attn_implementation="eager"))


def _neox_japanese():
    return tf.GPTNeoXJapaneseModel(tf.GPTNeoXJapaneseConfig(**SMALL, intermediate_multiple_size=2))


def _bloom():
    return tf.BloomModel(tf.BloomConfig(**SMALL))


def _persimmon():
    return tf.PersimmonModel(tf.PersimmonConfig(**SMALL, intermediate_size=24))


def _falcon(**kwargs):
    return tf.FalconModel(tf.FalconConfig(**FALCON, **kwargs))


# by family: the model, the function of its attention that first sees q, k and v apart, and blocks of the projection
FAMILIES = {
    "neox": (_neox, "eager_attention_forward", 4),
    "neox_japanese": (_neox_japanese, "_attn", 4),
    "bloom": (_bloom, "_reshape", 4),
    "persimmon": (_persimmon, "_split_heads", 4),
    "falcon_old": (partial(_falcon, multi_query=False, alibi=True), "_split_heads", 4),
    "falcon_multi_query": (partial(_falcon, multi_query=True), "_split_heads", 1),
    "falcon_grouped": (partial(_falcon, new_decoder_architecture=True, num_kv_heads=2), "_split_heads", 2),
    "falcon_one_group": (partial(_falcon, new_decoder_architecture=True, num_kv_heads=1), "_split_heads", 1),
    "falcon_own_groups": (partial(_falcon, new_decoder_architecture=True, num_kv_heads=4), "_split_heads", 4),
}


def made(family):
    return randomized(FAMILIES[family][0])


def outputs(model):
    ids = torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids, use_cache=False).last_hidden_state


def projection(model):
    """The target and the module of the second layer's query_key_value."""
    target = [target for target in find_targets(model) if target.module.endswith("query_key_value")][1]
    return target, model.get_submodule(target.module)


def attended(model, family, monkeypatch):
    """What the second layer's projection reads, and the q, k and v that its attention then has, ``(batch, rows)``.

    The texts have one token each: at the first position rotary embeddings turn nothing.
    """
    target, module = projection(model)
    attention, name = model.get_submodule(target.module.rpartition(".")[0]), FAMILIES[family][1]
    seen = {"inputs": [], "apart": []}
    owner = attention
    if not hasattr(attention, name):
        owner = __import__(type(attention).__module__, fromlist=[name])
    inner = getattr(owner, name)

    def spy(*args, **kwargs):
        result = inner(*args, **kwargs)
        found = result if name in ("_reshape", "_split_heads") else [a for a in args if torch.is_tensor(a)][:3]
        if name != "_split_heads":
            found = [tensor.transpose(1, 2) for tensor in found]
        seen["apart"].append([tensor.squeeze(1) for tensor in found])
        return result

    monkeypatch.setattr(owner, name, spy)
    module.register_forward_pre_hook(lambda _, args: seen["inputs"].append(args[0].squeeze(1)))
    with torch.no_grad():
        model(torch.arange(3, 9)[:, None], use_cache=False)
    return seen["inputs"][-1], seen["apart"][-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_what_the_attention_uses(family, monkeypatch):
    model = made(family)
    target, _ = projection(model)
    parts = split_fused(model, target)
    assert [part.name for part in parts] == [f"{target.name}:{name}" for name in "qkv"]
    assert {part.part.blocks for part in parts} == {FAMILIES[family][2]}
    states, apart = attended(model, family, monkeypatch)
    for part, used in zip(parts, apart, strict=True):
        weight, bias = read_weight(model, part), read_bias(model, part)
        assert weight.shape == (part.rows, part.columns)
        out = (states @ weight.T + (0 if bias is None else bias)).unflatten(-1, (-1, 4))  # heads of 4
        out = out.repeat_interleave(used.shape[1] // out.shape[1], dim=1)  # keys and values of a group are repeated
        torch.testing.assert_close(out, used)


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_and_joining_give_the_matrix_again(family):
    model = made(family)
    target, module = projection(model)
    parts = fused_parts(target.module, target.rows, model)
    rows = torch.arange(target.rows)
    assert sorted(torch.cat([part.take(rows) for part in parts]).tolist()) == rows.tolist()
    wide = torch.randn(2, 3, target.rows)
    for fused, dim in ((module.weight, 0), (module.bias, 0), (wide, -1), (wide, 2), (wide.transpose(0, 2), 0)):
        if fused is not None:
            pieces = [part.take(fused, dim) for part in parts]
            assert [piece.shape[dim] for piece in pieces] == [part.rows for part in parts]
            assert torch.equal(join(pieces, parts.blocks, dim), fused)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_parts_side_by_side_give_the_fused_output(family):
    model = made(family)
    target, module = projection(model)
    parts = fused_parts(target.module, target.rows, model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((parameter * 16).round())  # whole numbers: sums are exact in any order
    dense = {}
    for part in parts:
        dense[part.name] = nn.Linear(target.columns, part.rows, bias=target.bias)
        with torch.no_grad():
            dense[part.name].weight.copy_(part.take(module.weight))
            if target.bias:
                dense[part.name].bias.copy_(part.take(module.bias))
    fused = FusedLinear(dense, parts.blocks)
    states = torch.randint(-8, 8, (2, 5, target.columns)).float()
    out, expected = fused(states), module(states)
    assert torch.equal(out, expected)
    program = torch.export.export(fused, (states,), strict=True)
    assert torch.equal(program.module()(states), expected)
    seen = torch.randint(-8, 8, expected.shape).float()
    (out * seen).sum().backward()
    (expected * seen).sum().backward()
    for part in parts:
        assert torch.equal(dense[part.name].weight.grad, part.take(module.weight.grad))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_metric_of_a_part_has_its_rows_and_columns(family):
    model = made(family)
    target, _ = projection(model)
    part = split_fused(model, target)[1]
    metric = torch.arange(target.rows**2, dtype=torch.float64).view(target.rows, target.rows)
    statistics = Statistics(gradients={target.module: Moments.of(1, torch.zeros(target.rows), metric)})
    rows = part.part.take(torch.arange(target.rows))
    assert torch.equal(statistics.output_metric(part), metric[rows][:, rows])


@pytest.mark.checkpoint
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_factors_cut_q_k_and_v_apart(family, tmp_path):
    model = made(family)
    dense, kinds = outputs(model), [type(module) for module in model.modules()]
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fewfold.compress(model, SharedFactors(targets="*query_key_value", rank=16, weighting="none"))
    modules = [target.module for target in find_targets(model) if target.module.endswith("query_key_value")]
    names = [record.name for record in structure_of(model).targets]
    assert sorted(names) == sorted(f"{module}:{part}" for module in modules for part in "qkv")
    torch.testing.assert_close(outputs(model), dense, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = tf.AutoModel.from_pretrained(tmp_path)
    assert structure_of(again) == structure_of(model)
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=1e-6)
    fewfold.densify(again)
    assert [type(module) for module in again.modules()] == kinds
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, weights[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs(again), dense, rtol=1e-4, atol=1e-4)


@pytest.mark.checkpoint
@pytest.mark.parametrize("family", ["neox", "falcon_grouped"])
def test_one_part_alone_leaves_the_others_as_they_were(family, tmp_path):
    model = made(family)
    target, module = projection(model)
    part, others = split_fused(model, target)[0], split_fused(model, target)[1:]
    dense = [(read_weight(model, other).clone(), read_bias(model, other).clone()) for other in others]
    bias = module.bias.detach().clone()
    fewfold.compress(model, LowRank(targets=part.name, rank=2, weighting="none", fused="split"))
    assert isinstance(model.get_submodule(target.module), FusedLinear)
    expected = outputs(model)
    model.save_pretrained(tmp_path)
    again = tf.AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again), expected, rtol=0, atol=1e-6)
    fewfold.densify(again)
    torch.testing.assert_close(outputs(again), expected, rtol=1e-4, atol=1e-5)
    assert torch.linalg.matrix_rank(read_weight(again, part), rtol=1e-4) == 2
    assert torch.equal(again.get_submodule(target.module).bias, bias)
    for other, (weight, offset) in zip(others, dense, strict=True):
        assert torch.equal(read_weight(again, other), weight)
        assert torch.equal(read_bias(again, other), offset)


class _Reordered(BloomAttention):
    """Keeps Bloom's name for its projection, but not necessarily its order."""


def test_an_unknown_order_is_not_cut():
    model = made("bloom")
    target, _ = projection(model)
    model.h[1].self_attention.__class__ = _Reordered
    assert split_fused(model, target) == [target]
    assert len(split_fused(model, next(t for t in find_targets(model) if t.module.startswith("h.0.")))) == 3
    model = made("falcon_grouped")
    target, _ = projection(model)
    model.h[1].self_attention.num_kv_heads = 3  # four heads in three groups
    assert split_fused(model, target) == [target]
    del model.h[1].self_attention.num_kv_heads
    assert split_fused(model, target) == [target]
    assert fused_parts("h.0.self_attention.query_key_value", target.rows + 1, model) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_that_write_the_residual_stream_are_known(family):
    targets = [target for target in find_targets(made(family)) if target.kind == "linear"]
    assert not any(target.refusal for target in targets)
    writers = {target.module.rpartition(".")[2] for target in targets if writes_residual(target)}
    assert writers == {"dense", "dense_4h_to_h"}
    assert sum(writes_residual(target) for target in targets) == 4
