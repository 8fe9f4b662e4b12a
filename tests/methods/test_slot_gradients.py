"""Gradients of what slices share: every use of a stored tensor counts, each with its own part."""

import pytest
import torch
import transformers as tf

import fewfold
from fewfold import SharedFactors, TensorTrain, Tucker
from fewfold.assembled import AssembledLinear
from fewfold.store import stores_of

CONFIGS = {
    "shared factors": SharedFactors(rank=(12, 10)),
    "shared factors, banks apart": SharedFactors(rank=(12, 10), apart=True),
    "tucker": Tucker(rank=(12, 10), bank=5),
    "tensor train": TensorTrain(rank=6),
    "tensor train, three cores, a bank": TensorTrain(rank=6, bank=5, cores=3),
}
IDS = torch.arange(3, 12)[None]


def bert():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    return tf.BertModel(config, add_pooling_layer=False).eval().double()


def loss_of(model):
    return (model(IDS).last_hidden_state * torch.linspace(-1, 1, 16, dtype=torch.float64)).square().sum()


def maps_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, AssembledLinear)}


@pytest.mark.parametrize("form", ["chained", "folded", "rebuilt"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_the_sums_over_all_slots(name, form):
    """By the chain rule from the plain twin: dL/dW of every map, through the weight that its tensors make."""
    model = fewfold.compress(bert(), CONFIGS[name], fit=False)
    fewfold.set_form(model, form)
    twin = bert()
    state = {key: tensor for key, tensor in model.state_dict().items() if tensor.numel()}
    twin.load_state_dict(state, strict=False)
    maps = {twin.get_submodule(key).weight: module.assembled_weight() for key, module in maps_of(model).items()}
    with torch.no_grad():
        for dense, weight in maps.items():
            dense.copy_(weight)
    loss_of(twin).backward()
    stored = [parameter for store in stores_of(model).values() for parameter in store.parameters()]
    expected = torch.autograd.grad(sum((dense.grad * weight).sum() for dense, weight in maps.items()), stored)
    found = torch.autograd.grad(loss_of(model), stored)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_map_reaches_every_tensor_that_it_is_made_of(name):
    model = fewfold.compress(bert(), CONFIGS[name], fit=False)
    reached = torch.zeros(0)
    for store in stores_of(model).values():
        for parameter in store.parameters():
            seen = torch.zeros_like(parameter)
            for module in maps_of(model).values():
                (grad,) = torch.autograd.grad(module.assembled_weight().square().sum(), parameter, allow_unused=True)
                seen += 0 if grad is None else grad.abs()
            reached = torch.cat([reached, seen.flatten().float()])
    assert bool((reached > 0).all())
