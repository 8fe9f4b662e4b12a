"""What modules keep between calls, while other threads switch the model's mode."""

import pytest
import torch
from tiny_models import make
from torch import nn

import fewfold
from fewfold import LowRank, SharedBasis, SharedFactors, SharedLayers, SubvectorCodes, Tucker, set_form

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
