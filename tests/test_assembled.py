"""What modules keep between calls, while weights change and other threads switch the model's mode."""

import copy

import pytest
import torch
from tiny_models import make
from torch import nn
from torch.func import functional_call

import fewfold
from fewfold import LowRank, SharedBasis, SharedFactors, SharedLayers, SubvectorCodes, Tucker, set_form
from fewfold.methods.low_rank.modules import LowRankLinear

KEPT = {"_rebuilt", "_sums", "_prepared", "_counted"}
METHODS = {
    "low rank": LowRank(rank=4, weighting="none"),
    "shared factors": SharedFactors(rank=6, weighting="none"),
    "Tucker": Tucker(rank=6, bank=3, weighting="none"),
    "codes": SubvectorCodes(width=2, words=8, weighting="none"),
    "layers": SharedLayers(delta_rank=2),
    "basis": SharedBasis(rank=4, weighting="none"),
}


@pytest.mark.parametrize("form", ["auto", "chained", "folded", "rebuilt"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_may_be_forgotten_at_any_moment(method, form, monkeypatch):
    model = set_form(fewfold.compress(make("bert"), METHODS[method]), form).eval()
    ids, forgotten, put = torch.tensor([[3, 1, 4, 1, 5]]), set(), nn.Module.__setattr__
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
    model.train().eval()

    def put_and_forget(self, name, value):
        put(self, name, value)
        if name in KEPT and value is not None:
            self.__dict__[name] = None  # as eval() does in a thread that comes in between
            forgotten.add(name)

    monkeypatch.setattr(nn.Module, "__setattr__", put_and_forget)
    with torch.no_grad():
        found = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected)
    if form == "rebuilt":
        assert forgotten


def test_weights_that_are_passing_through_are_never_taken_for_each_other():
    layer = LowRankLinear(64, 64, 60, True).eval()
    layer.form, states = "rebuilt", torch.randn(3, 64)
    memory = layer.up.weight.detach().numpy().copy()
    with torch.no_grad():
        for scale in range(1, 21):  # each temporary weight is freed before the next is made, at the same address
            memory[:] = layer.up.weight.numpy() * scale
            found = functional_call(layer, {"up.weight": torch.from_numpy(memory)}, (states,))
            weight = (layer.up.weight * scale) @ layer.down.weight
            torch.testing.assert_close(found, states @ weight.T + layer.bias, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer(states), copy.deepcopy(layer)(states))


@pytest.mark.parametrize("form", ["folded", "rebuilt"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_follows_changes_of_dtype(method, form):
    model = set_form(fewfold.compress(make("bert"), METHODS[method]), form).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        before = model(input_ids=ids).last_hidden_state
        model._apply(lambda tensor: tensor.data.copy_(tensor.bfloat16()))  # rounded numbers at the same addresses
        found = model(input_ids=ids).last_hidden_state
        assert not torch.equal(found, before)
        torch.testing.assert_close(found, copy.deepcopy(model)(input_ids=ids).last_hidden_state)
