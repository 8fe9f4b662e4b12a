"""Converting a model to shared layers: starts, alignment, differences, budgets."""

import copy
from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers as tf
from layer_models import PLAIN, deep, modules_of, texts, weights_of
from tiny_models import VOCAB, inputs, make, outputs, randomized

import fewfold
from fewfold import BudgetError, RecipeError, SharedLayers, TargetError
from fewfold.checkpoint.config import structure_of
from fewfold.measure.parameters import unique_parameters
from fewfold.methods.shared_layers.places import role_of
from fewfold.store import stores_of
from fewfold.surgery.targets import find_targets, read_bias, split_fused


def moments(model, batches):
    """Mean, second moment and covariance of every linear map's inputs, in float64, by a hook of our own."""
    rows, handles = {}, []
    for target in find_targets(model):
        if target.kind == "linear":
            module = model.get_submodule(target.module)
            handles.append(
                module.register_forward_hook(
                    lambda m, args, out, name=target.name: rows.setdefault(name, []).append(args[0].flatten(0, -2))
                )
            )
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    joined = {name: torch.cat(found).double().numpy() for name, found in rows.items()}
    return {name: (x.mean(0), np.cov(x.T, bias=True)) for name, x in joined.items()}


def test_a_block_a_layer_changes_nothing():
    for config in ({"map": "unshared"}, {"map": "cycle", "blocks": 6}, {"map": [5, 4, 3, 2, 1, 0]}):
        model = deep()
        dense = outputs(model, "bert")
        fewfold.compress(model, SharedLayers(**config, **PLAIN))
        torch.testing.assert_close(outputs(model, "bert"), dense, rtol=0, atol=0)


@pytest.mark.parametrize("norms_and_biases", ["private", "shared"])
@pytest.mark.parametrize("config", [{"map": "unshared"}, {"map": "cycle", "blocks": 6}, {"map": [5, 4, 3, 2, 1, 0]}])
def test_a_block_a_layer_has_the_gradients_of_the_layers(config, norms_and_biases):
    """Bit by bit."""
    model, plain = deep(), deep()
    fewfold.compress(model, SharedLayers(norms_and_biases=norms_and_biases, **config, **PLAIN))
    for one in (model, plain):
        one(**inputs("bert")).last_hidden_state.square().sum().backward()
    kept = {name: parameter.grad for name, parameter in model.named_parameters() if "fewfold_stores" not in name}
    found = {name: grad for name, grad in kept.items() if grad is not None}
    stores = stores_of(model)
    for record in structure_of(model).targets:
        parts = dict(stores[record.store].named_parameters())
        for part, parameter in parts.items():
            found[f"{record.module}.{part.rpartition('.')[2]}"] = parameter.grad
    wanted = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    assert set(found) == set(wanted)
    assert len(wanted) > 6 * 16
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [PLAIN, {"weighting": "none"}, {**PLAIN, "norms_and_biases": "shared"}])
@pytest.mark.parametrize(
    "config",
    [
        {"map": "all"},
        {"map": "sequence", "blocks": 2},
        {"map": "albert", "blocks": 4},
        {"map": "cycle", "blocks": 2},
        {"map": "cycle_rev", "blocks": 2},
        {"map": "pairs"},
        {"map": "sandwich"},
        {"map": [0, 1, 0, 2, 1, 0]},
    ],
)
def test_equal_layers_share_without_loss(config, settings):
    model = deep()
    for layer in model.encoder.layer[1:]:
        layer.load_state_dict(model.encoder.layer[0].state_dict())
    dense = outputs(model, "bert")
    fewfold.compress(model, SharedLayers(**config, **settings))
    assert len({layer.output.dense.store for layer in model.encoder.layer}) < 6
    torch.testing.assert_close(outputs(model, "bert"), dense, rtol=1e-5, atol=1e-5)


def test_the_count_is_blocks_and_what_is_private():
    model = deep()
    before, dense = unique_parameters(model), sum(w.size for w in weights_of(model).values())
    for config, blocks in (("all", 1), ("pairs", 3), ("sandwich", 3)):
        twin = deep()
        fewfold.compress(twin, SharedLayers(map=config, **PLAIN))
        assert unique_parameters(twin) == before - dense + dense * blocks // 6
    small = deep()
    fewfold.compress(small, SharedLayers(map="all", norms_and_biases="shared", **PLAIN))
    layer = sum(parameter.numel() for parameter in deep().encoder.layer[0].parameters())
    assert unique_parameters(small) == before - 5 * layer
    summary = fewfold.summary(small)
    assert summary.dense_parameters == before
    assert summary.parameters == before - 5 * layer


@pytest.mark.parametrize("init", ["first", "stepwise", "mean", "anchored"])
def test_where_blocks_begin(init):
    model = deep()
    dense = weights_of(model)
    fewfold.compress(model, SharedLayers(map="cycle", blocks=2, init=init, align=False, **PLAIN))
    for record, module in modules_of(model):
        layer = int(record.name.split(".")[2])
        members = [name for name in (record.name.replace(f".{layer}.", f".{i}.") for i in range(layer % 2, 6, 2))]
        if init == "mean":
            expected = np.mean([dense[name] for name in members], 0)
        elif init == "anchored":  # at layers 0 and 5, which make up two thirds
            parts = [4, 1, 1] if layer % 2 == 0 else [1, 1, 4]
            expected = np.average([dense[name] for name in members], 0, parts)
        else:
            start = layer % 2 if init == "first" else (0, 5)[layer % 2]
            expected = dense[record.name.replace(f".{layer}.", f".{start}.")]
        np.testing.assert_allclose(module.assembled_weight().detach().numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("init", ["weighted", "anchored"])
def test_the_weighted_mean_is_the_closed_form(init):
    model, batches = deep(), texts()
    dense, seen = weights_of(model), moments(model, batches)
    fewfold.compress(
        model, SharedLayers(map="pairs", align=False, delta_rank=0, init=init), calibration=batches, pieces=False,
        cache=False, sequential=False,
    )  # fmt: skip
    checked = 0
    for record, module in modules_of(model):
        layer = int(record.name.split(".")[2])
        pair = [record.name.replace(f".{layer}.", f".{i}.") for i in (layer // 2 * 2, layer // 2 * 2 + 1)]
        covariances = [seen[name][1] for name in pair]
        pull = 10 * np.mean([np.trace(c) / len(c) for c in covariances]) * np.eye(len(covariances[0]))
        parts = [1, 1] if init == "weighted" else [1, 2] if "layer.5" in pair[1] else [2, 1]  # at layers 0, 2 and 5
        damped = [(c + pull) * part for c, part in zip(covariances, parts, strict=True)]
        best = np.linalg.solve(sum(damped), sum(c @ dense[name].T for name, c in zip(pair, damped, strict=True))).T
        found = module.assembled_weight().detach().double().numpy()

        def error(weight, pair=pair, covariances=covariances):
            gaps = [(dense[name] - weight, c) for name, c in zip(pair, covariances, strict=True)]
            return sum(float(np.trace(gap @ c @ gap.T)) for gap, c in gaps)

        mean = np.mean([dense[name] for name in pair], 0)
        np.testing.assert_allclose(found, best, atol=1e-5)
        assert init != "weighted" or error(found) < error(mean)
        # the bias keeps the mean output
        dense_bias = deep().get_submodule(record.module).bias.detach().double().numpy()
        np.testing.assert_allclose(
            module.bias.detach().double().numpy() + found @ seen[record.name][0],
            dense_bias + dense[record.name] @ seen[record.name][0],
            atol=1e-4,
        )
        checked += 1
    assert checked == 36


@pytest.mark.parametrize("name", ["bert", "llama_lm", "neox"])
def test_permuted_layers_are_found_again(name):
    """Layers that differ by an order of neurons and heads only are one block: aligned sharing loses nothing."""
    model = deep(name, 3)
    layers = model.get_submodule({"bert": "encoder.layer", "llama_lm": "model.layers", "neox": "layers"}[name])
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    dense = outputs(model, name)
    from fewfold.methods.shared_layers.align import _bundles
    from fewfold.methods.shared_layers.turns import random_turns, turned

    targets = [t for whole in find_targets(model) if whole.kind == "linear" and not whole.head
               for t in split_fused(model, whole)]  # fmt: skip
    bundles = [bundle for (_, layer, _), bundle in _bundles(model, targets, False).items() if layer == 1]
    assert {bundle.kind for bundle in bundles} == {"neurons", "heads"}
    held = []
    for bundle in bundles:
        context = turned(model, bundle, random_turns(bundle, bundle.kind))
        context.__enter__()
        held.append(context)
    torch.testing.assert_close(outputs(model, name), dense, rtol=1e-4, atol=1e-5)
    unaligned = copy.deepcopy(model)
    fewfold.compress(model, SharedLayers(map="all", align=True, **PLAIN))
    fewfold.compress(unaligned, SharedLayers(map="all", align=False, **PLAIN))
    torch.testing.assert_close(outputs(model, name), dense, rtol=1e-4, atol=2e-5)
    assert float((outputs(unaligned, name) - dense).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("name", "kinds"), [("bloom_lm", {"neurons"}), ("t5", {"neurons"}), ("gpt2", {"neurons", "heads"})]
)
def test_heads_with_positions_of_their_own_keep_their_order(name, kinds):
    from fewfold.methods.shared_layers.align import _bundles
    from fewfold.methods.shared_layers.turns import changes_nothing

    model = make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    targets = [t for whole in find_targets(model) if whole.kind == "linear" and not whole.head
               for t in split_fused(model, whole)]  # fmt: skip
    found = {
        bundle.kind
        for (_, layer, path), bundle in _bundles(model, targets, False).items()
        if layer == 0 and "EncDec" not in path and changes_nothing(model, bundle, bundle.kind, inputs(name))
    }
    assert found == kinds
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "kinds"), [("llama_lm", {"heads", "values"}), ("bert", {"heads", "values", "queries"})]
)
def test_rotary_positions_are_seen_in_half_precision_too(name, kinds, dtype):
    """Rotated queries of a small fresh Llama change its outputs by less than half precision rounds them by."""
    from fewfold.methods.shared_layers.align import _bundles
    from fewfold.methods.shared_layers.turns import changes_nothing

    model = make(name).to(dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    targets = [target for target in find_targets(model) if target.kind == "linear" and not target.head]
    bundles = [b for (_, layer, _), b in _bundles(model, targets, False).items() if layer == 1]
    assert {bundle.kind for bundle in bundles} == {"neurons", "heads"}
    for bundle in bundles:
        tried = {"neurons"} if bundle.kind == "neurons" else {"heads", "values", "queries"}
        found = {kind for kind in tried if changes_nothing(model, bundle, kind, inputs(name))}
        assert found == (tried & kinds if bundle.kind == "heads" else tried)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rotated_heads_are_found_again():
    model = deep("bert", 3)
    for layer in model.encoder.layer[1:]:
        layer.load_state_dict(model.encoder.layer[0].state_dict())
    dense = outputs(model, "bert")
    from fewfold.methods.shared_layers.align import _bundles
    from fewfold.methods.shared_layers.turns import random_turns, turned

    targets = [target for target in find_targets(model) if target.kind == "linear" and not target.head]
    bundles = [b for (_, layer, _), b in _bundles(model, targets, False).items() if layer == 2 and b.kind == "heads"]
    (heads,) = bundles
    with (
        turned(model, heads, random_turns(heads, "values")),
        turned(model, heads, random_turns(heads, "queries")),
    ):
        torch.testing.assert_close(outputs(model, "bert"), dense, rtol=1e-4, atol=1e-5)
        twin = copy.deepcopy(model)
    fewfold.compress(twin, SharedLayers(map="all", align="rotate", **PLAIN))
    found = outputs(twin, "bert")
    torch.testing.assert_close(found, dense, rtol=1e-4, atol=2e-5)


def left_by_the_mean(model, align, part, **settings):
    """What the mean leaves of the weights of a part, in float64: turns keep the norms of single layers."""
    small = copy.deepcopy(model)
    settings = {"map": "all", "init": "mean", "norms_and_biases": "shared", **settings}
    fewfold.compress(small, SharedLayers(parts=part, align=align, **settings, **PLAIN))
    left, stores, dense = 0.0, stores_of(small), weights_of(model)
    targets = {t.name: t for whole in find_targets(model) for t in split_fused(model, whole)}
    for record in structure_of(small).targets:
        store = stores[record.store]
        left += float((dense[record.name] ** 2).sum() - store.matrix.weight.detach().double().square().sum())
        if store.shift is not None:
            bias = read_bias(model, targets[record.name])
            left += float(bias.double().square().sum() - store.shift.bias.detach().double().square().sum())
    return left


@pytest.mark.parametrize("align", ["permute", "rotate"])
def test_alignment_never_leaves_more_of_layers_whose_first_is_unlike_the_others(align):
    torch.manual_seed(0)
    config = tf.BertConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=VOCAB
    )
    model = tf.BertModel(config).eval()
    second = model.encoder.layer[1]
    for layer in model.encoder.layer[2:]:
        for own, its in zip(layer.parameters(), second.parameters(), strict=True):
            own.data.copy_(its + 0.3 * its.std(unbiased=False) * torch.randn_like(its))
    for part in ("attention", "ffn"):
        assert left_by_the_mean(model, align, part) < 0.999 * left_by_the_mean(model, "none", part)


@pytest.mark.parametrize("align", ["permute", "rotate"])
@pytest.mark.parametrize(("name", "layers"), [("bert", 3), ("bert", 4), ("llama_lm", 2), ("llama_lm", 3), ("neox", 2)])
def test_alignment_never_leaves_more_of_the_weights(name, layers, align):
    for seed in range(12 if layers == 2 else 4):
        model = deep(name, layers, seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if seed % 2 and any(part in key for part in ("q_proj", "k_proj", "query.", "key.")):
                    parameter.mul_(10)  # heads whose queries and keys may not be rotated lie where these match
        for part in ("attention", "ffn"):
            found, unturned = (left_by_the_mean(model, how, part) for how in (align, "none"))
            assert found <= unturned * (1 + 1e-6)


@pytest.mark.parametrize("config", [{"map": "cycle", "blocks": 3}, {"map": "cycle_rev", "blocks": 3}, {"map": "pairs"}])
def test_full_differences_give_a_model_back_whose_layers_bear_different_turns(config):
    """Every fourth layer of SmolLM3 has no rotary positions: its queries may be rotated, those of others may not."""
    described = tf.SmolLM3Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = randomized(lambda: tf.SmolLM3ForCausalLM(described))
    dense = outputs(model, "llama_lm")
    fewfold.compress(model, SharedLayers(weighting="none", delta_rank=64, **config))
    torch.testing.assert_close(outputs(model, "llama_lm"), dense, rtol=1e-4, atol=1e-4)


def test_a_block_that_begins_with_another_blocks_layer_takes_its_order():
    model = deep(layers=6)
    layers = model.encoder.layer
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    dense = outputs(model, "bert")
    from fewfold.methods.shared_layers.align import _bundles
    from fewfold.methods.shared_layers.turns import Turn, Turns, turned

    targets = [target for target in find_targets(model) if target.kind == "linear" and not target.head]
    with ExitStack() as held:
        for bundle in _bundles(model, targets, False).values():
            if bundle.kind == "neurons":
                order = Turn(torch.randperm(24))
                turns = {r: Turns(columns=order) if r == "ffn_out" else Turns(rows=order) for r in bundle.members}
                held.enter_context(turned(model, bundle, turns))
        small = copy.deepcopy(model)
    fewfold.compress(small, SharedLayers(map="cycle", blocks=3, init="stepwise", align="permute", **PLAIN))
    torch.testing.assert_close(outputs(small, "bert"), dense, rtol=1e-4, atol=2e-5)


def test_differences_are_the_alternating_fit():
    model, batches = deep(), texts()
    dense = weights_of(model)
    errors = []
    for rank in (0, 2, 4, 8, 16):
        twin = deep()
        fewfold.compress(twin, SharedLayers(map="all", align=False, weighting="none", delta_rank=rank))
        found = weights_of(fewfold.unshare(twin))
        errors.append(sum(((dense[name] - found[name]) ** 2).sum() for name in dense))
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-9 * errors[0]
    # no sweeps: the mean, and the truncated SVD of what is left
    fewfold.compress(model, SharedLayers(map="all", align=False, weighting="none", delta_rank=3, sweeps=0, init="mean"))
    for record, module in modules_of(model):
        layer = record.name.split(".")[2]
        mean = np.mean([dense[record.name.replace(f".{layer}.", f".{i}.")] for i in range(6)], 0)
        left, sizes, right = np.linalg.svd(dense[record.name] - mean)
        expected = mean + (left[:, :3] * sizes[:3]) @ right[:3]
        np.testing.assert_allclose(module.assembled_weight().detach().numpy(), expected, atol=2e-6)
    del batches


@pytest.mark.parametrize(("stored", "share"), [("fp32", 3), ("int8", 6), ("int4", 8)])
def test_a_budget_spends_ranks_where_they_gain_most(stored, share):
    model, batches = deep(layers=6), texts()
    dense = sum(weight.size for weight in weights_of(model).values())
    config = SharedLayers(map="all", multiple_of=1, stored_dtype=stored, group_size=8)
    fewfold.compress(
        model, config, budget=f"bytes=1/{share} of linears", calibration=batches, pieces=False, cache=False
    )
    stored_bytes = sum(row.bytes for row in fewfold.summary(model).rows)
    assert 0.8 * dense * 4 / share < stored_bytes <= dense * 4 / share
    ranks = [record.settings["rank"] for record in structure_of(model).targets]
    assert len(set(ranks)) > 1


def test_without_a_budget_sharing_is_strict():
    model = deep()
    fewfold.compress(model, SharedLayers(map="all", weighting="none"))
    assert {record.settings["rank"] for record in structure_of(model).targets} == {0}


def test_macs_cannot_be_saved():
    with pytest.raises(BudgetError, match="cannot be reached: the smallest sizes"):
        fewfold.compress(deep(), SharedLayers(weighting="none"), budget="macs=1/2 of linears")
    model = deep()
    fewfold.compress(model, SharedLayers(**PLAIN))
    text = str(fewfold.summary(model))
    assert "36 weights run from 18 blocks" in text
    assert "multiply-accumulates, activations, caches and latency stay" in text


def test_parts_by_maps_of_their_own():
    model = deep()
    whole = sum(weight.size for weight in weights_of(model).values())
    fewfold.compress(
        model,
        [
            SharedLayers(map="all", parts="qk", **PLAIN),
            SharedLayers(map="pairs", parts=["vo", "ffn_in"], **PLAIN),
            SharedLayers(map="unshared", parts="ffn_out", **PLAIN),
        ],
    )
    sizes = {"q": 1, "k": 1, "v": 3, "o": 3, "ffn_in": 3, "ffn_out": 6}
    one = {"ffn_in": 384, "ffn_out": 384}
    expected = sum(count * one.get(role, 256) for role, count in sizes.items())
    assert sum(row.parameters for row in fewfold.summary(model).rows) == expected
    assert sum(row.dense for row in fewfold.summary(model).rows) == whole


def test_parts_of_one_fused_projection_by_maps_of_their_own():
    model = make("gpt2_lm")
    fewfold.compress(
        model, [SharedLayers(map="all", parts="qk", **PLAIN), SharedLayers(map="unshared", parts="vo", **PLAIN)]
    )
    names = {record.name: record.store for record in structure_of(model).targets}
    assert names["transformer.h.0.attn.c_attn:q"] == names["transformer.h.1.attn.c_attn:q"]
    assert names["transformer.h.0.attn.c_attn:v"] != names["transformer.h.1.attn.c_attn:v"]


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("bert", {"q", "k", "v", "o", "ffn_in", "ffn_out"}),
        ("gpt2", {"q", "k", "v", "o", "ffn_in", "ffn_out"}),
        ("distilbert", {"q", "k", "v", "o", "ffn_in", "ffn_out"}),
        ("llama", {"q", "k", "v", "o", "ffn_in", "ffn_out"}),
        ("t5_gated", {"q", "k", "v", "o", "ffn_in", "ffn_out"}),
        ("bart", {"q", "k", "v", "o", "ffn_in", "ffn_out"}),
        ("bloom_lm", {"q", "k", "v", "o", "ffn_in", "ffn_out"}),
        ("vit", {"q", "k", "v", "o", "ffn_in", "ffn_out"}),
    ],
)
def test_roles(name, roles):
    model = make(name)
    found = [role_of(t) for whole in find_targets(model) if whole.kind == "linear" and not whole.head
             for t in split_fused(model, whole)]  # fmt: skip
    assert set(found) == roles
    assert found.count("q") == found.count("o")


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"map": "sequence", "blocks": 4}, RecipeError, r"encoder.layer has 6 layers here; .*make 3 blocks, not 4"),
        ({"map": "cycle_rev", "blocks": 4}, RecipeError, r"encoder.layer has 6 layers here; .*too few"),
        ({"map": [0, 1]}, RecipeError, r"names the blocks of 2 layers"),
        ({"across_stacks": True}, RecipeError, r"lie in one stack, encoder.layer"),
        ({"targets": "pooler.dense"}, TargetError, r"parts='all'\): none of the 1 chosen weights, pooler.dense"),
        ({"targets": "embeddings"}, TargetError, r"none of the 1 chosen weights"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_model_stays(config, error, message):
    model = deep()
    dense = outputs(model, "bert")
    with pytest.raises(error, match=message):
        fewfold.compress(model, SharedLayers(**config, **PLAIN))
    torch.testing.assert_close(outputs(model, "bert"), dense, rtol=0, atol=0)
    assert structure_of(model) is None


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="it names one or several of all, attention"):
        SharedLayers(parts="everything")
    with pytest.raises(ValueError, match="'norms' beside them"):
        SharedLayers(parts="norms")


@pytest.mark.parametrize("align", ["none", "permute", "rotate"])
def test_what_is_turned_together_is_shared_together(align):
    """A budget may not leave a query as it was where the keys of its heads are turned."""
    model, batches = deep(), texts()
    with torch.no_grad():
        for (
            layer
        ) in model.encoder.layer:  # keys and the maps out of neurons gain nothing by differences, all else a lot
            layer.attention.self.key.weight.copy_(model.encoder.layer[0].attention.self.key.weight)
            layer.output.dense.weight.copy_(model.encoder.layer[0].output.dense.weight)
    dense, errors = outputs(model, "bert"), []
    for share in ("1/3", "3/4"):
        small = copy.deepcopy(model)
        fewfold.compress(
            small, SharedLayers(map="all", align=align), budget=f"bytes={share} of linears", calibration=batches,
            pieces=False, cache=False,
        )  # fmt: skip
        errors.append(float((outputs(small, "bert") - dense).norm() / dense.norm()))
        kinds = [type(small.get_submodule(target.module)) for target in find_targets(model) if target.layer is not None]
    assert (torch.nn.Linear in kinds) == (align == "none")  # without alignment a weight may stay
    assert errors[1] < 0.9 * errors[0]
