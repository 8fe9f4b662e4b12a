"""SubvectorCodes: what a fit keeps, by what it weighs, and what is refused."""

from itertools import permutations

import numpy as np
import pytest
import torch
from tiny_models import auto_class, inputs, make, outputs

from fewfold import CalibrationError, LowRank, RecipeError, SubvectorCodes, compress
from fewfold.calibration.collect import collect
from fewfold.calibration.inputs import calibration_batches
from fewfold.calibration.statistics import Moments, Statistics
from fewfold.checkpoint.config import structure_of
from fewfold.fitting import fill
from fewfold.methods.base import Unit
from fewfold.methods.registry import method_named
from fewfold.methods.subvector_codes.sizes import balanced
from fewfold.recipe import Recipe
from fewfold.surgery.targets import Target, read_weight
from fewfold.surgery.units import find_units

METHOD = method_named("subvector_codes")
INNER, WORDS = "encoder.layer.0.intermediate.dense", "embeddings.word_embeddings"


def unit_of(kind, rows, columns, **fields):
    target = Target("weight", "weight", kind, rows, columns)
    return Unit("subvector_codes", SubvectorCodes(**fields), (target,))


def calibrated(name, **fields):
    """A unit of a tiny model, its weights and its statistics."""
    model = make("bert")
    batches = calibration_batches([inputs("bert", batch=64), inputs("bert", batch=32, length=9)], None, model)
    (unit,) = find_units(model, Recipe.of(SubvectorCodes(targets=name, **fields)))
    return unit, read_weight(model, unit.targets[0]), collect(model, list(unit.targets), batches)


def fitted(unit, weight, statistics=None, settings=None):
    """The assembled weight of a fit, float64."""
    settings = METHOD.fixed(unit) if settings is None else settings
    name = unit.targets[0].name
    (module,) = METHOD.modules(unit, settings).values()
    fill(module, METHOD.fit(unit, settings, {name: weight}, statistics or Statistics())[name], None)
    return module.assembled_weight().detach().double().numpy()


@pytest.mark.parametrize("codebooks", ["matrix", "position"])
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize(("name", "kind"), [(INNER, "linear"), (WORDS, "embedding")])
def test_a_word_for_every_distinct_sub_vector_loses_nothing(name, kind, scales, codebooks):
    model = make("bert")
    weight = model.get_submodule(name).weight
    weight.data[8:] = weight.data[:8].repeat(8, 1)[: len(weight) - 8]
    dense = weight.detach().clone()
    words = 8 if codebooks == "position" else 8 * 4
    compress(
        model,
        SubvectorCodes(
            targets=name,
            width=4,
            words=words,
            codebooks=codebooks,
            scales=scales,
            weighting="none",
            stored_dtype="fp32",
        ),
    )
    made = model.get_submodule(name).assembled_weight()
    assert made.shape == dense.shape
    torch.testing.assert_close(made, dense, rtol=1e-4, atol=1e-4)
    assert structure_of(model).targets[0].kind == kind


@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [("linear", *shape) for shape in ((1, 1), (5, 1), (1, 7), (3, 5))]
    + [("embedding", *shape) for shape in ((1, 5), (2, 5), (9, 1), (9, 3))],
)
@pytest.mark.parametrize("weighed", [False, True])
def test_odd_shapes(kind, rows, columns, weighed):
    generator = np.random.default_rng(0)
    weight = torch.from_numpy(generator.standard_normal((rows, columns))).float()
    statistics = Statistics()
    if weighed:
        moments, gradients = Moments(columns), Moments(columns if kind == "embedding" else rows)
        moments.add(torch.from_numpy(generator.standard_normal((50, columns))))
        gradients.add(torch.from_numpy(generator.standard_normal((50, len(gradients.total)))))
        statistics.inputs, statistics.leader, statistics.gradients = (
            {"weight": moments},
            {"weight": "weight"},
            {"weight": gradients},
        )
        statistics.token_counts = {"weight": torch.arange(rows)}
    for width in {1, columns}:
        unit = unit_of(kind, rows, columns, width=width, words=64, stored_dtype="fp32")
        np.testing.assert_allclose(fitted(unit, weight, statistics), weight.numpy(), rtol=2e-3, atol=2e-3)
        assert np.isfinite(METHOD.errors(unit, METHOD.sizes(unit), {"weight": weight}, statistics)).all()


def test_a_linear_fit_weighs_errors_by_its_inputs():
    fits = {}
    for weighting in ("none", "inputs", "inputs_and_outputs"):
        unit, weight, statistics = calibrated(INNER, width=4, words=16, weighting=weighting)
        fits[weighting] = weight.double().numpy() - fitted(unit, weight, statistics)
    moment = statistics.input_moments(unit.targets[0]).second.numpy()
    metric = statistics.output_metric(unit.targets[0]).diagonal().numpy()
    seen = {name: np.einsum("ri,ij,rj->r", off, moment, off) for name, off in fits.items()}
    plain = {name: (off**2).sum() for name, off in fits.items()}
    assert seen["inputs"].sum() < 0.9 * seen["none"].sum()
    assert plain["none"] < plain["inputs"]
    assert metric @ seen["inputs_and_outputs"] < metric @ seen["inputs"]


def test_frequent_rows_of_a_table_are_kept_closer():
    counts = torch.zeros(61)
    counts[:6] = 1000
    generator = np.random.default_rng(0)
    table = torch.from_numpy(generator.standard_normal((61, 16))).float()
    off = {}
    for power in (0.0, 1.0):
        unit = unit_of("embedding", 61, 16, width=4, words=8, count_power=power, weighting="inputs")
        made = fitted(unit, table, Statistics(token_counts={"weight": counts}))
        off[power] = ((table.numpy() - made) ** 2).sum(1)
    assert off[1.0][:6].mean() < 0.2 * off[0.0][:6].mean()
    assert off[1.0][6:].mean() > off[0.0][6:].mean()
    alike = fitted(
        unit_of("embedding", 61, 16, width=4, words=8, weighting="none"),
        table,
        Statistics(token_counts={"weight": counts}),
    )
    np.testing.assert_allclose(((table.numpy() - alike) ** 2).sum(1), off[0.0], rtol=1e-6)


def test_further_codes_serve_the_most_frequent_rows():
    counts = torch.arange(61).flip(0)
    table = torch.from_numpy(np.random.default_rng(0).standard_normal((61, 16))).float()
    fields = {"width": 4, "words": 8, "count_power": 0.5, "weighting": "inputs"}
    statistics = Statistics(token_counts={"weight": counts})
    plain, more = (
        (
            (table.numpy() - fitted(unit_of("embedding", 61, 16, frequent=frequent, **fields), table, statistics)) ** 2
        ).sum(1)
        for frequent in (None, 20)
    )
    assert more[:20].mean() < 0.4 * plain[:20].mean()
    assert more[20:].mean() > 0.7 * plain[20:].mean()


@pytest.mark.parametrize("factor", [1e-5, 1e3])
def test_a_table_s_fit_does_not_depend_on_the_unit_of_its_gradients(factor):
    generator = np.random.default_rng(0)
    table = torch.from_numpy(generator.standard_normal((200, 16))).float()
    gradients = torch.from_numpy(generator.standard_normal((50, 16)) * np.linspace(0.2, 2, 16)).float()
    unit, off = unit_of("embedding", 200, 16, width=4, words=16), []
    for scale in (1.0, factor):
        moments = Moments(16)
        moments.add(gradients * scale)
        statistics = Statistics(gradients={"weight": moments}, token_counts={"weight": torch.ones(200)})
        off.append(((fitted(unit, table, statistics) - table.numpy()) ** 2).sum())
    assert off[1] == pytest.approx(off[0], rel=0.02)


@pytest.mark.parametrize(
    ("name", "dtype"), [("bert_mlm", torch.float32), ("gpt2_lm", torch.bfloat16), ("t5_lm", torch.float32)]
)
def test_settings_survive_saving_and_loading(name, dtype, tmp_path):
    recipe = [
        SubvectorCodes(width=4, words=8, stages=2, codebooks="position", weighting="none"),
        SubvectorCodes(targets="embeddings", width=2, rank=8, words=8, frequent=11, scales=True, weighting="none"),
    ]
    model = compress(make(name).to(dtype), recipe)
    records = structure_of(model).targets
    table = next(record for record in records if record.kind == "embedding")
    linear = next(record for record in records if record.kind == "linear")
    assert linear.settings == {
        "stages": [{"width": 4, "words": 8, "shared": False, "rows": None}] * 2, "scales": True,
    }  # fmt: skip
    assert table.settings == {
        "stages": [
            {"width": 2, "words": 8, "shared": False, "rows": None},
            {"width": 1, "words": 8, "shared": False, "rows": 11},
        ],
        "scales": True, "rank": 8, "mean_row": True, "map": "int8",
    }  # fmt: skip
    expected = outputs(model, name)
    model.save_pretrained(tmp_path)
    again = auto_class(name).from_pretrained(tmp_path, dtype=dtype)
    assert structure_of(again) == structure_of(model)
    assert expected.dtype == dtype
    torch.testing.assert_close(outputs(again, name), expected, rtol=0, atol=1e-6)


def test_equal_calls_give_equal_models():
    first, second = (compress(make("bert"), SubvectorCodes(width=4, words=8, weighting="none")) for _ in range(2))
    assert torch.equal(outputs(first, "bert"), outputs(second, "bert"))


def test_without_a_fit_codes_are_fresh():
    model = compress(make("bert"), SubvectorCodes(targets="all", width=4, words=8), fit=False)
    assert bool(outputs(model, "bert").isfinite().all())
    assert model.get_submodule(INNER).coded.codes(0).float().std() > 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("blocks", "width"), [(2, 2), (2, 3), (3, 2), (4, 2)])
def test_balanced_blocks_have_equal_products(blocks, width, seed):
    gains = np.sort(np.random.default_rng(seed).pareto(1.0, blocks * width) + 0.01)[::-1].copy()
    order = balanced(torch.from_numpy(gains), width).numpy()
    assert sorted(order) == list(range(len(gains)))

    def lost(order):  # what normal numbers lose
        return np.exp(np.log(gains[list(order)]).reshape(blocks, width).mean(1)).sum()

    best = min(lost(order) for order in permutations(range(len(gains))))
    assert lost(order) <= 1.1 * best
    assert lost(order) <= lost(range(len(gains)))


def test_balanced_pairs_of_a_geometric_series_are_equal():
    gains = 2.0 ** -np.arange(12)
    order = balanced(torch.from_numpy(gains), 2).numpy().reshape(-1, 2)
    np.testing.assert_allclose(gains[order].prod(1), 2.0**-11)


@pytest.mark.parametrize(
    ("target", "fields", "message"),
    [
        (INNER, {"width": 17}, r"width=17.*intermediate\.dense has rows of 16.*1…16"),
        (INNER, {"width": 4, "rank": 4}, r"rank=4.*is a linear map.*targets='embeddings'"),
        (INNER, {"width": 4, "frequent": 4}, r"frequent=4.*is a linear map"),
        (WORDS, {"width": 4, "stages": 2}, r"stages=2.*is a table.*targets='embeddings'"),
        (WORDS, {"rank": 17, "width": 1}, r"rank=17.*word_embeddings has rows of 16.*1…16"),
        (WORDS, {"rank": 6, "width": 4}, r"rank=6, width=4.*a multiple of 4"),
        (WORDS, {"rank": 13}, r"rank=13\).*word_embeddings.*divides the rank \(2, 3.*or give the width"),
        (WORDS, {"width": 4, "frequent": 62}, r"frequent=62.*has 61 rows"),
    ],
)
def test_wrong_values_are_named(target, fields, message):
    model = make("bert")
    before = outputs(model, "bert")
    with pytest.raises(RecipeError, match=message):
        compress(model, SubvectorCodes(targets=target, weighting="none", **fields))
    assert torch.equal(outputs(model, "bert"), before)
    assert structure_of(model) is None


@pytest.mark.parametrize("target", [INNER, WORDS])
def test_inputs_are_asked_for(target):
    alone = pytest.warns(UserWarning, match="fitted to their weights alone")
    with alone, pytest.raises(CalibrationError, match="calibration"):
        compress(make("bert"), SubvectorCodes(targets=target, width=4, words=8, weighting="inputs"))


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_calibrated_in_sequence_it_is_nearer_to_the_dense_model(damping):
    """On hardly any tokens too, whose moments are singular."""
    dense = outputs(make("bert"), "bert")
    off = {}
    for weighting in ("none", "auto"):
        config = SubvectorCodes(width=4, words=32, weighting=weighting, damping=damping)
        model = compress(make("bert"), config, calibration=[inputs("bert")], cache=False)
        off[weighting] = float((outputs(model, "bert") - dense).square().mean())
    assert off["auto"] < 0.8 * off["none"]


def test_tables_and_maps_beside_another_method():
    model = compress(
        make("gpt2_lm"),
        [
            SubvectorCodes(targets="embeddings", width=4, words=61, weighting="none", map_dtype="fp16"),
            LowRank(rank=16, weighting="none"),
        ],
    )
    dense = make("gpt2_lm")
    torch.testing.assert_close(outputs(model, "gpt2_lm"), outputs(dense, "gpt2_lm"), rtol=0, atol=0.02)
    assert {record.method for record in structure_of(model).targets} == {"subvector_codes", "low_rank"}


@pytest.mark.parametrize(("fields", "message"), [({"rounds": 0}, "rounds=0"), ({"sweeps": 1}, "sweeps=1")])
def test_what_serves_linear_maps_alone_is_refused_for_tables(fields, message):
    with pytest.raises(RecipeError, match=rf"{message}\).*word_embeddings is a table"):
        compress(make("bert"), SubvectorCodes(targets="embeddings", width=4, words=8, weighting="none", **fields))
    both = compress(make("bert"), SubvectorCodes(targets="all", width=4, words=8, weighting="none", **fields))
    assert {record.kind for record in structure_of(both).targets} == {"linear", "embedding"}
