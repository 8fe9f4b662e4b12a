"""Recurrent layers call a map once a step: all of its inputs count, and padding does not."""

import copy

import pytest
import torch
from torch import nn

import fewfold
from fewfold import LowRank, SubvectorCodes
from fewfold.calibration.collect import collect
from fewfold.calibration.streams import Streams
from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.surgery.targets import find_targets

LENGTHS = (9, 4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SlimLMForCausalLM(SlimLMConfig(vocab_size=40, hidden_size=8, num_layers=2)).eval()


@pytest.fixture
def batches():
    torch.manual_seed(1)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    padded = {"input_ids": torch.randint(40, (2, max(LENGTHS))), "attention_mask": mask.long()}
    return [padded, {"input_ids": torch.randint(40, (3, 5)), "attention_mask": torch.ones(3, 5, dtype=torch.long)}]


def states_before(model, batches, layer):
    """What enters the recurrent map of a layer, sentence by sentence: the states after 0 … length - 1 tokens."""
    rows = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            state = None
            for token in ids[mask.bool()]:
                rows.append(torch.zeros(8) if state is None else state[layer][0][0])
                state = model(token[None, None], state=state, use_cache=True).state
    return torch.stack(rows).double()


@torch.no_grad()
def test_all_steps_of_a_recurrent_map_are_compared(model, batches):
    other = copy.deepcopy(model)
    other.model.layers[0].input_map.weight.mul_(1.2)  # what was compressed before
    targets = [target for target in find_targets(model) if ".layers." in target.module]
    streams = Streams(model, other, ["model.layers.0", "model.layers.1"], targets, batches)
    drifts = {name: drift for stage in streams.stages() for name, drift in stage.items()}
    assert set(drifts) == {f"model.layers.{n}.{part}_map" for n in range(2) for part in ("input", "hidden")}
    for layer in range(2):
        dense, own = states_before(model, batches, layer), states_before(other, batches, layer)
        drift = drifts[f"model.layers.{layer}.hidden_map"]
        torch.testing.assert_close(drift.cross.double(), dense.t() @ own, atol=1e-5, rtol=1e-5)


def test_what_is_fitted_in_sequence_keeps_more(model, batches):
    wanted = model(**batches[0]).logits[0]
    with torch.no_grad():
        for size in (6, 7):
            low = fewfold.compress(copy.deepcopy(model), LowRank(rank=size), calibration=batches)
            assert (low(**batches[0]).logits[0] - wanted).abs().max() < wanted.abs().max()
    coded = fewfold.compress(
        copy.deepcopy(model), SubvectorCodes(targets="linears", width=4, words=16), calibration=batches
    )
    assert torch.isfinite(coded(**batches[0]).logits).all()


def test_padded_steps_of_a_recurrent_map_do_not_count(model, batches):
    targets = [target for target in find_targets(model) if target.module.endswith("0.hidden_map")]
    statistics = collect(model, targets, batches, gradients=False)
    rows = states_before(model, batches, 0)
    found = statistics.inputs["model.layers.0.hidden_map"]
    assert found.count == len(rows)
    torch.testing.assert_close(found.product.double(), rows.t() @ rows, atol=1e-5, rtol=1e-5)


class Sometimes(nn.Module):
    """A map that only some batches reach, as an expert."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 4, bias=False)

    def forward(self, hidden_states):
        return self.map(hidden_states) if hidden_states.shape[1] > 2 else hidden_states


class Stack(nn.Module):
    """Two such blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Sometimes(), Sometimes()])

    def forward(self, hidden_states):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


def test_batches_that_do_not_reach_a_map_are_left_out():
    torch.manual_seed(0)
    model = Stack()
    short, long = torch.randn(3, 2, 4), torch.randn(2, 5, 4)
    batches = [{"hidden_states": short}, {"hidden_states": long}]
    streams = Streams(model, copy.deepcopy(model), ["blocks.0", "blocks.1"], find_targets(model), batches)
    drifts = {name: drift for stage in streams.stages() for name, drift in stage.items()}
    rows = long.flatten(0, 1).double()
    assert drifts["blocks.0.map"].count == len(rows)
    torch.testing.assert_close(drifts["blocks.0.map"].cross, rows.t() @ rows, atol=1e-5, rtol=1e-5)
