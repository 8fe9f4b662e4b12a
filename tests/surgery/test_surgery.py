"""Finding, selecting and replacing weights: GPT-2's fused Conv1D, parts, layers, patterns, refusals, ties."""

import numpy as np
import pytest
import torch
import transformers as tf
from cases import METHODS, small_config
from tiny_models import MODELS, inputs, make, outputs
from torch import nn

import fewfold
from fewfold import Dense, LowRank, RecipeError, TargetError
from fewfold.assembled import Assembled
from fewfold.checkpoint.config import structure_of
from fewfold.surgery.layouts import FusedLinear, fused_parts
from fewfold.surgery.targets import find_targets, matches, read_weight, select, split_fused
from fewfold.surgery.ties import TiedHead, find_ties


def names(model):
    return [record.name for record in structure_of(model).targets]


def svd(weight, rank):
    """The best approximation of this rank, by numpy in float64 (Eckart and Young)."""
    u, s, vt = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def test_every_linear_and_table_of_bert_is_found_once():
    model = make("bert_mlm")
    found = find_targets(model)
    modules = [target.module for target in found]
    assert len(modules) == len(set(modules)) == 2 * 6 + 3 + 1
    assert "cls.predictions.decoder" not in modules
    table = next(target for target in found if target.module == "bert.embeddings.word_embeddings")
    assert (table.rows, table.columns, table.padding_idx) == (61, 16, 0)
    assert [(tie.module, tie.role) for tie in table.ties] == [("cls.predictions.decoder", "head")]
    query = next(target for target in found if target.module.endswith("layer.1.attention.self.query"))
    assert (query.layer, query.layout, query.head) == (1, "out×in", False)
    assert next(target for target in found if target.module == "cls.predictions.transform.dense").head


def test_named_groups_leave_heads_and_positions_alone():
    model = make("bert_cls")
    found = find_targets(model)
    linears = {target.name for target in select(model, found, "linears")}
    assert len(linears) == 12
    assert "classifier" not in linears
    assert "bert.pooler.dense" not in linears
    assert {target.name for target in select(model, found, "embeddings")} == {"bert.embeddings.word_embeddings"}
    assert {target.name for target in select(model, found, "classifier")} == {"classifier"}
    assert {t.name for t in select(model, found, "bert.encoder.layer.1")} == {n for n in linears if "layer.1." in n}
    assert len(select(model, found, "*.query")) == 2
    assert len(select(model, found, r"re:layer\.1\..*(query|key)$")) == 2


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", True),
        ("a.b", "a.bc", False),
        ("a.*.c", "a.x.y.c", True),
        ("a.b", "a.b:q", True),
        ("a.?", "a.b", True),
        ("re:b$", "a.b", True),
        ("re:^b", "a.b", False),
        ("a+b", "aab", False),
    ],
)
def test_matches(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_an_unknown_pattern_says_what_exists():
    with pytest.raises(TargetError, match=r"'nothing' names no weight.*layer\.\*\.attention\.self\.query"):
        fewfold.compress(make("bert_mlm"), LowRank(targets="nothing", rank=2))
    with pytest.raises(TargetError, match="no regular expression"):
        fewfold.compress(make("bert"), LowRank(targets="re:(", rank=2))
    with pytest.raises(RecipeError, match=r"targets=\[\].*encoder"):
        fewfold.compress(make("bert"), LowRank(targets=[], rank=2))
    with pytest.raises(TargetError, match="exclude='nothing'"):
        fewfold.compress(make("bert"), LowRank(exclude=["nothing"], rank=2))
    with pytest.raises(TargetError, match="overrides name 'nothing'"):
        fewfold.compress(make("bert"), LowRank(rank=2, weighting="none", overrides={"nothing": {"rank": 1}}))
    with pytest.raises(RecipeError, match=r"overrides for encoder.*rnak"):
        fewfold.compress(make("bert"), LowRank(rank=2, weighting="none", overrides={"*.query": {"rnak": 1}}))
    with pytest.raises(TargetError, match=r"layers='7' leaves no target.*\[0, 1\]"):
        fewfold.compress(make("bert"), LowRank(layers="7", rank=2))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rank": 0}, ["rank", "greater than or equal to 1"]),
        ({"rnak": 3}, ["rnak", "not permitted"]),
        ({"stored_dtype": "int5"}, ["stored_dtype", "int8"]),
        ({"weighting": "magic"}, ["weighting", "inputs_and_outputs"]),
        ({"fused": "halved"}, ["fused", "whole", "split"]),
        ({"layers": "a-b"}, ["layers", "0-3,5"]),
        ({"group_size": 1}, ["group_size"]),
    ],
)
def test_a_wrong_config_names_the_key_and_what_is_allowed(values, words):
    with pytest.raises(ValueError, match=r"LowRank|layers") as error:
        LowRank(**values)
    assert all(word in str(error.value) for word in words)


def test_ranks_beyond_the_matrix_are_refused_by_name():
    with pytest.raises(RecipeError, match=r"rank=17.*query is 16×16.*1…16"):
        fewfold.compress(make("bert"), LowRank(targets="*.query", rank=17, weighting="none"))


def test_layers_exclude_and_overrides():
    model = make("bert")
    config = LowRank(
        rank=3,
        weighting="none",
        layers="1",
        exclude=["*.key"],
        overrides={"*.value": {"rank": 5, "stored_dtype": "int8"}},
    )
    fewfold.compress(model, config)
    ranks = {record.module: (record.settings["rank"], record.stored_dtype) for record in structure_of(model).targets}
    layer = "encoder.layer.1."
    assert ranks == {
        f"{layer}attention.self.query": (3, "fp32"),
        f"{layer}attention.self.value": (5, "int8"),
        f"{layer}attention.output.dense": (3, "fp32"),
        f"{layer}intermediate.dense": (3, "fp32"),
        f"{layer}output.dense": (3, "fp32"),
    }


def test_the_first_config_that_names_a_target_takes_it():
    model = make("bert")
    fewfold.compress(model, [LowRank(targets="*.query", rank=2, weighting="none"), Dense(targets="linears")])
    methods = {record.name: record.method for record in structure_of(model).targets}
    assert {name for name, method in methods.items() if method == "low_rank"} == {
        f"encoder.layer.{layer}.attention.self.query" for layer in (0, 1)
    }
    assert len(methods) == 12
    with pytest.raises(TargetError, match="no target left"):
        fewfold.compress(make("bert"), [Dense(targets="linears"), LowRank(targets="*.query", rank=2, weighting="none")])


def test_a_conv1d_is_factored_in_its_own_orientation():
    model = make("gpt2")
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    dense = {name: model.h[1].get_submodule(name).weight.detach().clone().t() for name in layers}
    bias = {name: model.h[1].get_submodule(name).bias.detach().clone() for name in layers}
    fewfold.compress(model, LowRank(rank=4, weighting="none"))
    for name in layers:
        module = model.h[1].get_submodule(name)
        expected = svd(dense[name], 4)
        np.testing.assert_allclose(module.assembled_weight().detach().numpy(), expected, atol=1e-5)
        states = torch.randn(3, module.in_features)
        out = states.double().numpy() @ expected.T + bias[name].double().numpy()
        np.testing.assert_allclose(module(states).detach().numpy(), out, atol=1e-4)


def test_split_c_attn_factors_q_k_and_v_apart():
    model = make("gpt2")
    c_attn = model.h[0].attn.c_attn
    dense, bias = c_attn.weight.detach().clone().t(), c_attn.bias.detach().clone()
    fewfold.compress(model, LowRank(targets="*.c_attn", rank=4, weighting="none", fused="split"))
    assert names(model) == [f"h.{layer}.attn.c_attn:{part}" for layer in (0, 1) for part in "qkv"]
    fused = model.h[0].attn.c_attn
    assert isinstance(fused, FusedLinear)
    expected = np.concatenate([svd(dense[start : start + 16], 4) for start in (0, 16, 32)])
    states = torch.randn(3, 16)
    out = states.double().numpy() @ expected.T + bias.double().numpy()
    np.testing.assert_allclose(fused(states).detach().numpy(), out, atol=1e-4)
    fewfold.densify(model)
    np.testing.assert_allclose(model.h[0].attn.c_attn.weight.detach().numpy(), expected.T, atol=1e-5)
    torch.testing.assert_close(model.h[0].attn.c_attn.bias, bias)


@pytest.mark.checkpoint
@pytest.mark.parametrize("stored", ["fp32", "int8"])
def test_one_part_alone_leaves_the_others_dense(stored, tmp_path):
    model = make("gpt2_lm")
    dense = model.transformer.h[0].attn.c_attn.weight.detach().clone().t()
    bias = model.transformer.h[0].attn.c_attn.bias.detach().clone()
    targets = ["transformer.h.0.attn.c_attn:q", "transformer.h.0.attn.c_attn:v"]
    fewfold.compress(model, LowRank(targets=targets, rank=3, weighting="none", fused="split", stored_dtype=stored))
    fused = model.transformer.h[0].attn.c_attn
    assert [type(part) for part in fused.parts.values()][1] is nn.Linear
    torch.testing.assert_close(fused.parts["k"].weight, dense[16:32])
    torch.testing.assert_close(fused.parts["k"].bias, bias[16:32])
    expected = outputs(model, "gpt2_lm")
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again, "gpt2_lm"), expected, rtol=0, atol=1e-6)
    assert [row.target for row in fewfold.summary(again)] == targets
    for pattern in ("transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_attn:k"):
        with pytest.raises(TargetError, match=r"c_attn.*compressed apart already; densify"):
            fewfold.compress(again, LowRank(targets=pattern, rank=2, weighting="none", fused="split"))
    fewfold.densify(again)
    torch.testing.assert_close(outputs(again, "gpt2_lm"), expected, rtol=1e-4, atol=1e-5)


def test_the_parts_of_grouped_query_attention():
    model = make("llama")
    parts = fused_parts("layers.0.self_attn.qkv_proj", 32, model)
    assert [(part.name, part.start, part.stop) for part in parts] == [("q", 0, 16), ("k", 16, 24), ("v", 24, 32)]
    assert fused_parts("layers.0.self_attn.q_proj", 16, model) is None
    target = next(target for target in find_targets(make("gpt2")) if target.name == "h.0.attn.c_attn")
    assert [part.rows for part in split_fused(make("gpt2"), target)] == [16, 16, 16]


class _Odd(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids).tanh()


class _OddLinear(nn.Linear):
    def forward(self, states):
        return super().forward(states).tanh()


class _Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.odd = _Odd(10, 8)
        self.normed = nn.Embedding(10, 8, max_norm=1.0)
        self.odd_linear = _OddLinear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.plain = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("odd", "_Odd computes something else"),
        ("normed", "max_norm"),
        ("odd_linear", "_OddLinear computes something else"),
        ("attention.out_proj", "MultiheadAttention"),
    ],
)
@pytest.mark.parametrize("method", [name for name, case in METHODS.items() if case.heads])  # which need no layers
def test_what_cannot_be_replaced_is_refused_by_name(name, reason, method):
    model = _Mixed()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    config = METHODS[method].config(targets=name, **METHODS[method].small)
    with pytest.raises(TargetError, match=rf"{name}.*{reason}"):
        fewfold.compress(model, config)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    if METHODS[method].linears and not METHODS[method].scratch:
        fewfold.compress(model, METHODS[method].config(targets="linears", **METHODS[method].small))
        assert isinstance(model.plain, Assembled)
    assert type(model.attention.out_proj).__module__.startswith("torch")
    assert type(model.odd_linear) is _OddLinear


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(value):
    model = make("bert")
    with torch.no_grad():
        model.encoder.layer[1].intermediate.dense.weight[2, 3] = value
    with pytest.raises(TargetError, match=r"layer\.1\.intermediate\.dense holds 1 number"):
        fewfold.compress(model, LowRank(rank=2, weighting="none"))


def test_weights_on_the_meta_device_are_named():
    with torch.device("meta"):
        model = tf.BertModel(make("bert").config)
    with pytest.raises(TargetError, match="meta device: load the weights"):
        fewfold.compress(model, LowRank(rank=2, weighting="none"))


def test_a_module_with_two_parents_is_replaced_in_both():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    states = torch.randn(2, 8)
    fewfold.compress(model, LowRank(rank=8, weighting="none"))
    assert model[0][0] is model[1][0]
    expected = shared(shared(states))
    torch.testing.assert_close(model(states), expected, rtol=1e-4, atol=1e-5)
    fewfold.densify(model)
    assert model[0][0] is model[1][0]
    assert type(model[0][0]) is nn.Linear
    torch.testing.assert_close(model(states), expected, rtol=1e-4, atol=1e-5)


def test_embeddings_after_linears_and_linears_again_at_a_lower_rank():
    model = make("bert_mlm")
    fewfold.compress(model, LowRank(targets="linears", rank=6, weighting="none"))
    six = model.bert.encoder.layer[0].intermediate.dense.assembled_weight().detach().clone()
    fewfold.compress(model, LowRank(targets="embeddings", rank=4, weighting="none"))
    fewfold.compress(model, LowRank(targets="linears", rank=2, weighting="none"))
    ranks = {record.name: record.settings["rank"] for record in structure_of(model).targets}
    assert set(ranks.values()) == {2, 4}
    assert len(ranks) == 13
    two = model.bert.encoder.layer[0].intermediate.dense.assembled_weight().detach().numpy()
    np.testing.assert_allclose(two, svd(six, 2), atol=1e-5)
    assert isinstance(model.cls.predictions.decoder, TiedHead)
    fewfold.densify(model)
    assert type(model.bert.encoder.layer[0].intermediate.dense) is nn.Linear
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


@pytest.mark.checkpoint
def test_a_table_again_keeps_its_tied_head(tmp_path):
    model = make("gpt2_lm")
    fewfold.compress(model, LowRank(targets="embeddings", rank=9, weighting="none"))
    fewfold.compress(model, LowRank(targets="embeddings", rank=4, weighting="none"))
    assert model.lm_head.table is model.transformer.wte
    assert model.transformer.wte.rank == 4
    expected = outputs(model, "gpt2_lm")
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again, "gpt2_lm"), expected, rtol=0, atol=1e-6)
    fewfold.densify(again)
    assert again.lm_head.weight is again.transformer.wte.weight


@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case.tied])
def test_ties_are_found(name):
    model = make(name)
    (ties,) = find_ties(model).values()
    assert {tie.module for tie in ties} == set(MODELS[name].tied)
    heads = {tie.module for tie in ties if tie.role == "head"}
    assert heads == {name for name in MODELS[name].tied if "embed_tokens" not in name}


def test_a_scaled_embedding_keeps_its_scale():
    model = make("bart")
    ids = inputs("bart")["input_ids"]
    with torch.no_grad():
        plain, scaled = model.shared(ids), model.encoder.embed_tokens(ids)
        torch.testing.assert_close(scaled, model.shared.weight[ids] * 4.0)
    fewfold.compress(model, LowRank(targets="embeddings", rank=16, weighting="none"))
    with torch.no_grad():
        torch.testing.assert_close(model.shared(ids), plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.encoder.embed_tokens(ids), scaled, rtol=1e-4, atol=1e-5)


def test_t5_reads_the_dtype_of_wo():
    model = make("t5_lm").bfloat16()
    fewfold.compress(model, LowRank(rank=4, weighting="none"))
    wo = model.encoder.block[0].layer[-1].DenseReluDense.wo
    assert wo.weight.dtype == torch.bfloat16
    assert outputs(model, "t5_lm").dtype == torch.bfloat16
    wo.float()
    assert wo.weight.dtype == torch.float32
    assert torch.isfinite(outputs(model, "t5_lm")).all()


@pytest.mark.parametrize("name", ["bert_mlm", "t5_lm", "gpt2_lm", "vit_cls", "bart_lm"])
def test_init_functions_run_over_replaced_modules(name):
    model = make(name)
    fewfold.compress(model, LowRank(targets="all", rank=4, weighting="none", stored_dtype="int8"))
    for module in model.modules():
        model._init_weights(module)
    assert torch.isfinite(outputs(model, name)).all()


def test_reading_a_weight_gives_rows_by_columns():
    model = make("gpt2")
    found = {target.name: target for target in find_targets(model)}
    fused = found["h.0.attn.c_attn"]
    torch.testing.assert_close(read_weight(model, fused), model.h[0].attn.c_attn.weight.t())
    part = split_fused(model, fused)[1]
    torch.testing.assert_close(read_weight(model, part), model.h[0].attn.c_attn.weight.t()[16:32])


def test_a_bare_linear_is_refused_and_stays():
    linear = nn.Linear(4, 4)
    with pytest.raises(TargetError, match="is the model itself"):
        fewfold.compress(linear, LowRank(rank=2, weighting="none"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", {"embeddings.position_embeddings", "embeddings.token_type_embeddings", "pooler.dense"}),
        ("gpt2_lm", {"transformer.wpe"}),
        ("t5_lm", None),
    ],
)
def test_the_rest_is_what_the_body_leaves(name, expected):
    model = make(name)
    targets = find_targets(model)
    rest = {target.name for target in select(model, targets, "rest")}
    body = {target.name for target in select(model, targets, "all")}
    assert not rest & body
    assert rest | body == {target.name for target in targets if target.refusal is None}
    assert expected is None or rest == expected


def test_the_rest_may_be_nothing():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    fewfold.compress(model, [LowRank(rank=2, weighting="none"), Dense(targets="rest", stored_dtype="int8")])
    assert isinstance(model[0], Assembled)


def test_the_preset_of_codes_holds_a_size_in_bytes(tmp_path):
    model = make("bert")
    limit = int(0.5 * sum(parameter.numel() * 4 for parameter in model.parameters()))
    with pytest.warns(UserWarning, match="no calibration"):
        fewfold.compress(model, "codes-default", budget=fewfold.Budget(bytes=f"{limit}"))
    assert isinstance(model.pooler.dense, Assembled)
    assert isinstance(model.embeddings.position_embeddings, Assembled)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < limit + 30_000  # the header is no tensor


def trained(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_parts_of_a_frozen_projection_stay_frozen():
    model = make("gpt2_lm").requires_grad_(False)
    before = trained(model)
    fewfold.compress(model, LowRank(targets="*c_attn:q", fused="split", rank=2, weighting="none"))
    assert isinstance(model.transformer.h[0].attn.c_attn, FusedLinear)
    assert not any(trained(model).values())
    assert trained(fewfold.densify(model)) == before


@pytest.mark.parametrize("method", ["low_rank", "dense", "shared_factors", "shared_layers"])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_and_biases_train_as_they_did(method, bias):
    model = make("bert")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") is bias)
    before = trained(model)
    fewfold.compress(model, small_config("bert", method, "fp32"))
    replaced = {name for name, module in model.named_modules() if isinstance(module, Assembled)}
    assert replaced
    own = {id(module.bias) for module in model.modules() if isinstance(getattr(module, "bias", None), nn.Parameter)}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is ((id(parameter) in own) is bias), name
    assert trained(fewfold.densify(model)) == before


def test_shared_biases_train_as_they_did():
    model = make("bert")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    before = trained(model)
    recipe = fewfold.SharedLayers(norms_and_biases="shared", init="mean", align="none")
    fewfold.compress(model, recipe, fit=False)
    of_stores = {name: flag for name, flag in trained(model).items() if "fewfold_stores" in name}
    assert any(of_stores.values())
    assert all(flag is name.endswith("bias") for name, flag in of_stores.items())
    after = trained(fewfold.densify(model))
    assert {name for name in before if name.endswith("bias")} <= {name for name, flag in after.items() if flag}


@pytest.mark.parametrize("trains", [True, False])
def test_a_packed_model_is_dense_again_trained_as_it_was(trains):
    model = make("llama").requires_grad_(trains)
    before = trained(model)
    fewfold.compress(model, LowRank(rank=4, weighting="none", stored_dtype="int8"))
    assert trained(fewfold.densify(fewfold.pack(model))) == before


def test_a_scaled_table_is_dense_again_after_loading(tmp_path):
    config = tf.Gemma3TextConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=40, num_key_value_heads=2, head_dim=6,
    )  # fmt: skip
    model, ids = tf.Gemma3ForCausalLM(config).eval(), torch.tensor([[5, 6, 7, 8]])
    fewfold.compress(model, Dense(targets="embeddings", stored_dtype="int8"))
    fewfold.save(model, tmp_path / "out")
    with torch.no_grad():
        expected = model(ids).logits
        plain = fewfold.densify(fewfold.load(tmp_path / "out"))
        torch.testing.assert_close(plain(ids).logits, expected)
        assert float(plain.model.embed_tokens.embed_scale) == pytest.approx(24**0.5)
        half = fewfold.load(tmp_path / "out", dtype=torch.bfloat16)  # √24 is rounded there too
        table = half.model.embed_tokens
        assert torch.equal(table(ids), table.lookup(ids) * torch.tensor(24**0.5, dtype=torch.bfloat16))
        looked_up = table(ids)
        assert torch.equal(fewfold.densify(half).model.embed_tokens(ids), looked_up)
