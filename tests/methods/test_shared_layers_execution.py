"""Running, training and copying shared layers: everything is per executed layer but the block itself."""

import copy

import pytest
import torch
import transformers as tf
from layer_models import PLAIN, deep, modules_of, weights_of
from tiny_models import VOCAB, inputs, make, outputs
from torch import nn

import fewfold
from fewfold import SharedLayers
from fewfold.checkpoint.config import structure_of
from fewfold.measure.parameters import stored_bytes
from fewfold.methods.shared_layers.modules import SharedLinear
from fewfold.store import stores_of


def shared(name="bert", layers=4, **values):
    model = deep(name, layers)
    return fewfold.compress(model, SharedLayers(**{"map": "cycle", "blocks": 2, **PLAIN, **values}))


@pytest.mark.parametrize("name", ["gpt2_lm", "llama_lm"])
@pytest.mark.parametrize("config", [{"map": "all"}, {"map": "all", "delta_rank": 2, "norms_and_biases": "shared"}])
def test_cached_decoding_equals_a_full_pass(name, config):
    model = shared(name, 2, **{"blocks": None, **config})
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
        cache, steps = None, []
        for position in range(ids.shape[1]):
            result = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            steps.append(result.logits)
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=1e-4, atol=1e-5)
    assert cache.get_seq_length(0) == cache.get_seq_length(1) == ids.shape[1]
    assert len(cache.layers) == 2


@pytest.mark.parametrize("norms_and_biases", ["private", "shared"])
def test_the_gradient_of_a_block_is_the_sum_over_its_uses(norms_and_biases):
    model = shared(norms_and_biases=norms_and_biases).double()
    plain = fewfold.unshare(copy.deepcopy(model))
    for one in (model, plain):
        one(**inputs("bert")).last_hidden_state.square().sum().backward()
    compared = 0
    for name, store in stores_of(model).items():
        users = [record.module for record in structure_of(model).targets if record.store == name]
        for leaf, parameter in store.named_parameters():
            kind = leaf.rpartition(".")[2]
            expected = sum(plain.get_submodule(user).get_parameter(kind).grad for user in users)
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-12)
            compared += len(users)
    layer = list(plain.encoder.layer[0].parameters())
    assert compared == 4 * (len(layer) if norms_and_biases == "shared" else 6)


@pytest.mark.parametrize("name", ["bert", "gpt2_lm"])
def test_gradient_checkpointing_gives_equal_gradients(name):
    model = shared(name, 2, map="all", blocks=None, delta_rank=2).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for one in (model, twin):
        values = one(**inputs(name), **({"use_cache": False} if name == "gpt2_lm" else {}))
        first = next(value for value in values.values() if isinstance(value, torch.Tensor))
        first.square().sum().backward()
    for (key, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-6, msg=key)


def test_hooks_and_inputs_are_per_layer():
    model, seen = shared(), []
    for layer in model.encoder.layer:
        layer.attention.self.query.register_forward_hook(lambda m, args, out: seen.append((m.name, args[0].clone())))
    outputs(model, "bert")
    assert [name.split(".")[2] for name, _ in seen] == ["0", "1", "2", "3"]
    assert not torch.equal(seen[0][1], seen[2][1])
    assert model.encoder.layer[0].attention.self.query.store is model.encoder.layer[2].attention.self.query.store


def test_a_copied_layer_has_a_block_of_its_own():
    model = shared()
    dense = outputs(model, "bert")
    layer = copy.deepcopy(model.encoder.layer[0])
    with torch.no_grad():
        layer.attention.self.query.store.matrix.weight.zero_()
    torch.testing.assert_close(outputs(model, "bert"), dense, rtol=0, atol=0)
    assert not float(layer.attention.self.query.assembled_weight().abs().max())
    twin = copy.deepcopy(model)
    a, b = (twin.encoder.layer[i].attention.self.query.store for i in (0, 2))
    assert a is b
    assert a is not model.encoder.layer[0].attention.self.query.store


@pytest.mark.parametrize("norms_and_biases", ["private", "shared"])
@pytest.mark.parametrize("rank", [0, 2])
def test_unshared_layers_are_plain_and_their_own(norms_and_biases, rank):
    model = deep("bert", 4)
    names = [name for name, _ in model.named_parameters()]
    kinds = [type(module) for module in model.modules()]
    fewfold.compress(
        model,
        [
            SharedLayers(map="all", norms_and_biases=norms_and_biases, **{**PLAIN, "delta_rank": rank}),
            fewfold.Dense(targets="embeddings"),
        ],
    )
    expected = outputs(model, "bert")
    fewfold.unshare(model)
    assert [record.method for record in structure_of(model).targets] == ["dense"]
    assert not stores_of(model)
    torch.testing.assert_close(outputs(model, "bert"), expected, rtol=1e-5, atol=2e-6)
    fewfold.densify(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert [type(module) for module in model.modules()] == kinds
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(set(pointers)) == len(pointers)
    with pytest.raises(fewfold.TargetError, match="nothing to unshare"):
        fewfold.unshare(model)


def test_the_file_holds_each_block_once(tmp_path):
    sizes = {}
    for config in ({"map": "unshared"}, {"map": "cycle", "blocks": 2}, {"map": "all"}):
        model = deep("bert", 4)
        linears = sum(weight.size for weight in weights_of(model).values()) * 4
        fewfold.compress(model, SharedLayers(**config, norms_and_biases="shared", **PLAIN))
        folder = tmp_path / config["map"]
        model.save_pretrained(folder)
        sizes[config["map"]] = stored_bytes(model)
        again = type(model).from_pretrained(folder)
        torch.testing.assert_close(outputs(again, "bert"), outputs(model, "bert"), rtol=0, atol=1e-6)
        weights = {module.store.matrix.weight.data_ptr() for _, module in modules_of(again)
                   if isinstance(module, SharedLinear)}  # fmt: skip
        assert len(weights) == 6 * {"unshared": 4, "cycle": 2, "all": 1}[config["map"]]
    layer = sum(parameter.numel() for parameter in deep("bert", 4).encoder.layer[0].parameters()) * 4
    assert sizes["unshared"] - sizes["cycle"] == 2 * layer
    assert sizes["cycle"] - sizes["all"] == layer
    assert linears < 4 * layer


def test_differences_in_a_dtype_of_their_own(tmp_path):
    model = deep("bert", 4)
    fewfold.compress(
        model, SharedLayers(map="all", stored_dtype="int8", difference_dtype="fp16", weighting="none", delta_rank=2)
    )
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    state = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for key, value in state.items() if key.endswith(("down.weight", "up.weight"))} == {
        torch.float16
    }
    assert sum(key.endswith("matrix.codes") for key in state) == 6
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again, "bert"), outputs(model, "bert"), rtol=0, atol=1e-6)


def test_an_adapter_on_a_block_reaches_all_its_layers_and_one_on_a_difference_its_own():
    peft = pytest.importorskip("peft")
    model = shared(map="all", blocks=None, delta_rank=2)
    plain = outputs(model, "bert")
    weight = model.encoder.layer[0].attention.self.query.assembled_weight().detach().clone()
    name = model.encoder.layer[0].attention.self.query.store.name
    config = {"r": 2, "lora_alpha": 8, "init_lora_weights": False, "lora_dropout": 0.0}
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=f".*{name}.matrix", **config)).eval()
    leaf = model.encoder.layer[0].attention.self.query.store.matrix
    change = 4 * leaf.lora_B["default"].weight @ leaf.lora_A["default"].weight
    for layer in model.encoder.layer:
        assert layer.attention.self.query.store.matrix is leaf
        states = torch.randn(3, 16)
        query = layer.attention.self.query
        expected = states @ query.assembled_weight().t() + query.bias
        torch.testing.assert_close(query(states), expected, rtol=1e-4, atol=1e-5)
    first = model.encoder.layer[0].attention.self.query
    torch.testing.assert_close(first.assembled_weight(), weight + change, rtol=1e-4, atol=1e-5)
    with_adapter = outputs(adapted, "bert")
    assert float((with_adapter - plain).abs().max()) > 1e-3
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(outputs(merged, "bert"), with_adapter, rtol=1e-4, atol=1e-5)
    own = peft.get_peft_model(
        merged, peft.LoraConfig(target_modules=r".*layer\.0\.attention\.self\.query\.down", **config)
    ).eval()
    touched = [key for key, _ in own.named_parameters() if "lora_" in key]
    assert touched
    assert all("layer.0.attention.self.query.down" in key for key in touched)


def test_from_scratch_layers_train_together():
    model = deep("bert_mlm", 4)
    names = dict(model.named_modules())
    twins = [
        fewfold.compress(deep("bert_mlm", 4), SharedLayers(map="all", norms_and_biases="shared"), fit=False, seed=seed)
        for seed in (0, 0, 1)
    ]
    first, same, other = (twin.bert.encoder.layer[0].intermediate.dense.store.matrix.weight.detach() for twin in twins)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert 0.5 < float(first.std()) * (3 * 16) ** 0.5 < 1.5
    norm = twins[0].bert.encoder.layer[3].output.LayerNorm
    assert torch.equal(norm.store.vectors.weight.detach(), torch.ones(16))
    assert isinstance(names["bert.encoder.layer.3.output.LayerNorm"], nn.LayerNorm)
    model, values = twins[0], inputs("bert_mlm")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = model(**values, labels=values["input_ids"]).loss
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert len({layer.output.dense.store for layer in model.bert.encoder.layer}) == 1


def test_differences_from_scratch_begin_at_nothing():
    model = fewfold.compress(deep("bert", 4), SharedLayers(map="all", delta_rank=2), fit=False)
    block = model.encoder.layer[0].output.dense.store.matrix.weight
    for layer in model.encoder.layer:
        torch.testing.assert_close(layer.output.dense.assembled_weight(), block)
    assert make("bert").config.num_hidden_layers == 2


@pytest.mark.parametrize(("name", "fresh"), [("GemmaForCausalLM", 0.0), ("LlamaForCausalLM", 1.0)])
def test_norms_from_scratch_are_those_that_the_model_draws(name, fresh):
    """Gemma's norms multiply by ``1 + w``."""
    config = {
        "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    }  # fmt: skip
    kind = getattr(tf, name)
    model = kind(kind.config_class(**config)).eval()
    dense = kind(kind.config_class(**config)).model.layers[0].input_layernorm
    with torch.no_grad():
        for layer in model.model.layers:  # as if trained
            layer.input_layernorm.weight.add_(3.0)
    fewfold.compress(model, SharedLayers(map="all", norms_and_biases="shared"), fit=False)
    norm, hidden = model.model.layers[1].input_layernorm, torch.randn(3, 16)
    assert torch.equal(norm.store.vectors.weight.detach(), torch.full((16,), fresh))
    torch.testing.assert_close(norm(hidden).square().mean(-1).sqrt(), dense(hidden).square().mean(-1).sqrt())


def test_norms_that_no_model_draws_begin_as_they_do_themselves():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, hidden_states):
            return self.norm(hidden_states + self.attention(hidden_states))

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Layer(), Layer()])

        def forward(self, hidden_states):
            for layer in self.layers:
                hidden_states = layer(hidden_states)
            return hidden_states

    model = Body()
    nn.init.constant_(model.layers[0].norm.weight, 5.0)
    nn.init.constant_(model.layers[0].norm.bias, 5.0)
    fewfold.compress(model, SharedLayers(targets="layers.*", map="all", norms_and_biases="shared"), fit=False)
    vectors = model.layers[1].norm.store.vectors
    assert torch.equal(vectors.weight.detach(), torch.ones(4))
    assert torch.equal(vectors.bias.detach(), torch.zeros(4))
