import functools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from tiny_models import MODELS, make

from fewfold.methods.slices.layout import (
    Cut,
    cut_slices,
    group_targets,
    is_attention,
    join_slices,
    kind_of,
    orientations,
    oriented,
)
from fewfold.surgery.roles import family_of, model_width, writes_residual
from fewfold.surgery.targets import Target, find_targets, read_weight, select, split_fused

_TINY = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}

META = {
    "bert": lambda: tf.BertModel(tf.BertConfig()),
    "vit": lambda: tf.ViTModel(tf.ViTConfig()),
    "gpt2": lambda: tf.GPT2Model(tf.GPT2Config()),
    "llama": lambda: tf.LlamaModel(
        tf.LlamaConfig(
            vocab_size=61, hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=8,
            num_key_value_heads=2, bos_token_id=0, eos_token_id=1,
        )
    ),
    "t5": lambda: tf.T5Model(tf.T5Config(decoder_start_token_id=0)),
    "bart": lambda: tf.BartModel(tf.BartConfig()),
    "bert_cross": lambda: tf.BertModel(tf.BertConfig(**_TINY, is_decoder=True, add_cross_attention=True)),
    "gpt2_cross": lambda: tf.GPT2Model(
        tf.GPT2Config(
            vocab_size=61, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1, add_cross_attention=True
        )
    ),
    "distilbert": lambda: tf.DistilBertModel(tf.DistilBertConfig(vocab_size=61, dim=16, n_layers=1, n_heads=2)),
    "modernbert": lambda: tf.ModernBertModel(
        tf.ModernBertConfig(**_TINY, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    ),
    "phi": lambda: tf.PhiModel(tf.PhiConfig(**{**_TINY, "bos_token_id": 1, "eos_token_id": 2})),
    "gptj": lambda: tf.GPTJModel(
        tf.GPTJConfig(vocab_size=61, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, bos_token_id=0, eos_token_id=1)
    ),
    "albert": lambda: tf.AlbertModel(tf.AlbertConfig(**{**_TINY, "bos_token_id": 1, "eos_token_id": 2})),
    "neox": lambda: tf.GPTNeoXModel(tf.GPTNeoXConfig(**{**_TINY, "bos_token_id": 1, "eos_token_id": 2})),
    "bloom": lambda: tf.BloomModel(
        tf.BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    ),
}  # fmt: skip


def body(model, fused="split"):
    targets = select(model, find_targets(model), "linears")
    return targets if fused == "whole" else [part for target in targets for part in split_fused(model, target)]


@functools.cache
def meta_targets(name, fused="split"):
    with torch.device("meta"):
        return tuple(body(META[name](), fused))


def linear(name, rows, columns):
    return Target(name, name, "linear", rows, columns)


def all_cuts(target):
    """Every cut of a target: whole and in 2 … 4 tiles of either side, either side on rows."""
    for rows in ("in", "out"):
        yield Cut(rows=rows)
        for tiled, size in (("in", target.columns), ("out", target.rows)):
            yield from (Cut(tiles, tiled, rows) for tiles in (2, 3, 4) if size % tiles == 0)


def naive_slices(weight, cut):
    """Slices by index: the tile, then which of its sides lies on rows."""
    outputs, inputs = weight.shape
    tall, wide = (
        outputs // cut.tiles if cut.tiled == "out" else outputs,
        inputs // cut.tiles if cut.tiled == "in" else inputs,
    )
    slices = []
    for number in range(cut.tiles):
        top, start = (number * tall if cut.tiled == "out" else 0), (number * wide if cut.tiled == "in" else 0)
        if cut.rows == "out":
            slices.append([[weight[top + a, start + b] for b in range(wide)] for a in range(tall)])
        else:
            slices.append([[weight[top + a, start + b] for a in range(tall)] for b in range(wide)])
    return np.array(slices)


@pytest.mark.parametrize("rows", ["in", "out"])
@pytest.mark.parametrize(("tiles", "tiled"), [(1, None), (2, "in"), (4, "in"), (2, "out"), (3, "out"), (6, "out")])
def test_slices_hold_the_entries_that_they_should(tiles, tiled, rows):
    weight, cut = torch.arange(6 * 8.0).reshape(6, 8), Cut(tiles, tiled, rows)
    slices = cut_slices(weight, cut)
    np.testing.assert_array_equal(torch.stack(slices).numpy(), naive_slices(weight.numpy(), cut))
    assert tuple(slices[0].shape) == cut.shape(linear("x", 6, 8))
    assert all(part.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr() for part in slices)
    assert torch.equal(join_slices(torch.stack(slices), cut), weight)


@pytest.mark.parametrize("name", MODELS)
def test_joining_what_was_cut_is_the_identity(name):
    model = make(name)
    whole = find_targets(model)
    targets = [t for t in [*whole, *(part for t in whole for part in split_fused(model, t))] if t.kind == "linear"]
    assert len(targets) >= 10
    for target in targets:
        weight = read_weight(model, target)
        for cut in all_cuts(target):
            slices = cut_slices(weight, cut)
            assert len(slices) == cut.tiles
            assert all(tuple(part.shape) == cut.shape(target) for part in slices)
            assert torch.equal(join_slices(torch.stack(slices), cut), weight)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tile", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_groups_hold_every_target_once_with_slices_of_one_shape(name, tile, apart):
    model = make(name)
    targets = body(model)
    groups = group_targets(targets, model_width(targets), tile=tile, apart=apart, depth_groups=2)
    assert Counter(t.name for g in groups for t in g.targets) == Counter(t.name for t in targets)
    assert len({group.name for group in groups}) == len(groups)
    for group in groups:
        layouts = [group.cuts, *(oriented(group, rows) for rows in orientations(group).values())]
        for cuts in layouts:
            number = 0
            for target in group.targets:
                weight = read_weight(model, target)
                slices = cut_slices(weight, cuts[target.name])
                assert {tuple(part.shape) for part in slices} == {group.shape}
                assert torch.equal(join_slices(torch.stack(slices), cuts[target.name]), weight)
                assert group.first_slices()[target.name] == number
                number += len(slices)
            assert group.count == number
    for group in groups:
        places = [targets.index(target) for target in group.targets]
        assert places == sorted(places)


ENDS = {  # of each weight in a layer, in order: end of the name, and the published cut
    "bert": [
        ("attention.self.query", Cut(rows="in")),
        ("attention.self.key", Cut(rows="in")),
        ("attention.self.value", Cut(rows="in")),
        ("attention.output.dense", Cut(rows="in")),
        ("intermediate.dense", Cut(4, "out", "out")),
        ("output.dense", Cut(4, "in", "in")),
    ],
    "vit": [
        ("q_proj", Cut(rows="in")),
        ("k_proj", Cut(rows="in")),
        ("v_proj", Cut(rows="in")),
        ("o_proj", Cut(rows="in")),
        ("fc1", Cut(4, "out", "out")),
        ("fc2", Cut(4, "in", "in")),
    ],
    "gpt2": [
        ("attn.c_attn:q", Cut(rows="in")),
        ("attn.c_attn:k", Cut(rows="in")),
        ("attn.c_attn:v", Cut(rows="in")),
        ("attn.c_proj", Cut(rows="in")),
        ("mlp.c_fc", Cut(4, "out", "out")),
        ("mlp.c_proj", Cut(4, "in", "in")),
    ],
}


@pytest.mark.parametrize("name", ENDS)
def test_the_published_stack_of_a_base_model(name):
    """12 slices of 768×768 a layer, layer by layer: q, k, v, o, four of the first and four of the second weight."""
    targets = meta_targets(name)
    assert model_width(targets) == 768
    (group,) = group_targets(targets, 768)
    assert group.shape == (768, 768)
    assert group.count == 144
    assert group.name == "768x768"
    assert len(group.targets) == 72
    number = 0
    for place, target in enumerate(group.targets):
        layer, within = divmod(place, 6)
        end, cut = ENDS[name][within]
        assert target.name.endswith(end)
        assert target.layer == layer
        assert group.cuts[target.name] == cut
        assert group.first_slices()[target.name] == number == 12 * layer + (0, 1, 2, 3, 4, 8)[within]
        number += cut.tiles
    published = orientations(group)["published"]
    assert oriented(group, published) == dict(group.cuts)
    assert sorted(published.values()) == ["in", "in", "in", "out"]  # qkv, o, the second weight; the first


@pytest.mark.parametrize("name", ENDS)
def test_residual_orientation_puts_the_residual_stream_on_columns(name):
    (group,) = group_targets(meta_targets(name), 768)
    cuts = oriented(group, orientations(group)["residual"])
    for target in group.targets:
        stream = "out" if target.name.endswith(("o_proj", "output.dense", "c_proj", "fc2")) else "in"
        assert cuts[target.name].rows != stream
        assert replace(cuts[target.name], rows="in") == replace(group.cuts[target.name], rows="in")


@pytest.mark.parametrize("name", ENDS)
def test_without_tiles_the_weights_of_the_feed_forward_block_are_a_group(name):
    square, long = group_targets(meta_targets(name), 768, tile=False)
    assert (square.shape, square.count) == ((768, 768), 48)
    assert (long.shape, long.count) == ((3072, 768), 24)
    assert {long.cuts[target.name].rows for target in long.targets if target.rows == 3072} == {"out"}
    assert {long.cuts[target.name].rows for target in long.targets if target.rows == 768} == {"in"}
    assert all(cut.tiled is None for cut in long.cuts.values())


def test_a_fused_projection_as_a_whole_falls_into_tiles():
    (group,) = group_targets(meta_targets("gpt2", "whole"), 768)
    assert group.count == 144
    fused = [target for target in group.targets if target.name.endswith("c_attn")]
    assert len(fused) == 12
    assert all(group.cuts[target.name] == Cut(3, "out", "out") for target in fused)


def test_groups_of_a_llama_go_by_shape():
    targets = meta_targets("llama")
    assert model_width(targets) == 64
    groups = group_targets(targets, 64)
    found = {group.shape: {t.name.rpartition(".")[2] for t in group.targets} for group in groups}
    assert found == {
        (64, 64): {"q_proj", "o_proj"},
        (16, 64): {"k_proj", "v_proj"},
        (172, 64): {"gate_proj", "up_proj", "down_proj"},
    }
    assert [group.count for group in groups] == [6, 6, 9]
    for group in groups[1:]:  # the residual stream, 64 wide, lies on columns
        for target in group.targets:
            stream = "out" if target.name.endswith("down_proj") else "in"
            assert group.cuts[target.name] == Cut(rows="in" if stream == "out" else "out")
        named = orientations(group)
        assert named["published"] == named["residual"]


@pytest.mark.parametrize(("name", "count", "width"), [("t5", 6 * 12 + 6 * 16, 512), ("bart", 12 * 12 + 12 * 16, 1024)])
def test_encoder_and_decoder_are_one_group(name, count, width):
    targets = meta_targets(name)
    assert model_width(targets) == width
    (group,) = group_targets(targets, width)
    assert (group.shape, group.count) == ((width, width), count)


@pytest.mark.parametrize(
    ("name", "own", "cross"),
    [
        ("t5", "decoder.block.1.layer.0.SelfAttention.{}", "decoder.block.1.layer.1.EncDecAttention.{}"),
        ("bart", "decoder.layers.1.self_attn.{}_proj", "decoder.layers.1.encoder_attn.{}_proj"),
    ],
)
def test_keys_and_values_of_the_memory_are_a_family_of_their_own(name, own, cross):
    family = {target.name: family_of(target) for target in meta_targets(name)}
    kind = {target.name: kind_of(target) for target in meta_targets(name)}
    for told in (family, kind):
        assert told[own.format("q")] == told[own.format("k")] == told[own.format("v")]
        assert told[cross.format("k")] == told[cross.format("v")]
        assert len({told[own.format("k")], told[cross.format("k")], told[cross.format("q")]}) == 3
    other = own.replace(".1.", ".0.", 1)
    assert family[own.format("q")] != family[other.format("q")]
    assert kind[own.format("q")] == kind[other.format("q")]


@pytest.mark.parametrize(
    ("name", "fused", "query", "memory"),
    [
        ("bert_cross", "split", ["query"], ["key", "value"]),
        ("gpt2_cross", "split", ["q_attn"], ["c_attn:k", "c_attn:v"]),
        ("gpt2_cross", "whole", ["q_attn"], ["c_attn"]),
    ],
)
def test_cross_attention_inside_a_decoder_only_class(name, fused, query, memory):
    cross = {t.name.rpartition(".")[2]: family_of(t) for t in meta_targets(name, fused) if "crossattention" in t.name}
    assert len({cross[piece] for piece in memory}) == 1
    assert {cross[piece] for piece in memory}.isdisjoint(cross[piece] for piece in query)
    own = {family_of(t) for t in meta_targets(name, fused) if "crossattention" not in t.name}
    assert own.isdisjoint(cross.values())


def test_families_are_those_that_read_the_same_input():
    def members(name):
        families = {}
        for target in meta_targets(name):
            families.setdefault(family_of(target), []).append(target.name.rpartition(".")[2])
        return Counter(tuple(sorted(names)) for names in families.values())

    assert members("llama") == {
        ("k_proj", "q_proj", "v_proj"): 3, ("o_proj",): 3, ("gate_proj", "up_proj"): 3, ("down_proj",): 3
    }  # fmt: skip
    assert members("gpt2") == {("c_attn:k", "c_attn:q", "c_attn:v"): 12, ("c_proj",): 24, ("c_fc",): 12}
    assert members("modernbert") == {("Wqkv",): 1, ("Wo",): 2, ("Wi",): 1}
    assert members("phi") == {("k_proj", "q_proj", "v_proj"): 1, ("dense",): 1, ("fc1",): 1, ("fc2",): 1}


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "bart", "llama"])
def test_attention_and_feed_forward_apart(name):
    targets = meta_targets(name)
    groups = group_targets(targets, model_width(targets), apart=True)
    wide = ("mlp", "intermediate", "DenseReluDense", "fc1", "fc2", ".output.dense")
    for group in groups:
        part = {not any(w in t.name for w in wide) or "attention.output" in t.name for t in group.targets}
        assert len(part) == 1
        assert group.name.endswith("attention" if part == {True} else "feed_forward")
        assert all(is_attention(target) == (part == {True}) for target in group.targets)
    assert sum(len(group.targets) for group in groups) == len(targets)
    together = group_targets(targets, model_width(targets))
    assert len(groups) == {"llama": len(together)}.get(name, 2 * len(together))


@pytest.mark.parametrize("name", ["bert", "t5"])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_depth_groups_are_runs_of_layers(name, parts):
    targets = meta_targets(name)
    groups = group_targets(targets, model_width(targets), depth_groups=parts)
    runs = [sorted({target.layer for target in group.targets}) for group in groups]
    layers = sorted({target.layer for target in targets})
    assert len(runs) == parts
    assert [layer for run in runs for layer in run] == layers
    assert max(map(len, runs)) - min(map(len, runs)) <= 1
    assert len({group.name for group in groups}) == parts


def test_two_depth_groups_halve_a_base_model():
    first, second = group_targets(meta_targets("bert"), 768, depth_groups=2)
    assert (first.count, second.count) == (72, 72)
    assert {target.layer for target in first.targets} == set(range(6))
    assert (first.name, second.name) == ("768x768_part1", "768x768_part2")
    assert second.first_slices()[second.targets[0].name] == 0


def test_the_width_is_that_of_most_sides():
    assert model_width([]) == 0
    assert model_width([linear("fc1", 48, 16)]) == 16  # of two that are as frequent, the smaller
    assert model_width([linear("a.fc1", 48, 16), linear("a.fc2", 16, 48), linear("a.o", 16, 16)]) == 16
    assert model_width([linear(f"a.{n}", 24, 16) for n in "qkv"] + [linear("a.o", 16, 24), linear("b", 24, 24)]) == 24
    assert model_width([Target("e", "e", "embedding", 9, 7), linear("q", 24, 16)]) == 16


@pytest.mark.parametrize(
    ("rows", "columns", "cut", "shape"),
    [
        (16, 16, Cut(rows="in"), (16, 16)),
        (24, 16, Cut(rows="out"), (24, 16)),
        (16, 24, Cut(rows="in"), (24, 16)),
        (8, 16, Cut(rows="out"), (8, 16)),
        (16, 8, Cut(rows="in"), (8, 16)),
        (32, 16, Cut(2, "out", "out"), (16, 16)),
        (16, 48, Cut(3, "in", "in"), (16, 16)),
        (24, 20, Cut(rows="out"), (24, 20)),
        (20, 24, Cut(rows="in"), (24, 20)),
        (24, 24, Cut(rows="in"), (24, 24)),
        (32, 24, Cut(rows="out"), (32, 24)),
    ],
)
def test_the_cut_of_each_shape_in_a_model_of_width_16(rows, columns, cut, shape):
    (group,) = group_targets([linear("layer.0.x", rows, columns)], 16)
    assert group.cuts["layer.0.x"] == cut
    assert group.shape == shape


@pytest.mark.parametrize("settings", [(2, None), (1, "in"), (0, None), (1, None, "left"), (2, "up")])
def test_cuts_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="tile"):
        Cut(*settings)


@pytest.mark.parametrize(("cut", "words"), [(Cut(4, "out"), "6 outputs.* 4"), (Cut(3, "in"), "8 inputs.* 3")])
def test_tiles_that_do_not_come_out_even_are_refused(cut, words):
    with pytest.raises(ValueError, match=words):
        cut.block(linear("x", 6, 8))


WRITERS = {  # last pieces of the names of all weights: what is added to the residual stream, and what is not
    "bert": ({"attention.output.dense", "output.dense"}, {"query", "key", "value", "intermediate.dense"}),
    "vit": ({"o_proj", "fc2"}, {"q_proj", "k_proj", "v_proj", "fc1"}),
    "gpt2": ({"attn.c_proj", "mlp.c_proj"}, {"c_attn:q", "c_attn:k", "c_attn:v", "c_fc"}),
    "llama": ({"o_proj", "down_proj"}, {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}),
    "t5": ({"o", "wo"}, {"q", "k", "v", "wi"}),
    "bart": ({"out_proj", "fc2"}, {"q_proj", "k_proj", "v_proj", "fc1"}),
    "distilbert": ({"out_lin", "lin2"}, {"q_lin", "k_lin", "v_lin", "lin1"}),
    "modernbert": ({"attn.Wo", "mlp.Wo"}, {"Wqkv", "Wi"}),
    "phi": ({"self_attn.dense", "fc2"}, {"q_proj", "k_proj", "v_proj", "fc1"}),
    "gptj": ({"out_proj", "fc_out"}, {"q_proj", "k_proj", "v_proj", "fc_in"}),
    "albert": ({"attention.dense", "ffn_output"}, {"query", "key", "value", "ffn", "embedding_hidden_mapping_in"}),
    "neox": (
        {"attention.dense", "dense_4h_to_h"},
        {"query_key_value:q", "query_key_value:k", "query_key_value:v", "dense_h_to_4h"},
    ),
    "bloom": (
        {"self_attention.dense", "dense_4h_to_h"},
        {"query_key_value:q", "query_key_value:k", "query_key_value:v", "dense_h_to_4h"},
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_writes_the_residual_stream(name):
    writers, readers = WRITERS[name]
    seen = set()
    for target in meta_targets(name):
        ends = sorted((end for end in writers | readers if f".{target.name}".endswith(f".{end}")), key=len)
        assert ends, target.name
        assert writes_residual(target) == (ends[-1] in writers), target.name
        seen.add(ends[-1])
    assert seen == writers | readers


@pytest.mark.parametrize(
    "name", ["pooler.dense", "cls.predictions.transform.dense", "solo", "xfc2", "mlp.up_proj", "w1"]
)
def test_names_that_only_look_like_writers(name):
    assert not writes_residual(linear(name, 16, 16))
