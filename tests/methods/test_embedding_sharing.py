"""compress with EmbeddingSharing: slots, refusals, operators, generation, and what stays when the vocabulary grows."""

import copy
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers as tf
from tiny_models import VOCAB, auto_class, inputs, make, outputs
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fewfold
from fewfold import EmbeddingSharing, Recipe
from fewfold.checkpoint.config import structure_of
from fewfold.errors import RecipeError, TargetError
from fewfold.measure.parameters import unique_parameters
from fewfold.methods.embedding_sharing.modules import CarvedLinear
from fewfold.methods.embedding_sharing.operators import CarvedOperator
from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.store import stores_of


def carved(name, **values):
    return fewfold.compress(make(name), EmbeddingSharing(**{"init_std": 0.4, **values}), fit=False)


def the_store(model):
    (store,) = stores_of(model).values()
    return store


def used(model):
    return {name: module.slot for name, module in model.named_modules() if isinstance(module, CarvedLinear)}


@pytest.mark.parametrize(("share", "expected"), [("all", 6), ("none", 12), (1, 12), (2, 6)])
def test_layers_share_slots(share, expected):
    model = carved("bert", share=share)
    store, slots = the_store(model), used(model)
    assert len(slots) == 12
    assert len(store.slots) == expected
    groups = {name.replace("layer.0", "layer.1") for name in slots}
    for name in groups:
        same = slots[name] == slots[name.replace("layer.1", "layer.0")]
        assert same == (expected == 6), name
    assert sorted((s.offset, s.end) for s in store.slots.values())[0][0] == 0
    ends = sorted((slot.offset, slot.end) for slot in store.slots.values())
    assert all(one[1] == other[0] for one, other in pairwise(ends))
    assert ends[-1][1] == store.expansion.out_features
    columns = 4 * -(-256 // VOCAB) + 2 * -(-384 // VOCAB)
    assert store.expansion.weight.shape == (columns * expected // 6, 16)


@pytest.mark.parametrize("vocab", [128, 60])
def test_maps_with_more_outputs_than_tokens_are_carved(vocab):
    config = tf.BertConfig(
        vocab_size=vocab, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = fewfold.compress(tf.BertForMaskedLM(config), EmbeddingSharing(), fit=False)
    assert len(used(model)) == 12
    store = the_store(model)
    assert store.expansion.out_features == 4 * -(-64 * 64 // vocab) + 2 * -(-64 * 128 // vocab)
    whole = store.table.weight.detach().double() @ store.expansion.weight.detach().double().t()
    slot = store.slots["bert.encoder.layer.*.intermediate.dense"]
    expected = whole[:, slot.offset : slot.end].reshape(-1)[: 64 * 128].view(64, 128).t()
    found = model.bert.encoder.layer[1].intermediate.dense.assembled_weight()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_recurrent_model_of_few_words_is_carved_but_for_its_head():
    config = SlimLMConfig(vocab_size=50, hidden_size=16, num_layers=2)
    model = fewfold.compress(SlimLMForCausalLM(config), EmbeddingSharing(), fit=False)
    assert set(used(model)) == {f"model.layers.{layer}.{kind}_map" for layer in (0, 1) for kind in ("input", "hidden")}
    assert type(model.lm_head) is nn.Linear


def test_heads_stay_dense_even_if_named():
    config = tf.GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=4, n_positions=8, tie_word_embeddings=False)
    model = fewfold.compress(
        tf.GPT2LMHeadModel(config), EmbeddingSharing(targets=["*wte", "lm_head", "*attn"]), fit=False
    )
    assert set(used(model)) == {"transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj"}
    assert type(model.lm_head) is nn.Linear
    with pytest.raises(RecipeError, match=r"lm_head is taken for a vocabulary head, which stays dense"):
        fewfold.compress(tf.GPT2LMHeadModel(config), EmbeddingSharing(targets=["*wte", "lm_head"]), fit=False)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}) for _ in range(3))


class Stacks(nn.Module):
    """Two stacks in a list, and layers that hold experts."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(41, 6)
        self.stacks = nn.ModuleList([Stack(), Stack()])
        experts = [nn.ModuleList(nn.ModuleDict({"up": nn.Linear(6, 9)}) for _ in range(2)) for _ in range(2)]
        self.mixed = nn.ModuleList(nn.ModuleDict({"route": nn.Linear(6, 2), "experts": one}) for one in experts)


@pytest.mark.parametrize(("share", "of"), [("all", "***"), ("none", "012"), (2, ["0+", "0+", "2+"])])
def test_layers_share_within_their_stack(share, of):
    model = fewfold.compress(Stacks(), EmbeddingSharing(share=share), fit=False)
    slots = used(model)
    for stack in (0, 1):
        for layer in range(3):
            for name in "ab":
                assert slots[f"stacks.{stack}.layers.{layer}.{name}"] == f"stacks.{stack}.layers.{of[layer]}.{name}"
            assert layer == 2 or slots[f"mixed.1.experts.{layer % 2}.up"] == f"mixed.{of[1]}.experts.{layer % 2}.up"


SLOTS = {
    "bert": ("encoder.layer.*.attention.self.query", "encoder.layer.*.output.dense"),
    "gpt2_lm": ("transformer.h.*.attn.c_attn", "transformer.h.*.mlp.c_proj"),
    "t5_lm": (
        "encoder.block.*.layer.0.SelfAttention.q", "encoder.block.*.layer.1.DenseReluDense.wo",
        "decoder.block.*.layer.1.EncDecAttention.k", "decoder.block.*.layer.2.DenseReluDense.wi",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOTS)
def test_slots_keep_the_names_that_checkpoints_hold(name):
    assert set(SLOTS[name]) <= set(the_store(carved(name)).slots)


def test_weights_out_of_the_table_itself_need_room():
    with pytest.raises(
        RecipeError, match=r"take 34 columns of 61 numbers, and .*word_embeddings, carved itself, has 16"
    ):
        carved("bert", expansion=False)
    wide = tf.BertModel(
        tf.BertConfig(vocab_size=421, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    )
    before = unique_parameters(wide)
    linears = 3 * (4 * 32 * 32 + 2 * 32 * 48)
    fewfold.compress(wide, EmbeddingSharing(expansion=False), fit=False)
    assert unique_parameters(wide) == before - linears
    store = the_store(wide)
    weight = wide.encoder.layer[2].attention.self.key.assembled_weight().detach().numpy()
    slot = store.slots["encoder.layer.*.attention.self.key"]
    table = store.table.weight.detach().numpy()
    block = table[:, slot.offset : slot.end].reshape(-1)[: 32 * 32].reshape(32, 32)
    np.testing.assert_array_equal(weight, block.T)


def test_reference_order_goes_from_the_right():
    model = tf.BertModel(
        tf.BertConfig(vocab_size=421, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    )
    fewfold.compress(model, EmbeddingSharing(order="reference", factor_size=4), fit=False)
    store = the_store(model)
    assert store.expansion.weight.shape == (32, 4)
    assert [slot.end for slot in store.slots.values()][:2] == [32, 29]


@pytest.mark.parametrize(("width", "columns", "most"), [(768, 236, 3), (512, 106, 4), (1024, 416, 2)])
def test_columns_of_a_bert_out_of_its_own_table(width, columns, most):
    def bert(layers):
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 8}
        with torch.device("meta"):
            return tf.BertModel(tf.BertConfig(vocab_size=30522, num_hidden_layers=layers, **sizes))

    for share, times in (("all", 1), ("none", most)):
        with torch.device("meta"):
            model = fewfold.compress(bert(most), EmbeddingSharing(expansion=False, share=share), fit=False)
        slots = the_store(model).slots.values()
        assert sum(slot.columns for slot in slots) == max(slot.end for slot in slots) == times * columns
    with pytest.raises(RecipeError, match=f"take {(most + 1) * columns} columns of 30522 numbers.* has {width}"):
        fewfold.compress(bert(most + 1), EmbeddingSharing(expansion=False, share="none"), fit=False)


def electra(vocab=421):
    sizes = {"embedding_size": 16, "hidden_size": 32, "intermediate_size": 48}
    return tf.ElectraModel(tf.ElectraConfig(vocab_size=vocab, num_hidden_layers=2, num_attention_heads=4, **sizes))


def test_a_table_narrower_than_the_model_is_expanded_to_the_models_width():
    model = fewfold.compress(electra(), EmbeddingSharing(order="reference"), fit=False)
    store = the_store(model)
    assert store.expansion.weight.shape == (32, 16)
    needed = 4 * -(-32 * 32 // 421) + 2 * -(-32 * 48 // 421) + -(-16 * 32 // 421)
    assert min(slot.offset for slot in store.slots.values()) == 32 - needed
    assert max(slot.end for slot in store.slots.values()) == 32


@pytest.mark.parametrize("values", [{}, {"factor_size": 8}, {"expansion": False}])
def test_carved_weights_begin_by_the_models_width_not_the_tables(values):
    model = electra(421 if values.get("expansion", True) else 2003)  # a table that is carved itself has 16 columns
    fewfold.compress(model, EmbeddingSharing(**values), fit=False)
    layers = [m.assembled_weight() for name, m in model.named_modules() if isinstance(m, CarvedLinear)]
    std = torch.cat([weight.detach().flatten() for weight in layers]).std()
    assert abs(float(std) * (3 * 32) ** 0.5 - 1) < 0.12


@pytest.mark.parametrize("share", ["all", "none"])
def test_normal_biases_are_equal_in_all_layers(share):
    model = carved("bert", bias_init="normal", share=share)
    for name, module in model.encoder.layer[0].named_modules():
        if isinstance(module, CarvedLinear):
            other = model.encoder.layer[1].get_submodule(name).bias
            torch.testing.assert_close(module.bias, other, rtol=0, atol=0)
            assert module.bias is not other
    attention = model.encoder.layer[0].attention.self
    assert not torch.equal(attention.query.bias, attention.key.bias)
    tagger = fewfold.compress(Tagger(nn.LSTM, num_layers=3), EmbeddingSharing(bias_init="normal"), fit=False)
    assert torch.equal(tagger.rnn.bias_ih_l0, tagger.rnn.bias_ih_l2)
    assert not torch.equal(tagger.rnn.bias_ih_l0, tagger.rnn.bias_hh_l0)
    assert 0.6 < float(tagger.rnn.bias_hh_l1.std()) < 1.4


def test_a_frozen_table_is_warned_of():
    model = make("bert")
    model.embeddings.word_embeddings.weight.requires_grad_(False)
    with pytest.warns(
        UserWarning, match=r"^embeddings.word_embeddings is frozen, and encoder.*freeze those weights too"
    ):
        fewfold.compress(model, EmbeddingSharing(), fit=False)
    assert all(parameter.requires_grad for parameter in the_store(model).parameters())
    for quiet in (make("bert"), make("bert").requires_grad_(False)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fewfold.compress(quiet, EmbeddingSharing(), fit=False)


def test_what_was_learned_is_not_lost_unasked(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot keep the weights of .*Pass fit=False"):
        fewfold.compress(make("bert"), EmbeddingSharing())
    make("bert").save_pretrained(tmp_path)
    model = tf.AutoModel.from_pretrained(tmp_path)
    before = outputs(model, "bert")
    with pytest.raises(RecipeError, match=r"came from .*from_scratch=True"):
        fewfold.compress(model, EmbeddingSharing(), fit=False)
    torch.testing.assert_close(outputs(model, "bert"), before, rtol=0, atol=0)
    fewfold.compress(model, EmbeddingSharing(from_scratch=True), fit=False)
    assert structure_of(model) is not None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"expansion": False, "factor_size": 4}, "factor_size and init='scaled' are for expansion=True"),
        ({"head": "factored"}, "head='factored' needs factor_size"),
        ({"share": 0}, "share=0"),
    ],
)
def test_values_that_do_not_fit_together(values, words):
    with pytest.raises(ValueError, match=words):
        EmbeddingSharing(**values)


def test_models_without_a_table_or_anything_to_carve():
    with pytest.raises(RecipeError, match="names no token table to carve"):
        fewfold.compress(make("vit"), EmbeddingSharing(), fit=False)
    with pytest.raises(RecipeError, match="nothing to carve out of them"):
        fewfold.compress(make("bert"), EmbeddingSharing(targets="embeddings"), fit=False)


def test_scaled_weights_have_the_variance_of_their_inputs():
    config = tf.BertConfig(
        vocab_size=997, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    model = fewfold.compress(tf.BertModel(config), EmbeddingSharing(factor_size=16, init="scaled"), fit=False)
    for name, inputs_ in (("attention.output.dense", 64), ("intermediate.dense", 64), ("output.dense", 256)):
        weight = model.encoder.layer[0].get_submodule(name).assembled_weight()
        assert abs(float(weight.std()) * (3 * inputs_) ** 0.5 - 1) < 0.15
    for sharing in (EmbeddingSharing(), EmbeddingSharing(factor_size=16)):
        balanced = fewfold.compress(tf.BertModel(config), sharing, fit=False)
        weight = balanced.encoder.layer[0].intermediate.dense.assembled_weight()
        assert abs(float(weight.std()) * (3 * 64) ** 0.5 - 1) < 0.15
    plain = fewfold.compress(tf.BertModel(config), EmbeddingSharing(factor_size=16, init_std=0.02), fit=False)
    weight = plain.encoder.layer[0].intermediate.dense.assembled_weight()
    assert abs(float(weight.std()) / (0.02**2 * 16**0.5) - 1) < 0.15
    biases = [m.bias for m in plain.modules() if isinstance(m, CarvedLinear)]
    assert all(float(bias.abs().max()) == 0 for bias in biases)
    normal = fewfold.compress(tf.BertModel(config), EmbeddingSharing(bias_init="normal"), fit=False)
    biases = torch.cat([m.bias for m in normal.modules() if isinstance(m, CarvedLinear)])
    assert abs(float(biases.std()) - 1) < 0.1


@pytest.mark.parametrize("head", ["rows", "factored"])
def test_tied_heads_of_a_factored_table(head, tmp_path):
    model = carved("gpt2_lm", factor_size=6, head=head)
    table = model.transformer.wte
    hidden = torch.randn(3, 16)
    rows = table.store.table.weight
    if head == "factored":
        expected = hidden @ table.down.weight.t() @ rows.t()
    else:
        expected = hidden @ table(torch.arange(VOCAB)).t()
    torch.testing.assert_close(model.lm_head(hidden), expected, rtol=1e-4, atol=1e-5)
    before = outputs(model, "gpt2_lm")
    model.save_pretrained(tmp_path / "carved")
    again = auto_class("gpt2_lm").from_pretrained(tmp_path / "carved")
    torch.testing.assert_close(outputs(again, "gpt2_lm"), before, rtol=0, atol=0)
    fewfold.densify(model)
    torch.testing.assert_close(outputs(model, "gpt2_lm"), before, rtol=1e-4, atol=1e-5)
    assert (model.lm_head.weight is model.transformer.wte.weight) == (head == "rows")
    model.save_pretrained(tmp_path / "plain")
    plain = tf.GPT2LMHeadModel.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(outputs(plain, "gpt2_lm"), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", [{}, {"factor_size": 6, "share": "none"}])
def test_generation_equals_uncached_and_carves_once(values, monkeypatch):
    model = carved("gpt2_lm", **values)
    start = inputs("gpt2_lm")["input_ids"][1:, :3]
    carves = []
    plain = type(the_store(model))._carve
    monkeypatch.setattr(
        type(the_store(model)), "_carve", lambda self, name, spent: carves.append(name) or plain(self, name, spent)
    )
    found = model.generate(start, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert len(carves) == len(the_store(model).slots)
    ids = start
    dense = fewfold.densify(copy.deepcopy(model))
    for _ in range(8):
        with torch.no_grad():
            ids = torch.cat([ids, dense(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert found.tolist() == ids.tolist()


def test_training_steps_change_eval_outputs_and_follow_the_dense_twin():
    """One step of a model whose layers own no weights, against autograd through weights cut out of the whole table."""
    model = carved("bert_mlm", share="none").double()
    values, labels = inputs("bert_mlm"), inputs("bert_mlm")["input_ids"]
    twin = fewfold.densify(copy.deepcopy(model))
    twin(**values, labels=labels).loss.backward()
    before = outputs(model, "bert_mlm")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**values, labels=labels).loss.backward()
    store = the_store(model)
    table = store.table.weight.detach()
    expected = twin.bert.embeddings.word_embeddings.weight.grad.clone()
    projection = torch.zeros_like(store.expansion.weight)
    for name, module in model.named_modules():
        if isinstance(module, CarvedLinear):
            slot = store.slots[module.slot]
            flat = torch.zeros(VOCAB * slot.columns, dtype=torch.float64)
            flat[: slot.numel] = twin.get_submodule(name).weight.grad.t().reshape(-1)
            block = flat.view(VOCAB, slot.columns)
            expected += block @ store.expansion.weight.detach()[slot.offset : slot.end]
            projection[slot.offset : slot.end] += block.t() @ table
    torch.testing.assert_close(store.table.weight.grad, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(store.expansion.weight.grad, projection, rtol=1e-6, atol=1e-9)
    optimizer.step()
    after = outputs(model, "bert_mlm")
    assert float((after - before).abs().max()) > 1e-4
    torch.testing.assert_close(outputs(fewfold.densify(copy.deepcopy(model)), "bert_mlm"), after, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_transformers(reentrant):
    model = carved("bert_mlm").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    found = []
    for on in (False, True):
        model.zero_grad()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**inputs("bert_mlm"), labels=inputs("bert_mlm")["input_ids"]).loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_vocabulary_that_grows_changes_no_weight():
    model = carved("bert_mlm")
    weights = {name: m.assembled_weight().detach() for name, m in model.named_modules() if isinstance(m, CarvedLinear)}
    model.resize_token_embeddings(VOCAB + 5)
    for name, weight in weights.items():
        torch.testing.assert_close(model.get_submodule(name).assembled_weight(), weight, rtol=0, atol=0)
    with pytest.raises(TargetError, match="60 rows would change all of them"):
        model.resize_token_embeddings(60)
    assert model.config.vocab_size == VOCAB + 5


def test_layers_keep_one_tensor_a_slot_when_made_plain():
    model = carved("gpt2_lm")
    before = outputs(model, "gpt2_lm")
    plain = fewfold.densify(copy.deepcopy(model), share=True)
    torch.testing.assert_close(outputs(plain, "gpt2_lm"), before, rtol=1e-4, atol=1e-5)
    first, second = (layer.mlp.c_fc for layer in plain.transformer.h)
    assert first.weight is second.weight
    assert first.bias is not second.bias
    apart = fewfold.densify(model)
    assert apart.transformer.h[0].mlp.c_fc.weight is not apart.transformer.h[1].mlp.c_fc.weight


class Tagger(nn.Module):
    """A table, a convolution, a recurrent layer and an untied head."""

    def __init__(self, kind, **values):
        super().__init__()
        self.embed = nn.Embedding(41, 10)
        self.conv = nn.Conv1d(10, 12, 3, padding=1)
        self.image = nn.Conv2d(1, 6, (3, 2), stride=(1, 2), groups=1, bias=False)
        self.depthwise = nn.Conv1d(12, 12, 3, padding=1, groups=12)
        self.rnn = kind(12, 10, batch_first=True, **values)
        self.out = nn.Linear(10 * (2 if self.rnn.bidirectional else 1), 41)

    def forward(self, ids, lengths=None):
        states = self.depthwise(torch.relu(self.conv(self.embed(ids).transpose(1, 2)))).transpose(1, 2)
        states = states + self.image(states[:, None]).mean()
        packed = states if lengths is None else pack_padded_sequence(states, lengths, batch_first=True)
        found, hidden = self.rnn(packed)
        found = found if lengths is None else found.data
        return self.out(found), hidden


CELLS = [
    (nn.LSTM, {"num_layers": 3}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True, "bias": False}),
    (nn.GRU, {"num_layers": 2}),
]


@pytest.mark.parametrize("share", ["all", "none"])
@pytest.mark.parametrize(("kind", "values"), CELLS, ids=["lstm", "two ways", "gru"])
def test_operators_equal_dense_ones_with_carved_weights(kind, values, share):
    model = Tagger(kind, **values)
    names = [(name, type(module)) for name, module in model.named_modules()]
    before = unique_parameters(model)
    fewfold.compress(model, EmbeddingSharing(share=share, init_std=0.3), fit=False)
    assert [type(getattr(model, name)) for name in ("conv", "image", "rnn")] == [CarvedOperator] * 3
    assert type(model.depthwise) is nn.Conv1d
    assert type(model.out) is nn.Linear
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    ids, lengths = torch.randint(0, 41, (3, 7)), [7, 5, 2]
    expected = Tagger(kind, **values)
    state = {}
    for name in ("conv", "image", "rnn"):
        operator = model.get_submodule(name)
        for key, weight in operator.weights().items():
            state[f"{name}.{key}"] = weight
        state.update({f"{name}.{key}": value for key, value in operator.named_parameters()})
    state["embed.weight"] = stores_of(model)["embedding_sharing"].table.weight
    for name in ("depthwise", "out"):
        state.update({f"{name}.{key}": value for key, value in model.get_submodule(name).named_parameters()})
    expected.load_state_dict({key: value.detach() for key, value in state.items()})
    for one, other in zip(model(ids), expected(ids), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(ids, lengths)[0], expected(ids, lengths)[0], rtol=1e-5, atol=1e-6)
    sum(value.sum() for value in model(ids)[0]).backward()
    assert float(stores_of(model)["embedding_sharing"].expansion.weight.grad.abs().sum(1).min()) > 0
    assert model.rnn.hidden_size == 10
    summary = fewfold.summary(model)
    assert summary.dense_parameters == before
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(ids)[0], expected(ids)[0], rtol=1e-5, atol=1e-6)
    fewfold.densify(twin)
    assert [(name, type(module)) for name, module in twin.named_modules()] == names
    torch.testing.assert_close(twin(ids, lengths)[0], expected(ids, lengths)[0], rtol=1e-5, atol=1e-6)
    assert unique_parameters(twin) == before
    assert set(twin.state_dict()) == set(expected.state_dict())
    twin.rnn.weight_hh_l0.data.zero_()
    assert not torch.equal(twin(ids)[0], expected(ids)[0])


@pytest.mark.parametrize("share", ["all", "none"])
@pytest.mark.parametrize(("kind", "values"), CELLS, ids=["lstm", "two ways", "gru"])
def test_gradients_of_operators_are_those_of_their_dense_weights(kind, values, share):
    model = fewfold.compress(Tagger(kind, **values), EmbeddingSharing(share=share), fit=False).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    operators = {name: model.get_submodule(name) for name in ("conv", "image", "rnn")}
    twin = fewfold.densify(copy.deepcopy(model))
    ids, lengths = torch.randint(0, 41, (3, 7)), [7, 5, 2]
    factors = torch.randn(sum(lengths), 41, dtype=torch.float64)
    for one in (model, twin):
        (one(ids, lengths)[0] * factors).sum().backward()
    store = stores_of(model)["embedding_sharing"]
    table, expansion = store.table.weight.detach(), store.expansion
    of_table, blocks = twin.embed.weight.grad.clone(), torch.zeros(41, expansion.out_features, dtype=torch.float64)
    for name, operator in operators.items():
        dense = twin.get_submodule(name)
        for key, slot in ((key, store.slots[slot]) for key, slot in operator.slots.items()):
            flat = torch.zeros(41 * slot.columns, dtype=torch.float64)
            flat[: slot.numel] = getattr(dense, key).grad.reshape(-1)
            blocks[:, slot.offset : slot.end] += flat.view(41, slot.columns)
        for key, bias in operator.named_parameters():
            torch.testing.assert_close(bias.grad, getattr(dense, key).grad, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(store.table.weight.grad, of_table + blocks @ expansion.weight.detach())
    torch.testing.assert_close(expansion.weight.grad, blocks.t() @ table)
    torch.testing.assert_close(expansion.bias.grad, blocks.sum(0))
    assert float(blocks.abs().sum(0).min()) > 0


def test_layers_of_a_recurrent_module_share_by_shape():
    model = fewfold.compress(Tagger(nn.LSTM, num_layers=3), EmbeddingSharing(), fit=False)
    slots = model.rnn.slots
    assert slots["weight_hh_l0"] == slots["weight_hh_l2"]
    assert slots["weight_ih_l1"] == slots["weight_ih_l2"] != slots["weight_ih_l0"]
    store = stores_of(model)["embedding_sharing"]
    weight = model.rnn.weights()["weight_ih_l1"].detach().numpy()
    whole = store.table.weight.detach().numpy() @ store.expansion.weight.detach().numpy().T
    slot = store.slots[slots["weight_ih_l1"]]
    numbers = [whole[k // slot.columns, slot.offset + k % slot.columns] for k in range(40 * 10)]
    np.testing.assert_allclose(weight, np.reshape(numbers, (40, 10)), atol=1e-6)


def test_projected_lstms_are_refused_by_name():
    model = Tagger(nn.LSTM)
    model.rnn = nn.LSTM(12, 10, proj_size=5, batch_first=True)
    with pytest.raises(TargetError, match="rnn cannot be replaced: its outputs are projected"):
        fewfold.compress(model, EmbeddingSharing(targets=["embed", "rnn"]), fit=False)
    fewfold.compress(model, EmbeddingSharing(), fit=False)
    assert type(model.rnn) is nn.LSTM


def test_other_methods_leave_operators_alone():
    model = Tagger(nn.LSTM)
    fewfold.compress(model, fewfold.Dense(targets="all", stored_dtype="fp32"))
    assert type(model.rnn) is nn.LSTM
    assert type(model.conv) is nn.Conv1d


def test_two_tables_serve_what_is_near_them():
    config = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    both = tf.EncoderDecoderModel(
        encoder=tf.BertModel(tf.BertConfig(**config, intermediate_size=24)),
        decoder=tf.BertLMHeadModel(
            tf.BertConfig(**config, intermediate_size=24, is_decoder=True, add_cross_attention=True)
        ),
    )
    fewfold.compress(both, EmbeddingSharing(), fit=False)
    stores = stores_of(both)
    assert sorted(stores) == ["embedding_sharing", "embedding_sharing_2"]
    assert both.encoder.encoder.layer[0].output.dense.store is both.encoder.embeddings.word_embeddings.store
    cross = both.decoder.bert.encoder.layer[1].crossattention.self.key
    assert cross.store is both.decoder.bert.embeddings.word_embeddings.store
    assert cross.store is not both.encoder.embeddings.word_embeddings.store


def test_presets_name_their_source():
    for name in ("embedding-sharing", "veps-128", "eps"):
        assert Recipe.preset(name).source
    model = fewfold.compress(make("bert"), "embedding-sharing", fit=False)
    assert len(used(model)) == 12
