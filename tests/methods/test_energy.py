"""Errors of different methods are in one unit, so that a budget can weigh them against each other."""

import sys

import pytest
import torch
from tiny_models import make

import fewfold
from fewfold import LowRank, Recipe, SharedBasis, SharedFactors, SharedLayers, SubvectorCodes, TensorTrain, Tucker
from fewfold.calibration.collect import collect
from fewfold.calibration.statistics import NO_STATISTICS
from fewfold.methods.energy import output_energy
from fewfold.methods.registry import method_named
from fewfold.surgery.targets import find_targets, read_weight
from fewfold.surgery.units import find_units

CONFIGS = {
    "low rank": LowRank(multiple_of=1),
    "shared basis": SharedBasis(multiple_of=1),
    "shared factors": SharedFactors(multiple_of=1),
    "Tucker": Tucker(multiple_of=1),
    "tensor train": TensorTrain(),
    "layers": SharedLayers(),
    "codes": SubvectorCodes(words=2),
}
STATISTICS = ["none", "inputs", "inputs and gradients"]


@pytest.fixture(scope="module")
def seen():
    model = make("bert")
    batches = [{"input_ids": torch.randint(0, 61, (8, 16), generator=torch.Generator().manual_seed(0))}] * 2
    linears = [target for target in find_targets(model) if target.kind == "linear"]
    found = {"none": NO_STATISTICS}
    for name in STATISTICS[1:]:
        found[name] = collect(model, linears, batches, gradients="gradients" in name, seed=0, cache=None)
    return model, found


def largest_error(config, model, statistics):
    """Of all linear maps together, each unit at its smallest size."""
    weights = {target.name: read_weight(model, target) for target in find_targets(model)}
    total = 0.0
    for unit in find_units(model, Recipe.of(config)):
        method = method_named(unit.method)
        total += method.errors(unit, method.sizes(unit)[:1], weights, statistics)[0]
    return total


@pytest.mark.parametrize("known", STATISTICS)
@pytest.mark.parametrize("method", CONFIGS)
def test_the_smallest_sizes_lose_about_as_much(method, known, seen):
    model, statistics = seen
    expected = largest_error(CONFIGS["low rank"], model, statistics[known])
    assert expected / 5 < largest_error(CONFIGS[method], model, statistics[known]) < 5 * expected


def test_a_budget_weighs_what_is_not_calibrated_in_the_unit_of_what_is(monkeypatch):
    model, seen_by = make("bert"), {}
    module = sys.modules["fewfold.compress"]
    plan = module.plan
    monkeypatch.setattr(module, "plan", lambda *given: seen_by.update(statistics=given[4]) or plan(*given))
    recipe = [TensorTrain(targets="*.intermediate.dense"), LowRank(targets="*.output.dense", multiple_of=1)]
    batches = [{"input_ids": torch.randint(0, 61, (8, 16))}] * 2
    fewfold.compress(model, recipe, budget=fewfold.Budget(parameters="1/2 of linears"), calibration=batches)
    for target in find_targets(make("bert")):
        if target.name.endswith("intermediate.dense"):
            assert output_energy(target, torch.ones(target.rows, target.columns), seen_by["statistics"]) not in (0, 1)


def test_the_energy_is_that_of_the_output(seen):
    model, statistics = seen
    target = next(target for target in find_targets(model) if target.name.endswith("0.intermediate.dense"))
    weight, known = read_weight(model, target), statistics["inputs and gradients"]
    metric, covariance = known.output_metric(target), known.input_moments(target).covariance
    expected = torch.einsum("ij,jk,kl,il->", metric, weight.double(), covariance, weight.double())
    assert output_energy(target, weight, known) == pytest.approx(float(expected), rel=1e-4)
    assert output_energy(target, weight, statistics["inputs"]) == 1.0
