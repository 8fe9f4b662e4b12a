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
    "low rank of weights": LowRank(multiple_of=1, weighting="none"),
    "shared basis of weights": SharedBasis(multiple_of=1, weighting="none"),
    "codes of weights": SubvectorCodes(words=2, weighting="none"),
    "low rank of inputs": LowRank(multiple_of=1, weighting="inputs"),
    "codes of inputs": SubvectorCodes(words=2, weighting="inputs"),
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
    if known == "none" and method.endswith("of inputs"):
        pytest.skip("inputs have to be known")
    model, statistics = seen
    expected = largest_error(CONFIGS["low rank"], model, statistics[known])
    assert expected / 5 < largest_error(CONFIGS[method], model, statistics[known]) < 5 * expected


def collected(monkeypatch, recipe, budget):
    """By name, whether calibration saw the linear map's inputs and gradients."""
    model, seen_by = make("bert"), {}
    module = sys.modules["fewfold.compress"]
    plan = module.plan
    monkeypatch.setattr(module, "plan", lambda *given: seen_by.update(statistics=given[4]) or plan(*given))
    batches = [{"input_ids": torch.randint(0, 61, (8, 16))}] * 2
    fewfold.compress(model, recipe, budget=budget, calibration=batches)
    return {
        target.name: output_energy(target, torch.ones(target.rows, target.columns), seen_by["statistics"]) != 1
        for target in find_targets(make("bert")) if target.kind == "linear"
    }  # fmt: skip


HALF = fewfold.Budget(parameters="1/2 of linears")


@pytest.mark.parametrize(
    ("trains", "ranks", "rest", "expected"),
    [
        ({}, {}, HALF, True),
        ({"budget": HALF}, {"budget": HALF}, None, True),
        ({"budget": HALF}, {}, HALF, False),
        ({"budget": HALF}, {"rank": 4}, None, False),
    ],
    ids=["one budget", "one budget in two configs", "two budgets", "nothing beside it"],
)
def test_what_is_not_calibrated_is_weighed_in_the_unit_of_what_is(trains, ranks, rest, expected, monkeypatch):
    """Where one budget chooses between them, and nowhere else."""
    recipe = [TensorTrain(targets="*.intermediate.dense", **trains), LowRank(targets="*.output.dense", **ranks)]
    found = collected(monkeypatch, recipe, rest)
    assert {seen for name, seen in found.items() if name.endswith("intermediate.dense")} == {expected}
    assert any(seen for name, seen in found.items() if name.endswith("output.dense"))


def test_metrics_of_what_is_not_calibrated_take_none_from_what_is(monkeypatch):
    monkeypatch.setattr(sys.modules["fewfold.compress"], "METRIC_BYTES", 16_000)
    recipe = [
        TensorTrain(targets="*.intermediate.dense"),
        LowRank(targets="*.output.dense", multiple_of=1, weighting="inputs_and_outputs"),
    ]
    found = collected(monkeypatch, recipe, HALF)
    assert not any(seen for name, seen in found.items() if name.endswith("intermediate.dense"))


def test_the_energy_is_that_of_the_output(seen):
    model, statistics = seen
    target = next(target for target in find_targets(model) if target.name.endswith("0.intermediate.dense"))
    weight, known = read_weight(model, target), statistics["inputs and gradients"]
    metric, covariance = known.output_metric(target), known.input_moments(target).covariance
    expected = torch.einsum("ij,jk,kl,il->", metric, weight.double(), covariance, weight.double())
    assert output_energy(target, weight, known) == pytest.approx(float(expected), rel=1e-4)
    assert output_energy(target, weight, statistics["inputs"]) == 1.0
