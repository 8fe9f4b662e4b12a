"""What layers keep of their own, fitted again on what comes in; and the presets."""

import pytest
import torch
from layer_models import deep, modules_of, texts
from tiny_models import outputs

import fewfold
from fewfold import SharedLayers
from fewfold.checkpoint.config import structure_of
from fewfold.methods.shared_layers.presets import LAYERS


def means(model, batches, names):
    """The mean output of every named module over the batches, float64."""
    found, handles = {}, []
    for name in names:

        def hook(module, args, output, name=name):
            found.setdefault(name, []).append(output.double().flatten(0, -2))

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(values).mean(0) for name, values in found.items()}


def compressed(batches, **values):
    model = deep()
    sequential = values.pop("sequential", True)
    return fewfold.compress(
        model, SharedLayers(map="pairs", **values), calibration=batches, pieces=False, cache=False,
        sequential=sequential,
    )  # fmt: skip


@pytest.mark.parametrize("rank", [0, 2])
def test_every_layer_keeps_its_mean_output_on_what_comes_in(rank):
    batches = texts()
    model = compressed(batches, align=False, delta_rank=rank)
    names = [record.module for record, _ in modules_of(model)]
    dense, found = means(deep(), batches, names), means(model, batches, names)
    at_once = means(compressed(batches, align=False, delta_rank=rank, sequential=False), batches, names)
    for name in names:
        torch.testing.assert_close(found[name], dense[name], rtol=1e-3, atol=2e-3)
    assert max(float((at_once[name] - dense[name]).abs().max()) for name in names) > 0.05


@pytest.mark.parametrize(
    "align", [*(pytest.param(align, marks=pytest.mark.full) for align in ("none", "permute")), "rotate"]
)
def test_differences_fitted_again_lose_less(align):
    batches = texts(24)
    dense = torch.cat([deep()(**batch).last_hidden_state for batch in batches]).detach()

    def error(sequential):
        model = compressed(batches, align=align, delta_rank=6, sequential=sequential)
        with torch.no_grad():
            found = torch.cat([model(**batch).last_hidden_state for batch in batches])
        return float((found - dense).square().mean() / dense.square().mean())

    assert error(True) < error(False)


@pytest.mark.parametrize("align", ["none", "rotate"])
def test_a_full_difference_fitted_again_is_still_the_model(align):
    batches = texts(24)
    model = compressed(batches, align=align, delta_rank=16)
    torch.testing.assert_close(outputs(model, "bert"), outputs(deep(), "bert"), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", [name for name, _, _ in LAYERS])
def test_presets_compress_and_name_their_source(name):
    model = fewfold.compress(deep(layers=4), name)
    (step,) = structure_of(model).provenance["steps"]
    assert step["recipe"] == name
    assert "(" in step["source"]
    stores = {record.store for record in structure_of(model).targets}
    blocks = {"albert-all": 1, "subformer-sandwich": 3}.get(name, 2)
    norms = sum(record.kind == "norm" for record in structure_of(model).targets)
    assert len(stores) == blocks * (6 + norms // 4)
    ranks = {record.settings.get("rank", 0) for record in structure_of(model).targets}
    assert ranks == ({16} if name == "relaxed-recursive" else {0})


def test_subformers_preset_shares_biases_and_no_norms():
    model = fewfold.compress(deep(layers=5), "subformer-sandwich")
    records = structure_of(model).targets
    assert {record.kind for record in records} == {"linear"}
    for number in (1, 2, 3):
        for path in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
            own, its = (model.get_submodule(f"encoder.layer.{layer}.{path}") for layer in (number, 2))
            assert own.store is its.store
            assert own.store.shift is not None
            assert not dict(own.named_parameters())
        assert isinstance(model.encoder.layer[number].output.LayerNorm, torch.nn.LayerNorm)
    assert model.encoder.layer[0].output.dense.store is not model.encoder.layer[4].output.dense.store
