"""What SubvectorCodes costs, expects to lose, and makes of a budget."""

import json
import struct
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from tiny_models import make

from fewfold import Budget, BudgetError, LowRank, SubvectorCodes, compress, summary
from fewfold.calibration.statistics import Moments, Statistics
from fewfold.checkpoint.config import structure_of
from fewfold.fitting import fill
from fewfold.linalg.spectra import damped
from fewfold.methods.base import Unit
from fewfold.methods.registry import method_named
from fewfold.methods.subvector_codes import table
from fewfold.methods.subvector_codes.sizes import distortion
from fewfold.recipe import Recipe
from fewfold.surgery.targets import Target
from fewfold.surgery.units import find_units

METHOD = method_named("subvector_codes")
INNER, WORDS = "encoder.layer.0.intermediate.dense", "embeddings.word_embeddings"
FLOATS = ("F32", "F16", "BF16")


def test_a_number_of_words_that_is_given_stays_under_a_budget():
    model = make("bert")
    compress(model, SubvectorCodes(words=16), budget=Budget(bytes="1/4 of linears"))
    found = [stage["words"] for record in structure_of(model).targets for stage in record.settings["stages"]]
    assert set(found) == {16}


def test_linear_maps_spend_a_budget_of_up_to_eight_bits_a_number():
    left = []
    for share in (8, 5, 4):
        model = model_of()
        dense = {name: weight.detach().double() for name, weight in model.named_parameters()}
        compress(
            model, SubvectorCodes(targets="linears", weighting="none"), budget=Budget(bytes=f"1/{share} of linears")
        )
        (budget,) = structure_of(model).provenance["steps"][0]["budgets"]
        assert 0.85 < budget["reached"] / budget["limit"] <= 1
        weight = model.get_submodule(INNER).rebuilt_weight().detach().double()
        before = dense[f"{INNER}.weight"]
        left.append(float((weight - before).square().sum() / before.square().sum()))
    assert left[0] > 4 * left[1] > 16 * left[2]


@pytest.mark.parametrize("rank", [6, 12, 16])
def test_a_budget_keeps_a_rank_that_is_given(rank):
    model = compress(
        model_of(), SubvectorCodes(targets="embeddings", rank=rank, weighting="none"),
        budget=Budget(bytes="1/3 of embeddings"),
    )  # fmt: skip
    (record,) = structure_of(model).targets
    assert record.settings["rank"] == rank
    assert rank % record.settings["stages"][0]["width"] == 0


def model_of(dtype=torch.float32, vocab=900):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=vocab, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=160,
        max_position_embeddings=40,
    )  # fmt: skip
    return transformers.BertModel(config).eval().to(dtype)


def saved_entries(model, folder):
    """Type, shape and bytes of every tensor in the file."""
    model.save_pretrained(folder)
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entries = json.loads(raw[8 : 8 + length])
    entries.pop("__metadata__", None)
    return {
        key: (entry["dtype"], int(np.prod(entry["shape"])), entry["data_offsets"][1] - entry["data_offsets"][0])
        for key, entry in entries.items()
    }


def own(entries, name):
    """What belongs to one replaced weight, its bias left out."""
    return [entry for key, entry in entries.items() if key.startswith(f"{name}.") and key != f"{name}.bias"]


def unit_of(kind, rows, columns, **fields):
    target = Target("weight", "weight", kind, rows, columns)
    return Unit("subvector_codes", SubvectorCodes(**fields), (target,))


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(torch.float32, stored) for stored in ("fp32", "fp16", "int8", "int4")] + [(torch.bfloat16, "fp32")],
)
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (INNER, {"width": 4, "words": 16}),
        (INNER, {"width": 5, "words": 300, "stages": 2, "codebooks": "position", "scales": False}),
        (WORDS, {"width": 4, "words": 16}),
        (WORDS, {"width": 5, "words": 20, "rank": 10, "frequent": 37, "scales": True, "codebooks": "matrix"}),
    ],
)
def test_costs_are_those_of_the_saved_file(name, fields, stored, dtype, tmp_path):
    config = SubvectorCodes(targets=name, weighting="none", stored_dtype=stored, group_size=4, **fields)
    model = model_of(dtype)
    (unit,) = find_units(model, Recipe.of(config))
    settings = METHOD.fixed(unit)
    cost = METHOD.cost(unit, settings, element_size=dtype.itemsize)
    compress(model, config)
    entries = own(saved_entries(model, tmp_path), name)
    assert sum(size for _, _, size in entries) == cost.bytes
    if {stored, settings.get("map", stored)} <= {"fp32", "fp16", "bf16"}:
        assert sum(count for kind, count, _ in entries if kind in FLOATS) == cost.parameters
        assert {kind for kind, _, _ in entries} <= {*FLOATS, "U8"}
    (row,) = summary(model).rows
    assert row.parameters == cost.parameters


@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("kind", "rows", "columns", "fields"),
    [
        ("linear", 384, 1536, {}),
        ("linear", 64, 50, {"stages": 2}),
        ("linear", 5, 1, {}),
        ("linear", 1, 9, {}),
        ("embedding", 2, 768, {}),
        ("embedding", 9, 1, {}),
        ("embedding", 3000, 50, {}),
        ("embedding", 300, 50, {"frequent": 100, "words": 32}),
        ("embedding", 3000, 48, {"rank": 24}),
        ("embedding", 7, 3, {"words": 4}),
    ],
)
def test_sizes_rise_in_bytes_and_can_be_built(kind, rows, columns, fields, stored):
    unit = unit_of(kind, rows, columns, stored_dtype=stored, **fields)
    sizes = METHOD.sizes(unit)
    costs = [METHOD.cost(unit, size).bytes for size in sizes]
    assert costs == sorted(costs)
    assert len(sizes) >= (6 if rows > 1000 else 1)
    assert len(sizes) == 1 or all(cost < 4 * rows * columns for cost in costs)
    assert "rank" not in fields or {size["rank"] for size in sizes} == {24}
    with torch.device("meta"):
        for size in [*sizes[:: max(1, len(sizes) // 12)], *sizes[-1:]]:
            (module,) = METHOD.modules(unit, size).values()
            numbers = sum(parameter.numel() for parameter in module.parameters())
            assert numbers == METHOD.cost(unit, size).parameters


@pytest.mark.parametrize(("width", "words"), [(1, 2), (1, 4), (2, 64), (4, 256)])
def test_distortion_is_what_normal_numbers_lose(width, words):
    cluster = pytest.importorskip("sklearn.cluster")
    generator = np.random.default_rng(0)
    found = cluster.KMeans(words, n_init=1, random_state=0).fit(generator.standard_normal((40 * words, width)))
    fresh = generator.standard_normal((20000, width))
    measured = ((fresh - found.cluster_centers_[found.predict(fresh)]) ** 2).mean()
    assert distortion(width, words) == pytest.approx(measured, rel=0.08 if words > 4 else 0.3)


def test_distortion_falls_with_bits():
    for width in (2, 4, 8):
        shares = [distortion(width, words) for words in (16, 64, 256, 4096)]
        assert all(after < before for before, after in pairwise(shares))
        assert 0 < shares[-1] < shares[0] < 1


def _ranks(values):
    return np.argsort(np.argsort(values))


def _structured(rows, columns, seed=0):
    """Correlated columns of falling energy, rows of heavy tails, a mean."""
    generator = np.random.default_rng(seed)
    mixing = np.linalg.qr(generator.standard_normal((columns, columns)))[0]
    matrix = generator.standard_normal((rows, columns)) * np.exp(-np.arange(columns) / 10)
    return matrix @ mixing * np.exp(0.5 * generator.standard_normal((rows, 1))) + 0.1


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(("kind", "rows", "columns"), [("linear", 320, 64), ("embedding", 1500, 24)])
def test_expected_errors_rank_sizes_as_measured_ones(kind, rows, columns, structured, weighed, monkeypatch):
    monkeypatch.setattr(table, "CUT_OFF", 0.0)  # which is about sentence vectors, not about the table
    generator = np.random.default_rng(1)
    matrix = _structured(rows, columns) if structured else generator.standard_normal((rows, columns))
    weight, statistics = torch.from_numpy(matrix).float(), Statistics()
    metric, weights = np.eye(columns), np.ones(rows)
    if weighed:
        moments, counts = Moments(columns), torch.from_numpy(generator.pareto(2.0, rows) * 10).long()
        moments.add(torch.from_numpy(_structured(500, columns, 3)))
        if kind == "linear":
            statistics.inputs, statistics.leader = {"weight": moments}, {"weight": "weight"}
            metric = damped(moments.second, 0.3).numpy()
        else:
            statistics.token_counts = {"weight": counts}
            weights = counts.numpy() + 0.5
    unit = unit_of(kind, rows, columns, words=64, count_power=1.0)
    sizes = METHOD.sizes(unit)
    if kind == "linear":  # with a few points for every word, as real weights have
        sizes = [s for s in sizes if rows * columns > 8 * s["stages"][0]["width"] * s["stages"][0]["words"]]
    sizes = sizes[:: max(1, len(sizes) // 7)]
    expected = METHOD.errors(unit, sizes, {"weight": weight}, statistics)
    measured = []
    for size in sizes:
        (module,) = METHOD.modules(unit, size).values()
        fill(module, METHOD.fit(unit, size, {"weight": weight}, statistics)["weight"], None)
        off = matrix - module.assembled_weight().detach().double().numpy()
        measured.append(float(weights @ np.einsum("ri,ij,rj->r", off, metric, off)))
    assert len(sizes) >= 6
    assert np.corrcoef(_ranks(expected), _ranks(measured))[0, 1] > 0.9
    energy = float(weights @ np.einsum("ri,ij,rj->r", matrix, metric, matrix))
    if kind == "linear" and not structured:  # a share of the output's energy; so few numbers are kept better
        ratios = [share * energy / error for share, error in zip(expected, measured, strict=True)]
        assert all(0.7 < ratio < 2.5 for ratio in ratios), ratios


@pytest.mark.parametrize(
    ("targets", "budget", "least"),
    [
        ("linears", "1/4 of linears", 0.75),
        ("linears", "1/5 of linears", 0.75),
        ("embeddings", "1/12 of embeddings", 0.85),
        ("embeddings", "1/20 of embeddings", 0.85),
        ("all", "1/8 of all", 0.85),
        ("all", "60KB", 0.9),
    ],
)
def test_bytes_are_reached_and_never_exceeded(targets, budget, least, tmp_path):
    """As near as the few sizes of a tiny model come."""
    model = model_of(vocab=2000)
    dense = {name: module.weight.numel() * 4 for name, module in model.named_modules() if hasattr(module, "weight")}
    words = None if targets == "linears" else 64
    codes = SubvectorCodes(targets=targets, weighting="none", words=words)
    compress(model, codes, budget=Budget(bytes=budget))
    entries, records = saved_entries(model, tmp_path), structure_of(model).targets
    spent = sum(size for record in records for _, _, size in own(entries, record.name))
    limit = 60_000.0
    if "/" in budget:
        share = 1 / int(budget.split(" ")[0].removeprefix("1/"))
        limit = share * sum(size for name, size in dense.items() if name in {record.name for record in records})
    else:
        spent = sum(size for _, _, size in entries.values())
    assert least * limit <= spent <= limit
    (outcome,) = structure_of(model).provenance["steps"][-1]["budgets"]
    assert outcome["reached"] == spent


def test_a_budget_over_two_methods(tmp_path):
    model = model_of(vocab=2000)
    recipe = [
        LowRank(weighting="none", stored_dtype="int8"),
        SubvectorCodes(targets="embeddings", weighting="none", words=64),
    ]
    compress(model, recipe, budget=Budget(bytes="80KB"))
    spent = sum(size for _, _, size in saved_entries(model, tmp_path).values())
    assert 0.97 * 80_000 <= spent <= 80_000
    assert {record.method for record in structure_of(model).targets} == {"low_rank", "subvector_codes"}


@pytest.mark.full
def test_more_bytes_keep_more():
    off = []
    for budget in ("1/24", "1/12", "1/6"):
        model = model_of(vocab=2000)
        dense = model.embeddings.word_embeddings.weight.detach().clone()
        compress(
            model,
            SubvectorCodes(targets="embeddings", weighting="none", words=64),
            budget=f"bytes={budget} of embeddings",
        )
        off.append(float((model.embeddings.word_embeddings.assembled_weight().detach() - dense).square().sum()))
    assert off[0] > 1.05 * off[1] > 1.05**2 * off[2]


def test_budgets_that_nothing_fits_are_refused():
    with pytest.raises(BudgetError, match="cannot be reached"):
        compress(model_of(), SubvectorCodes(weighting="none"), budget="bytes=1/500 of linears")
    with pytest.raises(BudgetError, match="has nothing to choose"):
        compress(model_of(), SubvectorCodes(width=4, weighting="none"), budget="bytes=1/4 of linears")
    with pytest.raises(BudgetError, match="no size"):
        compress(model_of(), SubvectorCodes(weighting="none"))
