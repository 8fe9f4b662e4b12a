"""Promises 1 to 3: full rank loses nothing, the assembled weight is what runs, counts equal the formula."""

import numpy as np
import pytest
import torch
from cases import METHODS, STORED, copied, full_config, matrix
from tiny_models import MODELS, inputs, make, outputs

import fewfold
from fewfold.assembled import Assembled, AssembledEmbedding
from fewfold.checkpoint.config import structure_of
from fewfold.measure.parameters import unique_parameters
from fewfold.store import stores_of
from fewfold.surgery.layouts import FusedLinear
from fewfold.surgery.ties import EmbeddingAlias, TiedHead

SMALL = matrix(tuple(MODELS), tuple(METHODS), STORED)
PAIRS = matrix(tuple(MODELS), tuple(METHODS))
UNSCRATCHED = tuple(method for method, case in METHODS.items() if not case.scratch)


def replaced(model):
    """Records and their assembled modules."""
    for record in structure_of(model).targets:
        module = model.get_submodule(record.module)
        if isinstance(module, FusedLinear):
            module = module.parts[record.part]
        assert isinstance(module, Assembled)
        yield record, module


def expected_weight(model, method, record, module):
    """The dense weight that numpy makes of the stored tensors."""
    if record.store is None:
        return METHODS[method].assemble(record, tensors_of(module))
    (store,) = (store for store in structure_of(model).stores if store.name == record.store)
    return METHODS[method].assemble(record, tensors_of(module), store, tensors_of(stores_of(model)[record.store]))


def tensors_of(module):
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().double().numpy() for name, tensor in named}


@pytest.mark.parametrize(("name", "method"), matrix(tuple(MODELS), UNSCRATCHED))
def test_full_size_equals_dense(name, method):
    model = make(name)
    dense = outputs(model, name)
    fewfold.compress(model, full_config(name, method, model))
    assert len(structure_of(model).targets) >= (8 if METHODS[method].linears else 1)
    assert len(list(replaced(model))) == len(structure_of(model).targets)
    for form in ("chained", "folded", "rebuilt", "auto"):
        fewfold.set_form(model, form)
        torch.testing.assert_close(outputs(model, name), dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "method", "stored"), SMALL)
def test_the_assembled_weight_is_what_runs(name, method, stored):
    model = copied(name, method, stored)
    fewfold.set_form(model, "chained")
    chained = outputs(model, name)
    fewfold.set_form(model, "rebuilt")
    torch.testing.assert_close(outputs(model, name), chained, rtol=1e-4, atol=5e-5)
    generator = np.random.default_rng(0)
    for record, module in replaced(model):
        expected = expected_weight(model, method, record, module)
        assert expected.shape == (record.rows, record.columns)
        np.testing.assert_allclose(module.assembled_weight().detach().double().numpy(), expected, atol=2e-6)
        bias = getattr(module, "bias", None)
        offset = 0 if bias is None else bias.detach().double().numpy()
        for form in ("chained", "folded", "rebuilt"):
            module.form = form
            with torch.no_grad():
                if isinstance(module, AssembledEmbedding):
                    ids = np.array([[0, 3, record.rows - 1]])
                    rows = module(torch.from_numpy(ids)).double().numpy()
                    np.testing.assert_allclose(rows, expected[ids] * record.scale, atol=1e-5)
                    hidden = generator.normal(size=(2, 5, record.columns))
                    logits = module.attend(torch.from_numpy(hidden).float()).double().numpy()
                    np.testing.assert_allclose(logits, hidden @ expected.T, atol=5e-5)
                else:
                    hidden = generator.normal(size=(2, 5, record.columns))
                    out = module(torch.from_numpy(hidden).float()).double().numpy()
                    np.testing.assert_allclose(out, hidden @ expected.T + offset, atol=5e-5)


@pytest.mark.parametrize("form", ["chained", "rebuilt"])
@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_gradients_reach_every_stored_tensor(name, method, form):
    model = copied(name, method, "fp32")
    fewfold.set_form(model, form)
    result = model(**inputs(name))
    loss = sum((value * torch.randn_like(value)).sum() for value in result.values() if isinstance(value, torch.Tensor))
    loss.backward()
    owners = [(record.name, module) for record, module in replaced(model)] + list(stores_of(model).items())
    for name, module in owners:
        for tensor_name, parameter in module.named_parameters():
            assert parameter.grad is not None, f"{name}.{tensor_name}"
            if not tensor_name.endswith("bias"):  # a key's bias moves all scores alike: its gradient is truly zero
                assert float(parameter.grad.abs().max()) > 0, f"{name}.{tensor_name}"


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_parameters_equal_the_formula(name, method):
    model = make(name)
    before = unique_parameters(model)
    fewfold.compress(model, full_config(name, method, model), fit=not METHODS[method].scratch)
    case, structure = METHODS[method], structure_of(model)
    own = [case.parameters(record) for record in structure.targets]
    shared = [case.store_parameters(record) for record in structure.stores]
    dense = sum(record.rows * record.columns for record in structure.targets)
    assert unique_parameters(model) == before - dense + sum(own) + sum(shared)
    summary = fewfold.summary(model)
    assert [row.parameters for row in summary.rows] == own + shared
    assert summary.dense_parameters == before


@pytest.mark.parametrize("method", [method for method, case in METHODS.items() if case.tables])
@pytest.mark.parametrize("name", [name for name, case in MODELS.items() if case.tied])
def test_tied_modules_point_at_the_one_table(name, method):
    model = copied(name, method, "fp32")
    tables = [module for record, module in replaced(model) if record.kind == "embedding"]
    for tied in MODELS[name].tied:
        module = model.get_submodule(tied)
        assert isinstance(module, TiedHead | EmbeddingAlias)
        assert module.table is tables[0]
    assert not any(
        tied in key for tied in MODELS[name].tied for key, _ in model.named_parameters() if "bias" not in key
    )
