"""ShareBERT: sizes, an independent forward pass in float64, heads, saving, plain models, the published names."""

import copy

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import nn

import fewfold
from fewfold.errors import CheckpointError, RecipeError, TargetError
from fewfold.measure.parameters import unique_parameters
from fewfold.methods.embedding_sharing.store import CarvingStore
from fewfold.models import (
    ShareBertConfig,
    ShareBertForMaskedLM,
    ShareBertForQuestionAnswering,
    ShareBertForSequenceClassification,
    ShareBertForTokenClassification,
    ShareBertModel,
    load_reference_state,
    materialize,
)
from fewfold.models.sharebert import reference_config
from fewfold.models.sharebert.configuration import ROLES

VOCAB, FACTOR, HIDDEN, INNER, LAYERS, HEADS = 401, 6, 32, 48, 2, 4
SIZES = {
    "vocab_size": VOCAB, "factor_size": FACTOR, "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": 12,
}  # fmt: skip


def config(**values):
    return ShareBertConfig(**{**SIZES, **values})


def random_model(kind=ShareBertModel, **values):
    """Every parameter random, so that each one matters."""
    model = kind(config(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def batch():
    ids = torch.randint(1, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def erf(x):
    return torch.erf(torch.from_numpy(x)).numpy()


def naive(state, ids, mask, pre=True, power=2 / 3):
    """The published forward pass in numpy, from the published names: the whole table is expanded, then cut."""
    s = {name: value.double().numpy() for name, value in state.items()}

    def norm(x, name, eps=1e-5):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * s[f"{name}.weight"] + s[f"{name}.bias"]

    table = s["embeddings.word_embeddings.weight"]
    x = norm(table[ids], "embeddings.pre_factor_norm")
    x = x @ s["embeddings.factor_linear.weight"].T + s["embeddings.factor_linear.bias"]
    x = norm(x, "embeddings.pos_factor_norm") + s["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + s["embeddings.token_type_embeddings.weight"][0]
    whole = table @ s["embeddings.factor_linear_all.weight"].T + s["embeddings.factor_linear_all.bias"]
    g, d = -(-HIDDEN * HIDDEN // VOCAB), -(-HIDDEN * INNER // VOCAB)

    def cut(start, end, rows, columns):
        return whole[:, HIDDEN - end : HIDDEN - start].reshape(-1)[: rows * columns].reshape(rows, columns)

    wq, wk, wv = (cut(k * g, (k + 1) * g, HIDDEN, HIDDEN) for k in range(3))
    w_in, w_out = cut(3 * g, 3 * g + d, HIDDEN, INNER), cut(3 * g + d, 3 * g + 2 * d, INNER, HIDDEN)
    wo = cut(3 * g + 2 * d, 4 * g + 2 * d, HIDDEN, HIDDEN)
    wp = cut(4 * g + 2 * d, 5 * g + 2 * d, HIDDEN, HIDDEN)
    for layer in range(LAYERS):
        p = f"encoder.layer.{layer}"
        y = norm(x, f"{p}.PreAttentionLayerNorm") if pre else x
        heads = []
        for weight, role in ((wq, "query"), (wk, "key"), (wv, "value")):
            z = y @ weight + s[f"{p}.block.self.{role}_bias"]
            heads.append(z.reshape(*z.shape[:2], HEADS, -1).transpose(0, 2, 1, 3))
        q, k, v = heads
        scores = q @ k.transpose(0, 1, 3, 2) / (HIDDEN // HEADS) ** power + (1 - mask[:, None, None]) * -10000.0
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = (scores / scores.sum(-1, keepdims=True)) @ v
        context = context.transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + context @ wo + s[f"{p}.block.output.bias"]
        if not pre:
            x = norm(x, f"{p}.PreAttentionLayerNorm")
        y = norm(x, f"{p}.PostAttentionLayerNorm") if pre else x
        y = y @ w_in + s[f"{p}.intermediate.bias"]
        y = 0.5 * y * (1 + erf(y / np.sqrt(2)))
        x = x + y @ w_out + s[f"{p}.output.bias"]
        if not pre:
            x = norm(x, f"{p}.PostAttentionLayerNorm")
    if pre:
        x = norm(x, "encoder.FinalLayerNorm")
    return x, x[:, 0] @ wp + s["pooler.bias"]


def published_state(seed=0, final=True):
    """Random tensors by the published names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (VOCAB, FACTOR),
        "embeddings.factor_linear.weight": (HIDDEN, FACTOR), "embeddings.factor_linear.bias": (HIDDEN,),
        "embeddings.factor_linear_all.weight": (HIDDEN, FACTOR), "embeddings.factor_linear_all.bias": (HIDDEN,),
        "embeddings.pre_factor_norm.weight": (FACTOR,), "embeddings.pre_factor_norm.bias": (FACTOR,),
        "embeddings.pos_factor_norm.weight": (HIDDEN,), "embeddings.pos_factor_norm.bias": (HIDDEN,),
        "embeddings.position_embeddings.weight": (12, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN), "pooler.bias": (HIDDEN,),
    }  # fmt: skip
    for layer in range(LAYERS):
        for name in ("PreAttentionLayerNorm", "PostAttentionLayerNorm"):
            shapes.update({f"encoder.layer.{layer}.{name}.{kind}": (HIDDEN,) for kind in ("weight", "bias")})
        for name in ("block.self.query_bias", "block.self.key_bias", "block.self.value_bias", "block.output.bias"):
            shapes[f"encoder.layer.{layer}.{name}"] = (HIDDEN,)
        shapes[f"encoder.layer.{layer}.intermediate.bias"] = (INNER,)
        shapes[f"encoder.layer.{layer}.output.bias"] = (HIDDEN,)
    if final:
        shapes.update({f"encoder.FinalLayerNorm.{kind}": (HIDDEN,) for kind in ("weight", "bias")})
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "reference", "packed", "long"),
    [
        ("small", 4_983_040, 4_878_808, 5_769_472),
        ("base", 13_847_296, 13_536_216, 14_633_728),
        ("large", 27_008_512, 26_387_160, 27_794_944),
    ],
)
def test_published_counts(name, reference, packed, long):
    for layout, positions, count in (("reference", 512, long), ("reference", 128, reference), ("packed", 128, packed)):
        with torch.device("meta"):
            model = ShareBertModel(ShareBertConfig.preset(name, layout=layout, max_position_embeddings=positions))
        assert sum(parameter.numel() for parameter in model.parameters()) == count
        assert len(list(model.parameters())) == len({id(parameter) for parameter in model.parameters()})
    v, f, h, i = 30528, {"small": 128, "base": 384, "large": 768}[name], 2048, 4096
    n = model.config.num_hidden_layers
    assert reference == v * f + 2 * (f * h + h) + 130 * h + 2 * f + 2 * h + n * (9 * h + i) + 3 * h


def test_published_columns_and_head():
    slots = reference_config("small").slots()
    places = {name: (slot.offset, slot.end) for name, slot in slots.items()}
    assert places == {
        "query": (1910, 2048), "key": (1772, 1910), "value": (1634, 1772), "intermediate": (1359, 1634),
        "output": (1084, 1359), "attention_output": (946, 1084), "pooler": (808, 946),
    }  # fmt: skip
    with torch.device("meta"):
        model = ShareBertForMaskedLM(reference_config("small"))
    assert sum(parameter.numel() for parameter in model.predictions.parameters()) == 66_752_320


@pytest.mark.parametrize("layout", ["reference", "packed"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_published_weights_give_the_published_outputs(layout, norm_position):
    state = published_state(final=norm_position == "pre")
    model = ShareBertModel(config(layout=layout, norm_position=norm_position)).eval().double()
    named = {f"bert.{name}": tensor for name, tensor in state.items()}
    left = load_reference_state(model, {**named, "cls.x": torch.ones(1)})
    assert left == ["cls.x"]
    values = batch()
    found = model(**values)
    states, pooled = naive(state, values["input_ids"].numpy(), values["attention_mask"].numpy(), norm_position == "pre")
    np.testing.assert_allclose(found.last_hidden_state.detach().numpy(), states, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.pooler_output.detach().numpy(), pooled, rtol=1e-9, atol=1e-9)
    eager = model(**values, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(eager.last_hidden_state, found.last_hidden_state)
    assert len(eager.hidden_states) == LAYERS + 1
    assert eager.hidden_states[-1] is eager.last_hidden_state
    torch.testing.assert_close(eager.attentions[0].sum(-1), torch.ones(2, HEADS, 7, dtype=torch.float64))
    assert float(eager.attentions[0][0, :, :, -3:].abs().max()) == 0


def test_states_that_do_not_fit():
    state = published_state()
    model = ShareBertModel(config())
    with pytest.raises(CheckpointError, match=r"no tensor encoder\.layer\.1\.output\.bias"):
        load_reference_state(model, {k: v for k, v in state.items() if k != "encoder.layer.1.output.bias"})
    with pytest.raises(CheckpointError, match=r"position_embeddings\.weight has shape \(12, 32\)"):
        load_reference_state(ShareBertModel(config(max_position_embeddings=16)), state)
    with pytest.raises(CheckpointError, match="share='all'"):
        load_reference_state(ShareBertModel(config(share="none")), state)


def test_the_published_head_is_loaded():
    state = published_state()
    model = ShareBertForMaskedLM(config(mlm_head="untied", layout="reference"))
    head = {
        "cls.predictions.bias": torch.randn(VOCAB), "cls.predictions.transform.dense_act.weight": torch.randn(32, 32),
        "cls.predictions.transform.dense_act.bias": torch.randn(32),
        "cls.predictions.decoder.weight": torch.randn(VOCAB, 32),
        "cls.predictions.transform.LayerNorm.weight": torch.randn(32),
        "cls.predictions.transform.LayerNorm.bias": torch.randn(32),
    }  # fmt: skip
    assert load_reference_state(model, {**{f"bert.{k}": v for k, v in state.items()}, **head}) == ["bert.pooler.bias"]
    torch.testing.assert_close(model.predictions.decoder.weight, head["cls.predictions.decoder.weight"])
    assert model.predictions.decoder.weight is not model.sharebert.store.table.weight


@pytest.mark.parametrize(("layout", "columns"), [("reference", 32), ("packed", 5 * 3 + 2 * 4)])
def test_every_packed_column_learns(layout, columns):
    model = ShareBertModel(config(layout=layout))
    output = model(**batch())
    (output.last_hidden_state.sum() + (output.pooler_output**2).sum()).backward()
    silent = int((model.store.expansion.weight.grad.abs().sum(1) == 0).sum())
    assert silent == columns - 23
    assert model.store.expansion.weight.shape[0] == columns


@pytest.mark.parametrize(("share", "groups"), [("all", 1), (2, 2), ("none", 4)])
def test_distinct_slots(share, groups):
    model = ShareBertModel(config(num_hidden_layers=4, share=share))
    assert len(model.store.slots) == 6 * groups + 1
    same = model.layers[0].intermediate.slot == model.layers[1].intermediate.slot
    assert same == (share != "none")
    assert (model.layers[0].output.slot == model.layers[3].output.slot) == (share == "all")
    columns = groups * (4 * 3 + 2 * 4) + 3
    assert model.store.expansion.weight.shape == (columns, FACTOR)


def test_fresh_biases():
    model = ShareBertModel(config(bias_init="normal", num_hidden_layers=3))
    first, last = model.layers[0].intermediate.bias, model.layers[2].intermediate.bias
    torch.testing.assert_close(first, last, rtol=0, atol=0)
    assert not torch.equal(model.layers[0].attention.query.bias, model.layers[0].attention.key.bias)
    assert 0.7 < float(first.std()) < 1.3
    zeros = ShareBertModel(config())
    assert all(float(layer.output.bias.abs().max()) == 0 for layer in zeros.layers)
    assert abs(float(zeros.store.table.weight[1:].std()) / (3 * HIDDEN * FACTOR) ** -0.25 - 1) < 0.1
    assert abs(float(zeros.store("query").std()) * (3 * HIDDEN) ** 0.5 - 1) < 0.3
    assert reference_config("small").initializer_range == 0.02


def test_scaled_weights_begin_as_wide_as_a_dense_models(tmp_path):
    plain, scaled = (
        ShareBertModel(config(factor_size=64, carving_init=name, initializer_range=0.02)).eval()
        for name in ("plain", "scaled")
    )
    for name, slot in scaled.store.slots.items():
        expected = 0.02**2 * 64**0.5
        assert abs(float(plain.store(name).std()) / expected - 1) < 0.2
        assert abs(float(scaled.store(name).std()) * (3 * slot.shape[0]) ** 0.5 - 1) < 0.2
    assert abs(float(scaled.store.table.weight[1:].std()) / 0.02 - 1) < 0.1
    scaled.save_pretrained(tmp_path)
    again = ShareBertModel.from_pretrained(tmp_path)
    assert torch.equal(again.store.expansion.weight, scaled.store.expansion.weight)


def test_the_factored_head_multiplies_by_the_table():
    model = random_model(ShareBertForMaskedLM)
    head = model.predictions
    assert head.decoder.weight is model.sharebert.store.table.weight
    states = model.sharebert(**batch()).last_hidden_state.detach()
    short = nn.functional.layer_norm(
        nn.functional.gelu(states @ head.dense.weight.t() + head.dense.bias),
        (FACTOR,),
        head.norm.weight,
        head.norm.bias,
    )
    expected = short @ model.sharebert.store.table.weight.t() + head.decoder.bias
    torch.testing.assert_close(model(**batch()).logits, expected, rtol=1e-5, atol=1e-5)


def test_sparse_prediction_gives_the_same_loss():
    model = random_model(ShareBertForMaskedLM)
    labels = batch()["input_ids"].clone()
    labels[:, ::2] = -100
    whole = model(**batch(), labels=labels)
    model.config.sparse_prediction = True
    sparse = model(**batch(), labels=labels)
    torch.testing.assert_close(sparse.loss, whole.loss)
    torch.testing.assert_close(sparse.logits, whole.logits[labels != -100])
    whole.loss.backward()


def test_losses_of_the_heads():
    labels = torch.tensor([2, 0])
    model = random_model(ShareBertForSequenceClassification, num_labels=3)
    found = model(**batch(), labels=labels)
    torch.testing.assert_close(found.loss, -found.logits.log_softmax(-1)[[0, 1], labels].mean())
    model = random_model(ShareBertForSequenceClassification, num_labels=1)
    found = model(**batch(), labels=torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(found.loss, ((found.logits[:, 0] - torch.tensor([0.5, 2.0])) ** 2).mean())
    model = random_model(ShareBertForSequenceClassification, num_labels=3)
    several = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    found = model(**batch(), labels=several)
    chance = torch.where(several == 1, found.logits.sigmoid(), 1 - found.logits.sigmoid())
    torch.testing.assert_close(found.loss, -chance.log().mean())
    model = random_model(ShareBertForTokenClassification, num_labels=3)
    tags = torch.full((2, 7), -100)
    tags[0, 2], tags[1, 5] = 1, 2
    found = model(**batch(), labels=tags)
    chosen = found.logits.log_softmax(-1)[[0, 1], [2, 5], [1, 2]]
    torch.testing.assert_close(found.loss, -chosen.mean())
    model = random_model(ShareBertForQuestionAnswering)
    found = model(**batch(), start_positions=torch.tensor([1, 3]), end_positions=torch.tensor([4, 99]))
    first = found.start_logits.log_softmax(-1)[[0, 1], [1, 3]]
    torch.testing.assert_close(found.loss, -(first.mean() + found.end_logits.log_softmax(-1)[0, 4]) / 2)
    assert isinstance(model(**batch(), return_dict=False), tuple)


BODY_NAMES = {
    "store.table.weight", "embeddings.positions.weight", "embeddings.types.weight", "pooler.dense.bias",
    *(f"{name}.{kind}" for name in ("embeddings.factor", "embeddings.factor_norm", "embeddings.norm", "norm")
      for kind in ("weight", "bias")),
    *(f"layers.{layer}.{name}_norm.{kind}" for layer in range(LAYERS) for name in ("attention", "output")
      for kind in ("weight", "bias")),
    *(f"layers.{layer}.{name}.bias" for layer in range(LAYERS)
      for name in (*(f"attention.{one}" for one in ("query", "key", "value", "output")), "intermediate", "output")),
}  # fmt: skip
PLAIN_NAMES = {  # in the place of the expansion; layers share what the first one holds
    f"{name}.weight"
    for name in (
        "layers.0.attention.query", "layers.0.attention.key", "layers.0.attention.value", "layers.0.attention.output",
        "layers.0.intermediate", "layers.0.output", "pooler.dense",
    )
}  # fmt: skip
HEAD_NAMES = {
    ShareBertModel: set(),
    ShareBertForMaskedLM: {
        "predictions.dense.weight", "predictions.dense.bias", "predictions.norm.weight", "predictions.norm.bias",
        "predictions.decoder.bias",
    },
    ShareBertForSequenceClassification: {"classifier.weight", "classifier.bias"},
    ShareBertForTokenClassification: {"classifier.weight", "classifier.bias"},
    ShareBertForQuestionAnswering: {"qa_outputs.weight", "qa_outputs.bias"},
}  # fmt: skip
AUTOS = {
    "AutoModel": ShareBertModel,
    "AutoModelForMaskedLM": ShareBertForMaskedLM,
    "AutoModelForSequenceClassification": ShareBertForSequenceClassification,
    "AutoModelForTokenClassification": ShareBertForTokenClassification,
    "AutoModelForQuestionAnswering": ShareBertForQuestionAnswering,
}


def first(model):
    with torch.no_grad():
        return model(**batch())[0]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("auto", AUTOS)
def test_saving_and_plain_models(auto, plain, tmp_path):
    model = random_model(AUTOS[auto])
    before = first(model)
    if plain:
        model = materialize(model)
        torch.testing.assert_close(first(model), before, rtol=1e-5, atol=1e-5)
        body = model.base_model
        assert body.layers[0].output.weight is body.layers[1].output.weight
        assert body.store.expansion is None
        with pytest.raises(TargetError, match="materialized already"):
            materialize(model)
    model.save_pretrained(tmp_path)
    again, info = getattr(tf, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(fewfold.load(tmp_path)) is AUTOS[auto]
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(first(again), first(model), rtol=0, atol=0)
    assert unique_parameters(again) == unique_parameters(model)
    body = BODY_NAMES | (PLAIN_NAMES if plain else {"store.expansion.weight", "store.expansion.bias"})
    if AUTOS[auto] not in (ShareBertModel, ShareBertForSequenceClassification):
        body = {name for name in body if not name.startswith("pooler.")}
    prefix = "" if model.base_model is model else "sharebert."
    assert set(load_file(tmp_path / "model.safetensors")) == {prefix + name for name in body} | HEAD_NAMES[AUTOS[auto]]
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size < 4 * unique_parameters(model) + 12000
    if plain:
        assert again.base_model.layers[0].output.weight is again.base_model.layers[1].output.weight


def test_a_body_serves_under_a_head(tmp_path):
    model = random_model(ShareBertForMaskedLM)
    model.save_pretrained(tmp_path)
    body = tf.AutoModel.from_pretrained(tmp_path).eval()
    expected = model.sharebert(**batch()).last_hidden_state
    torch.testing.assert_close(body(**batch()).last_hidden_state, expected, rtol=0, atol=0)


def test_the_vocabulary_grows_and_is_cut_only_when_plain(tmp_path):
    model = random_model(ShareBertForMaskedLM)
    before = first(model)
    model.resize_token_embeddings(VOCAB + 6)
    assert model.predictions.decoder.weight is model.sharebert.store.table.weight
    torch.testing.assert_close(first(model)[..., :VOCAB], before, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert (again.config.vocab_size, again.config.carved_rows) == (VOCAB + 6, VOCAB)
    torch.testing.assert_close(first(again)[..., :VOCAB], before, rtol=0, atol=0)
    with pytest.raises(TargetError, match=f"first {VOCAB} rows"):
        model.resize_token_embeddings(VOCAB - 1)
    plain = materialize(model)
    ids = batch()["input_ids"] % 100
    expected = model(ids).logits
    plain.resize_token_embeddings(100)
    torch.testing.assert_close(plain(ids).logits, expected[..., :100], rtol=1e-5, atol=1e-5)


def test_a_plain_model_whose_layers_share_no_weight_can_be_compressed(tmp_path):
    shared = materialize(random_model())
    with pytest.raises(TargetError, match=r"layers\.0\.intermediate cannot be replaced: it shares its weight with lay"):
        fewfold.compress(shared, fewfold.LowRank(rank=8, targets=["*.intermediate", "*.output"]))
    model = materialize(random_model(share="none"))
    layer = model.layers[0]
    weight = layer.intermediate.weight.detach().double().numpy()
    fewfold.compress(model, fewfold.LowRank(rank=8, targets=["*.intermediate", "*.output"]))
    left, kept, right = np.linalg.svd(weight, full_matrices=False)
    wanted = (left[:, :8] * kept[:8]) @ right[:8]
    np.testing.assert_allclose(layer.intermediate.assembled_weight().detach().numpy(), wanted, atol=1e-5)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(first(ShareBertModel.from_pretrained(tmp_path).eval()), first(model), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [ShareBertModel, ShareBertForMaskedLM])
def test_a_plain_model_is_edited_by_itself(kind):
    model = random_model(kind)
    before = first(model)
    plain = materialize(model)
    with torch.no_grad():
        for name in plain.base_model.maps():
            plain.base_model.get_submodule(name).weight.mul_(2)
    torch.testing.assert_close(first(model), before, rtol=0, atol=0)
    assert float((first(plain) - before).abs().max()) > 0.01


def test_a_text_without_a_token_stays_finite():
    model, found = random_model(), []
    values = batch()
    values["attention_mask"][1] = 0
    for asked in (False, True):
        model.zero_grad()
        output = model(**values, output_attentions=asked)
        output.last_hidden_state.square().sum().backward()
        found.append([output.last_hidden_state, *(p.grad for p in model.parameters() if p.grad is not None)])
    for fused, plain in zip(*found, strict=True):
        assert bool(plain.isfinite().all())
        torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-4)
    assert not output.attentions[0][1].any()
    torch.testing.assert_close(output.attentions[0][0].sum(-1), torch.ones(HEADS, 7))


def test_carved_rows_of_the_default_size_are_recorded():
    saved = ShareBertConfig(vocab_size=30600, carved_rows=30528).to_diff_dict()
    assert ShareBertConfig(**saved).carved_rows == 30528


def test_training_with_checkpointing_and_int8_on_top(tmp_path, monkeypatch):
    carves, carve = [], CarvingStore._carve
    monkeypatch.setattr(CarvingStore, "_carve", lambda self, *given: carves.append(given[0]) or carve(self, *given))
    model = random_model(ShareBertForMaskedLM, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model.train().double()
    found = []
    for on in (False, True):
        model.zero_grad()
        carves.clear()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch(), labels=batch()["input_ids"]).loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        assert sorted(carves) == sorted(ROLES)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-12, msg=name)
    model.eval().float()
    before = first(model)
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    after = first(model)
    assert float((after - before).abs().max()) > 1e-3
    small = fewfold.compress(copy.deepcopy(model), fewfold.Dense(targets="all", stored_dtype="int8"))
    error = float((first(small) - after).abs().max() / after.abs().max())
    assert 0 < error < 0.1
    small.save_pretrained(tmp_path)
    again = tf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(first(again), first(small), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layout": "reference", "share": "none"}, r"take \d+ columns of 401 numbers, and there are hidden_size=32"),
        ({"norm_position": "middle"}, "norm_position='middle'"),
        ({"share": 0}, "share=0"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads=5"),
        ({"carved_rows": 402}, "carved_rows=402"),
    ],
)
def test_configs_that_cannot_work(values, words):
    with pytest.raises(RecipeError, match=words):
        config(**values).slots()


def test_unknown_presets_and_long_texts():
    with pytest.raises(RecipeError, match="tiny, small, base, large"):
        ShareBertConfig.preset("huge")
    with pytest.raises(ValueError, match="a text of 13 tokens is too long: max_position_embeddings is 12"):
        random_model()(torch.ones(1, 13, dtype=torch.long))
