"""SharedBasis: which weights share, low rank where they do not, published sizes, and what a fit leaves."""

import copy

import numpy as np
import pytest
import torch
from tiny_models import inputs, make, outputs

import fewfold
from fewfold import LowRank, RecipeError, SharedBasis
from fewfold.calibration.collect import collect
from fewfold.calibration.inputs import calibration_batches
from fewfold.checkpoint.config import structure_of
from fewfold.methods.registry import method_named
from fewfold.methods.shared_basis.modules import BasisLinear
from fewfold.recipe import Recipe
from fewfold.store import stores_of
from fewfold.surgery.targets import Target, find_targets, read_weight
from fewfold.surgery.units import find_units

METHOD = method_named("shared_basis")


def groups_of(name, **fields):
    """By store: the targets' short names, and the side of the basis."""
    units = find_units(make(name), Recipe.of(SharedBasis(rank=1, **fields)))
    return [([target.name for target in unit.targets], unit.layout.side) for unit in units]


def layers(pattern, *numbers):
    return [pattern.format(number) for number in numbers]


QUERY, OUT = "encoder.layer.{}.attention.self.query", "encoder.layer.{}.attention.output.dense"


def test_each_kind_is_shared_by_neighbours_and_what_writes_on_the_side_it_writes():
    found = groups_of("bert")
    assert len(found) == 6
    assert (layers(QUERY, 0, 1), "in") in found
    assert (layers(OUT, 0, 1), "out") in found
    assert [side for _, side in found] == ["in", "in", "in", "out", "in", "out"]


@pytest.mark.parametrize(("writers", "count", "side"), [("apart", 8, "in"), ("inputs", 6, "in"), ("outputs", 6, "out")])
def test_what_writes_can_stay_apart(writers, count, side):
    found = groups_of("bert", writers=writers)
    assert len(found) == count
    assert ((layers(OUT, 0), side) in found) == (writers == "apart")
    assert ((layers(OUT, 0, 1), side) in found) == (writers != "apart")


def test_a_last_group_may_be_smaller():
    targets = [Target(QUERY.format(n), QUERY.format(n), "linear", 8, 8) for n in (2, 3, 5, 7, 11)]
    units = METHOD.units(SharedBasis(rank=1), targets, 8)
    assert [[target.layer for target in unit.targets] for unit in units] == [[2, 3], [5, 7], [11]]
    units = METHOD.units(SharedBasis(rank=1, group=9), targets, 8)
    assert [[target.layer for target in unit.targets] for unit in units] == [[2, 3, 5, 7, 11]]


def test_families_share_across_kinds():
    found = groups_of("llama", families=True)
    names = [[name.removeprefix("layers.") for name in group] for group, _ in found]
    attention = [f"{layer}.self_attn.{kind}_proj" for layer in (0, 1) for kind in "qkv"]
    assert attention in names
    assert [f"{layer}.mlp.{kind}_proj" for layer in (0, 1) for kind in ("gate", "up")] in names
    assert len(names) == 4


def test_encoder_and_decoder_and_cross_attention_stay_apart():
    found = [group for group, _ in groups_of("t5")]
    assert all(len({name.split(".")[0] for name in group}) == 1 for group in found)
    assert all(len({"EncDecAttention" in name for name in group}) == 1 for group in found)
    assert ["encoder.block.0.layer.0.SelfAttention.q", "encoder.block.1.layer.0.SelfAttention.q"] in found


@pytest.mark.parametrize("families", [False, True])
def test_a_basis_is_one_tensor_and_families_read_it_once(families):
    model = fewfold.compress(make("bert"), SharedBasis(rank=2, weighting="none", families=families))
    blocks = [layer.attention.self for layer in model.encoder.layer]
    assert blocks[0].query.store is blocks[1].query.store
    assert blocks[0].query.store().data_ptr() == blocks[1].query.store().data_ptr()
    assert (blocks[0].query.store is blocks[0].key.store) is families
    fewfold.set_form(model, "chained")
    calls = []
    basis = blocks[0].query.store.basis
    basis.register_forward_hook(lambda *_: calls.append(1))
    outputs(model, "bert")
    assert len(calls) == 2  # once a layer: for the query alone, or for query, key and value


def test_families_survive_copies_checkpointing_and_export(tmp_path):
    model = fewfold.compress(make("bert"), SharedBasis(rank=3, weighting="none", families=True))
    fewfold.set_form(model, "chained")
    expected = outputs(model, "bert")
    torch.testing.assert_close(outputs(copy.deepcopy(model), "bert"), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        program = torch.export.export(model, (), inputs("bert"), strict=False)
        result = program.module()(**inputs("bert")).last_hidden_state
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    grads = []
    for checkpointed in (False, True):
        model.train().zero_grad()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(**inputs("bert")).last_hidden_state.square().sum().backward()
        grads.append(model.encoder.layer[0].attention.self.query.store.basis.weight.grad.clone())
    torch.testing.assert_close(grads[1], grads[0])
    assert float(grads[0].abs().max()) > 0


def test_the_gradient_of_a_basis_is_the_sum_over_its_layers():
    model = fewfold.compress(make("bert"), SharedBasis(rank=3, weighting="none")).double()
    fewfold.set_form(model, "chained")
    first, second = (layer.attention.self.query for layer in model.encoder.layer)
    states = torch.randn(5, 16).double()
    (first(states).square().sum() + second(states).sum()).backward()
    basis, own = first.store.basis.weight.detach(), [q.coefficients.weight.detach() for q in (first, second)]
    out = states @ basis.T @ own[0].T + first.bias.detach()
    wanted = (2 * out @ own[0]).T @ states + (torch.ones(5, 16).double() @ own[1]).T @ states
    torch.testing.assert_close(first.store.basis.weight.grad, wanted)


def bert_statistics(model):
    batches = calibration_batches([inputs("bert", batch=64), inputs("bert", batch=32, length=9)], None, model)
    return collect(model, [target for target in find_targets(model) if target.kind == "linear"], batches)


@pytest.fixture(scope="module")
def setting():
    model = make("bert")
    return model, bert_statistics(model)


@pytest.mark.parametrize("pattern", ["*.query", "*.attention.output.dense", "*.intermediate.dense", "*.?.output.dense"])
@pytest.mark.parametrize("weighting", ["none", "inputs", "inputs_and_outputs"])
def test_the_error_that_is_reckoned_with_is_the_fit_s(setting, pattern, weighting):
    """A naive loop over the group's layers, the shared side through the mean of their metrics."""
    model, statistics = setting
    config = SharedBasis(targets=pattern, exclude=["pooler"], rank=1, weighting=weighting, refit=False)
    (unit,) = find_units(model, Recipe.of(config))
    assert len(unit.targets) == 2
    weights = {target.name: read_weight(model, target) for target in unit.targets}
    dense = [weights[target.name].double().numpy() for target in unit.targets]
    moments = [statistics.input_moments(target).covariance.numpy() for target in unit.targets]
    metrics = [statistics.output_metric(target).numpy() for target in unit.targets]
    seen = zip(metrics, dense, moments, strict=True)
    worth = sum(float(np.trace(metric @ weight @ moment @ weight.T)) for metric, weight, moment in seen)
    metrics = [metric + 0.01 * np.trace(metric) / len(metric) * np.eye(len(metric)) for metric in metrics]
    if weighting == "none":
        moments = [np.eye(len(moment)) for moment in moments]
    if weighting != "inputs_and_outputs":
        metrics = [np.eye(len(metric)) for metric in metrics]
    if unit.layout.side == "in":
        moments = [np.mean(moments, axis=0)] * 2
    else:
        metrics = [np.mean(metrics, axis=0)] * 2

    def norm(gaps):
        triples = zip(metrics, gaps, moments, strict=True)
        return sum(float(np.trace(metric @ gap @ moment @ gap.T)) for metric, gap, moment in triples)

    scale = 1.0 if weighting == "inputs_and_outputs" else norm(dense) / worth
    sizes = [{"rank": rank} for rank in (1, 4, 9)]
    for size, expected in zip(sizes, METHOD.errors(unit, sizes, weights, statistics), strict=True):
        tensors = METHOD.fit(unit, size, weights, statistics)
        basis, gaps = tensors["(store)"]["basis.weight"], []
        for target, weight in zip(unit.targets, dense, strict=True):
            own = tensors[target.name]["coefficients.weight"]
            gaps.append(weight - (own @ basis if unit.layout.side == "in" else basis.T @ own).numpy())
        assert norm(gaps) / scale == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("weighting", ["none", "inputs", "auto"])
def test_a_layer_alone_is_low_rank(sequential, weighting):
    given = {"calibration": [inputs("bert", batch=64)], "sequential": sequential, "cache": False}
    common = {"rank": 5, "weighting": weighting}
    alone = fewfold.compress(make("bert"), SharedBasis(group=1, **common, writers="apart"), **given)
    low_rank = fewfold.compress(make("bert"), LowRank(**common), **given)
    assert len(stores_of(alone)) == 12
    torch.testing.assert_close(outputs(alone, "bert"), outputs(low_rank, "bert"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("stored", ["int8", "int4"])
def test_what_is_fitted_is_what_is_saved(sequential, stored, tmp_path):
    """Bases and coefficients lie on the grid of their kept form, also after the pass through the layers."""
    config = SharedBasis(rank=5, stored_dtype=stored, group_size=8)
    model = fewfold.compress(
        make("bert"), config, calibration=[inputs("bert", batch=64)], sequential=sequential, cache=False
    )
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again, "bert"), outputs(model, "bert"), rtol=0, atol=1e-6)


def test_coefficients_in_the_pass_give_what_the_dense_layers_give():
    """Fitted once more on the compressed model's own inputs, the outputs come closer to the dense model's."""
    given = {"calibration": [inputs("bert", batch=256, length=12)], "cache": False}
    dense = outputs(make("bert"), "bert")
    gaps = []
    for refit, sequential in ((False, False), (True, False), (True, True)):
        config = SharedBasis(rank=9, weighting="inputs", refit=refit)
        model = fewfold.compress(make("bert"), config, sequential=sequential, **given)
        gaps.append(float((outputs(model, "bert") - dense).norm()))
    assert gaps[2] < gaps[0]


def test_few_bits_are_made_good_by_the_coefficients(setting):
    model, statistics = setting
    gaps = {}
    for weighting in ("none", "inputs"):
        config = SharedBasis(
            targets="*.query", rank=6, weighting=weighting, stored_dtype="int4", group_size=8, refit=False
        )
        (unit,) = find_units(model, Recipe.of(config))
        weights = {target.name: read_weight(model, target) for target in unit.targets}
        done = fewfold.compress(
            make("bert"), config, calibration=[inputs("bert", batch=64)], sequential=False, cache=False
        )
        gaps[weighting] = 0.0
        for target in unit.targets:
            moment = statistics.input_moments(target).covariance
            off = weights[target.name].double() - done.get_submodule(target.name).assembled_weight().detach().double()
            gaps[weighting] += float((off @ moment @ off.T).trace())
    assert gaps["inputs"] < 0.9 * gaps["none"]


@pytest.mark.parametrize(
    ("shape", "group", "rank"),
    [
        ((4096, 4096), 1, 1638),
        ((4096, 4096), 2, 2184),
        ((4096, 4096), 4, 2621),
        ((11008, 4096), 1, 2388),
        ((11008, 4096), 2, 2762),
        ((11008, 4096), 4, 2997),
    ],
)
def test_published_sizes(shape, group, rank):
    """At 20% removed, with what they count: ``rank · (in + n · out)`` numbers."""
    targets = [Target(f"layers.{n}.mlp.up_proj", f"layers.{n}.mlp.up_proj", "linear", *shape) for n in range(group)]
    (unit,) = METHOD.units(SharedBasis(keep=0.8, group=group), targets, 4096)
    assert METHOD.fixed(unit) == {"rank": rank}
    cost = METHOD.cost(unit, {"rank": rank})
    assert cost.parameters == rank * (4096 + group * shape[0]) <= 0.8 * group * shape[0] * shape[1]
    assert cost.bytes == 4 * cost.parameters


def test_the_preset_is_the_published_arrangement():
    model = make("llama")
    before = {target.name: target.numel for target in find_targets(model) if target.kind == "linear"}
    fewfold.compress(model, "basis-sharing", calibration=[inputs("llama", batch=32)], cache=False)
    records = structure_of(model).targets
    assert all(record.settings["side"] == "in" for record in records)
    members = {}
    for record in records:
        members.setdefault(record.store, []).append(record)
    for group in members.values():
        writes = group[0].name.endswith(("o_proj", "down_proj"))
        assert len(group) == (1 if writes else 2)
        private = sum(record.rows for record in group)
        columns = group[0].columns
        assert group[0].settings["rank"] == int(0.8 * columns * private / (columns + private))
    stored = sum(row.parameters for row in fewfold.summary(model).rows)
    assert 0.65 * sum(before.values()) < stored <= 0.8 * sum(before.values())


@torch.no_grad()
def decaying(model):
    """Singular values that fall as trained ones do: flat spectra leave an allocation nothing between least and all."""
    for target in find_targets(model):
        if target.kind == "linear":
            weight = model.get_submodule(target.module).weight
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            weight.copy_(left @ torch.diag(values * 0.7 ** torch.arange(len(values))) @ right)
    return model


@pytest.mark.parametrize(
    ("budget", "unit"),
    [("parameters=1/2 of linears", "parameters"), ("bytes=1/2 of linears", "bytes"), ("macs=1/2 of linears", "macs")],
)
@pytest.mark.parametrize("families", [False, True])
def test_budgets_in_every_unit(budget, unit, families):
    model, config = decaying(make("bert")), SharedBasis(weighting="none", families=families)
    dense = sum(target.numel for target in find_targets(model) if target.kind == "linear" and not target.head)
    fewfold.compress(model, config, budget=budget)
    spent = sum(getattr(row, unit) for row in fewfold.summary(model).rows)
    limit = dense * (4 if unit == "bytes" else 1) / 2
    assert 0.75 * limit < spent <= limit
    assert len({record.settings["rank"] for record in structure_of(model).targets}) > 1


def test_a_latency_budget_chooses_by_measured_times():
    model = decaying(make("bert"))
    fewfold.compress(model, SharedBasis(weighting="none"), budget="latency=1000ms at 1x8 with 1 threads")
    (step,) = structure_of(model).provenance["steps"]
    assert step["budgets"][0]["reached"] <= 1000
    assert any(name.startswith("shared_basis") for name in step["timing"]["milliseconds"])


def test_a_head_of_its_own_can_be_resized():
    model = make("llama_untied")
    fewfold.compress(model, SharedBasis(targets=["linears", "lm_head"], rank=4, weighting="none"))
    before = outputs(model, "llama_untied")
    model.resize_token_embeddings(70)
    after = outputs(model, "llama_untied")
    assert after.shape[-1] == 70
    torch.testing.assert_close(after[..., : before.shape[-1]], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("writers", ["inputs", "outputs"])
def test_fresh_weights_have_the_variance_of_fresh_linears(writers):
    torch.manual_seed(0)
    targets = [Target(OUT.format(n), OUT.format(n), "linear", 300, 400, bias=True) for n in (0, 1)]
    (unit,) = METHOD.units(SharedBasis(writers=writers), targets, 300)
    for module in METHOD.modules(unit, {"rank": 60}).values():
        assert isinstance(module, BasisLinear)
        assert float(module.assembled_weight().detach().var()) == pytest.approx(1 / (3 * 400), rel=0.1)
        assert float(module.bias.abs().max()) == 0


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"rank": 17}, "rank=17.*query and 1 more have 16 numbers.*1…16"),
        ({"targets": "all", "rank": 2}, "is a table"),
        ({}, "no size"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_stays(fields, word):
    model = make("bert")
    before = outputs(model, "bert")
    with pytest.raises((RecipeError, fewfold.BudgetError), match=word):
        fewfold.compress(model, SharedBasis(weighting="none", **fields))
    torch.testing.assert_close(outputs(model, "bert"), before, rtol=0, atol=0)


def test_rank_and_keep_together_are_refused():
    with pytest.raises(ValueError, match=r"rank=3 and keep=0\.5"):
        SharedBasis(rank=3, keep=0.5)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"rank": 3, "side": "in"}, "rank, side"),
        ({"rank": 3, "side": "up", "width": 8}, "rank, side"),
        ({"rank": 9, "side": "in", "width": 8}, "1…8"),
    ],
)
def test_damaged_stores_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        METHOD.build_store(settings, SharedBasis().stored)
    target = Target("a", "a", "linear", 4, 8)
    store = METHOD.build_store({"rank": 3, "side": "in", "width": 8}, SharedBasis().stored)
    with pytest.raises(ValueError, match="its basis is 3×8"):
        METHOD.build(target, {"rank": 2, "side": "in"}, SharedBasis().stored, store)
    with pytest.raises(ValueError, match="missing"):
        METHOD.build(target, {"rank": 3, "side": "in"}, SharedBasis().stored)
