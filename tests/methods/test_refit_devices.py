"""Statistics and fits are on the CPU, wherever the model is. No GPU is needed: its tensors have shapes alone."""

import pytest
import torch
from tiny_models import make
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fewfold
from fewfold import Recipe, SharedBasis, SharedFactors, SharedLayers
from fewfold.calibration.statistics import Drift, Statistics
from fewfold.methods.registry import method_named
from fewfold.methods.shared_basis import fit as shared_basis
from fewfold.methods.shared_factors import refit as shared_factors
from fewfold.methods.shared_layers.turns import Turn
from fewfold.surgery.targets import read_weight
from fewfold.surgery.units import find_units

CONFIGS = [SharedBasis(rank=4), SharedFactors(rank=4), SharedLayers(delta_rank=0, align="none")]


def on_gpu(module):
    """Its tensors there, without numbers."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device="cuda"))


@pytest.fixture(autouse=True)
def no_numbers(monkeypatch):
    """What asks for a number of a tensor without any: what is left of it mixes the same tensors."""
    for module in (shared_basis, shared_factors):
        monkeypatch.setattr(module, "ridge_solution", lambda moment, cross, prior, _: (cross + prior.double(), moment))
    monkeypatch.setattr(shared_basis, "refitted", lambda wanted, basis, own, *_: own.double() + wanted @ basis.t())
    monkeypatch.setattr(shared_basis, "met_by_coefficients", lambda *_: None)
    monkeypatch.setattr(shared_factors, "damped", lambda metric, _: metric)


@pytest.mark.filterwarnings("ignore:no calibration data")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_what_is_fitted_again_may_be_on_a_gpu(config, monkeypatch):
    model, written = make("bert"), []
    unit = find_units(model, Recipe.of(config))[0]
    target = unit.targets[0]
    weight = read_weight(model, target)
    fewfold.compress(model, config)
    module, drift = model.get_submodule(target.module), Drift(target.columns)
    rows = torch.randn(64, target.columns)
    drift.add(rows, rows + 0.1)
    statistics = Statistics(drift={target.module: drift})
    assert drift.product.shape == drift.cross.shape
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu(module)
        on_gpu(module.store)
        bias = torch.empty(target.rows, device="cuda")
        monkeypatch.setattr(torch.Tensor, "copy_", lambda tensor, new: written.append((tensor.device, new.device)))
        dense = torch.empty(target.rows, target.columns, device="cuda")  # assembling it may ask for a driver
        monkeypatch.setattr(type(module), "assembled_weight", lambda _: dense)
        method_named(unit.method).refit(unit, target, module, weight, bias, statistics)
    assert {(tensor.type, values.type) for tensor, values in written} == {("cuda", "cpu")}


@pytest.mark.parametrize("frame", [None, torch.eye(4, dtype=torch.float64)])
def test_what_is_turned_may_be_on_a_gpu(frame):
    with FakeTensorMode(allow_non_fake_inputs=True):
        turned = Turn(torch.arange(4), frame)(torch.empty(4, 6, device="cuda"))
    assert turned.device.type == "cuda"


def test_biases_that_are_aligned_may_be_on_a_gpu():
    model = make("bert")
    unit = find_units(model, Recipe.of(SharedLayers(align="rotate")))[0]
    alignment = unit.layout.alignment
    bundle = next(iter(alignment.bundles.values()))
    weights = {target.name: read_weight(model, target) for target in bundle.members.values()}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for target in bundle.members.values():
            on_gpu(model.get_submodule(target.module))
        found = alignment._tensors(bundle, weights)
    assert {tensor.device.type for pair in found.values() for tensor in pair} == {"cpu"}
