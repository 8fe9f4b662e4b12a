"""What a latency budget times: the modules as the model runs them."""

import pytest
import torch
from tiny_models import make
from torch import nn

from fewfold import LowRank, Recipe, SharedFactors, SubvectorCodes
from fewfold.budget import timing
from fewfold.budget.budget import parse_limit
from fewfold.budget.timing import TimingTable
from fewfold.methods.registry import method_named
from fewfold.surgery.units import find_units


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [LowRank(), SharedFactors(), SubvectorCodes()], ids=lambda config: config.method)
def test_modules_are_timed_in_the_model_s_dtype(config, dtype, monkeypatch):
    model, dtypes, run = make("bert").to(dtype), set(), nn.functional.linear

    def watched(states, weight, bias=None):
        dtypes.update(tensor.dtype for tensor in (states, weight, bias) if tensor is not None)
        return run(states, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", watched)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    table = TimingTable(model, parse_limit("latency", "5ms at 1x16 with 1 threads"))
    unit = find_units(model, Recipe.of(config))[0]
    assert min(table.curve(unit, [*method_named(unit.method).sizes(unit)[:2], None])) > 0
    assert dtypes == {dtype}


def test_sizes_of_equal_products_are_told_apart(monkeypatch):
    """Codes of many widths have as many products: a size that was timed counts as timed, others by their place."""
    model = make("bert")
    table = TimingTable(model, parse_limit("latency", "5ms at 1x16 with 1 threads"))
    unit = find_units(model, Recipe.of(SubvectorCodes(targets="*.intermediate.dense")))[0]
    method = method_named(unit.method)
    sizes = method.sizes(unit)
    assert len({method.cost(unit, size).macs for size in sizes}) < len(sizes)
    clock = {str(dict(size)): 1.0 + place for place, size in enumerate(sizes)}  # in the order of their bytes

    def timed(runs):
        return {name: 100.0 if name.startswith("dense") else clock[name[name.index("{") :]] for name in runs}

    monkeypatch.setattr(table, "_time", timed)
    assert table.curve(unit, sizes) == pytest.approx([1.0 + place for place in range(len(sizes))])
