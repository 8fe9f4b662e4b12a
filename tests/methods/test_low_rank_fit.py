import math

import numpy as np
import pytest
import torch
from tiny_models import inputs, make

from fewfold import CalibrationError, LowRank, RecipeError, compress
from fewfold.calibration.collect import collect
from fewfold.calibration.inputs import calibration_batches
from fewfold.linalg.tables import smoothed_counts
from fewfold.methods.registry import method_named
from fewfold.recipe import Recipe
from fewfold.surgery.targets import read_weight
from fewfold.surgery.units import find_units

METHOD = method_named("low_rank")


@pytest.fixture(scope="module")
def setting():
    model = make("bert")
    batches = calibration_batches([inputs("bert", batch=64), inputs("bert", batch=32, length=9)], None, model)
    return model, batches


def unit_of(model, batches, name, **fields):
    (unit,) = find_units(model, Recipe.of(LowRank(targets=name, **fields)))
    statistics = collect(model, list(unit.targets), batches)
    return unit, {name: read_weight(model, unit.targets[0])}, statistics


@pytest.mark.parametrize("name", ["encoder.layer.0.intermediate.dense", "encoder.layer.1.output.dense"])
@pytest.mark.parametrize("weighting", ["none", "inputs", "inputs_and_outputs"])
def test_the_error_that_is_reckoned_with_is_the_fit_s(setting, name, weighting):
    model, batches = setting
    unit, weights, statistics = unit_of(model, batches, name, weighting=weighting)
    target = unit.targets[0]
    sizes = [{"rank": rank} for rank in (1, 4, 9)]
    predicted = METHOD.errors(unit, sizes, weights, statistics)
    weight = weights[name].double()
    moment = torch.eye(target.columns) if weighting == "none" else statistics.input_moments(target).covariance
    metric = torch.eye(target.rows).double()
    if weighting == "inputs_and_outputs":
        found = statistics.output_metric(target)
        metric = found + 0.01 * found.diagonal().mean() * metric
    energy = 1.0
    if weighting != "inputs_and_outputs":  # a share of what the whole weight is worth at the output
        seen, wanted = statistics.input_moments(target).covariance, statistics.output_metric(target)
        worth = float((wanted @ weight @ seen @ weight.T).trace())
        energy = float((weight @ moment.double() @ weight.T).trace()) / worth
    for size, expected in zip(sizes, predicted, strict=True):
        tensors = METHOD.fit(unit, size, weights, statistics)[name]
        off = weight - tensors["up.weight"].double() @ tensors["down.weight"].double()
        measured = float((metric @ off @ moment.double() @ off.T).trace()) / energy
        assert measured == pytest.approx(expected, rel=1e-4)


def test_the_bias_takes_up_the_mean_error(setting):
    model, batches = setting
    name = "encoder.layer.0.intermediate.dense"
    unit, weights, statistics = unit_of(model, batches, name)
    tensors = METHOD.fit(unit, {"rank": 3}, weights, statistics)[name]
    mean = statistics.input_moments(unit.targets[0]).mean
    off = weights[name].double() - tensors["up.weight"] @ tensors["down.weight"]
    np.testing.assert_allclose(tensors["bias_shift"].numpy(), (off @ mean).numpy(), atol=1e-8)


def test_balanced_factors(setting):
    model, batches = setting
    name = "encoder.layer.1.output.dense"
    unit, weights, statistics = unit_of(model, batches, name)
    tensors = METHOD.fit(unit, {"rank": 4}, weights, statistics)[name]
    up, down = tensors["up.weight"], tensors["down.weight"]
    torch.testing.assert_close(up.T @ up, down @ down.T, rtol=1e-5, atol=1e-8)


def test_few_bit_factors_are_stored_as_the_fit_chose_them(setting):
    model, batches = setting
    name = "encoder.layer.0.intermediate.dense"
    unit, weights, statistics = unit_of(model, batches, name, stored_dtype="int4", group_size=8)
    wanted = METHOD.fit(unit, {"rank": 5}, weights, statistics)[name]
    copy = make("bert")
    compress(
        copy, LowRank(targets=name, rank=5, stored_dtype="int4", group_size=8), calibration=batches,
        sequential=False, cache=False,
    )  # fmt: skip
    state = copy.state_dict()
    for key in ("down.codes", "down.scales", "up.codes", "up.scales"):
        assert torch.equal(state[f"{name}.{key}"], wanted[key]), key


def test_tables_weigh_rows_by_counts_and_keep_their_mean_row(setting):
    model, batches = setting
    name = "embeddings.word_embeddings"
    unit, weights, statistics = unit_of(model, batches, name, weighting="inputs_and_outputs")
    counts = torch.zeros(61, dtype=torch.double)
    for batch in batches:
        for token in batch["input_ids"][batch["attention_mask"].bool()]:
            counts[token] += 1
    share = counts + min(max(int((counts == 1).sum()) / max(int((counts == 0).sum()), 1), 1e-3), 1.0)
    torch.testing.assert_close(smoothed_counts(counts), share)
    share = share / share.sum()
    tensors = METHOD.fit(unit, {"rank": 5, "mean_row": True}, weights, statistics)[name]
    table = weights[name].double()
    torch.testing.assert_close(tensors["up.bias"], share @ table)
    # no nearby factors do better under the same weights and metric
    found = statistics.output_metric(unit.targets[0])
    metric = found + found.diagonal().mean() * torch.eye(16)

    def loss(latents, up):
        off = table - tensors["up.bias"] - latents @ up.T
        return float((share[:, None] * (off @ metric) * off).sum())

    best = loss(tensors["latents.weight"], tensors["up.weight"])
    assert best == pytest.approx(METHOD.errors(unit, [{"rank": 5}], weights, statistics)[0], rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        changed = [t + 1e-3 * torch.randn(t.shape, generator=generator, dtype=torch.float64)
                   for t in (tensors["latents.weight"], tensors["up.weight"])]  # fmt: skip
        assert loss(*changed) > best


@pytest.mark.parametrize(("rows", "columns", "rank"), [(24, 16, 5), (16, 24, 9), (16, 16, 3)])
def test_costs_follow_the_formula(rows, columns, rank):
    model = make("bert")
    name = next(
        t.name for unit in find_units(model, Recipe.of(LowRank(rank=1))) for t in unit.targets
        if (t.rows, t.columns) == (rows, columns)
    )  # fmt: skip
    for dtype, bits in (("fp32", 32), ("fp16", 16), ("int8", 8), ("int4", 4)):
        (unit,) = find_units(model, Recipe.of(LowRank(targets=name, stored_dtype=dtype, group_size=8)))
        cost = METHOD.cost(unit, {"rank": rank})
        assert cost.parameters == rank * (rows + columns)
        assert cost.macs == min(rank * (rows + columns), rows * columns)
        packed = rank * math.ceil(columns * bits / 8) + rows * math.ceil(rank * bits / 8)
        scales = {"int8": 4 * (rank + rows), "int4": 2 * (rank * math.ceil(columns / 8) + rows * math.ceil(rank / 8))}
        assert cost.bytes == packed + scales.get(dtype, 0)


def test_wrong_ranks_and_missing_statistics_are_named():
    model = make("bert")
    with pytest.raises(RecipeError, match=r"rank=17.*attention\.self\.query is 16×16.*1…16"):
        compress(model, LowRank(rank=17))
    unit, weights, statistics = unit_of(model, calibration_batches([inputs("bert")], None, model), "pooler.dense")
    strict = unit.config.model_copy(update={"weighting": "inputs_and_outputs"})
    with pytest.raises(CalibrationError, match=r"pooler\.dense"):
        METHOD.errors(type(unit)(unit.method, strict, unit.targets), [{"rank": 2}], weights, statistics)
