"""Presets with the published numbers, calibrated fits, coupled groups, budgets and recipes of several methods."""

import pytest
import torch
import transformers as tf
from tiny_models import make, outputs

import fewfold
from fewfold import Budget, LowRank, Recipe, SharedFactors, TensorTrain, Tucker
from fewfold.calibration.statistics import Moments, Statistics
from fewfold.checkpoint.config import structure_of
from fewfold.errors import RecipeError
from fewfold.fitting import Fitter
from fewfold.measure.parameters import unique_parameters
from fewfold.methods.registry import method_named
from fewfold.store import stores_of
from fewfold.surgery.replace import replace_modules
from fewfold.surgery.targets import read_weight
from fewfold.surgery.units import find_units


@pytest.mark.parametrize(
    ("layers", "name", "count"),
    [
        (12, "III-384", 22_930_176),
        (12, "III-64", 1_794_816),
        (12, "IV-72-384", 12_323_712),
        (12, "IV-36-256", 3_864_384),
        (12, "IV-36-128", 1_898_304),
        (6, "IV-72-384", 12_258_624),
        (6, "IV-72-256", 6_163_776),
    ],
)
def test_presets_have_the_published_numbers(layers, name, count):
    with torch.device("meta"):
        model = tf.BertModel(tf.BertConfig(num_hidden_layers=layers))
        fewfold.compress(model, name, fit=False)
    assert unique_parameters(model) - model.embeddings.word_embeddings.weight.numel() == count
    assert name in Recipe.preset(name).source


def test_method_two_has_a_square_core():
    model = make("bert")
    dense = unique_parameters(model)
    fewfold.compress(model, "II-5")
    records = structure_of(model).targets
    assert unique_parameters(model) == dense - sum(r.rows * r.columns - 5 * (r.rows + r.columns) - 25 for r in records)
    query = model.encoder.layer[0].attention.self.query
    expected = query.up.weight @ query.core.weight @ query.down.weight
    torch.testing.assert_close(query.assembled_weight(), expected)
    dense_query = make("bert").encoder.layer[0].attention.self.query.weight.double()
    left, values, right = torch.linalg.svd(dense_query, full_matrices=False)
    best = left[:, :5] @ torch.diag(values[:5]) @ right[:5]
    torch.testing.assert_close(query.assembled_weight().double(), best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("III-17", r"rank=\(17, 17\).*are 16×16; the rank must be 1…16"),
        ("IV-99-4", r"bank=99.*slices; the bank must be 1…"),
        (Tucker(rank=4), r"bank's size is missing"),
        (SharedFactors(targets="all", rank=4), r"is a table.*targets='linears'"),
        (TensorTrain(rank=500), r"TensorTrain\(rank=500\).*the rank must be 1…"),
        ("V-3", r"presets are .*III-64.*III-<d>, IV-<l>-<d>"),
    ],
)
def test_wrong_values_are_named(recipe, message):
    model = make("bert")
    before = outputs(model, "bert")
    with pytest.raises(RecipeError, match=message):
        fewfold.compress(model, recipe)
    torch.testing.assert_close(outputs(model, "bert"), before, rtol=0, atol=0)
    assert structure_of(model) is None


def random_statistics(model, units):
    """Ill-conditioned moments of every input, and metrics of every output."""
    statistics = Statistics()
    generator = torch.Generator().manual_seed(0)

    def moments(width):
        rows = torch.randn(4 * width, width, generator=generator, dtype=torch.float64)
        rows = rows * torch.logspace(0, -2, width, dtype=torch.float64)
        return Moments.of(len(rows), rows.sum(0), rows.t() @ rows)

    targets = [target for unit in units for target in unit.targets]
    for target in targets:
        statistics.inputs[target.module] = moments(target.columns)
        statistics.leader[target.module] = target.module
        statistics.gradients[target.module] = moments(sum(t.rows for t in targets if t.module == target.module))
    return statistics


def fitted(name, config, fit_statistics=True):
    """A tiny model with every unit fitted at once on made-up statistics; and its dense weights."""
    model = make(name)
    units = find_units(model, Recipe(methods=[config]))
    targets = [target for unit in units for target in unit.targets]
    weights = {target.name: read_weight(model, target).clone() for target in targets}
    statistics = random_statistics(model, units) if fit_statistics else Statistics()
    from fewfold.budget.plan import Choice

    choices = []
    for number, unit in enumerate(units):
        method = method_named(unit.method)
        settings = method.settle(unit, method.fixed(unit), weights, statistics)
        choices.append(Choice(unit, settings, store=f"s{number}"))
    replace_modules(model, Fitter(model, weights, statistics).at_once(choices))
    return model, targets, weights, statistics


def assembled(model, target):
    module = model.get_submodule(target.module)
    return (module.parts[target.part.name] if target.part else module).assembled_weight().detach()


@pytest.mark.parametrize("weighting", ["none", "inputs", "auto"])
@pytest.mark.parametrize("name", ["bert", "llama", "t5", "gpt2"])
def test_full_rank_is_exact_whatever_the_metrics(name, weighting):
    """Groups of several shapes that share a side must take off the metrics that they were fitted in."""
    model, targets, weights, _ = fitted(name, SharedFactors(rank=48, coupled=True, weighting=weighting))
    if name != "gpt2":
        assert len({shape["left"] for shape in next(iter(stores_of(model).values())).banks.values()}) > 1
    for target in targets:
        error = (assembled(model, target) - weights[target.name]).norm() / weights[target.name].norm()
        assert float(error) < 2e-4, target.name


def output_error(model, targets, weights, statistics):
    """Σ tr(B (W − Ŵ) A (W − Ŵ)ᵀ) over all targets."""
    total = 0.0
    for target in targets:
        wrong = (assembled(model, target) - weights[target.name]).double()
        moments = statistics.input_moments(target)
        inner = moments.covariance if target.bias else moments.second
        total += float(torch.trace(statistics.output_metric(target) @ wrong @ inner @ wrong.t()))
    return total


def test_calibration_lowers_what_it_is_there_to_lower():
    plain = output_error(*fitted("vit", SharedFactors(rank=8, weighting="none"))[:3], statistics_of("vit"))
    inputs = output_error(*fitted("vit", SharedFactors(rank=8, weighting="inputs"))[:3], statistics_of("vit"))
    both = output_error(*fitted("vit", SharedFactors(rank=8))[:3], statistics_of("vit"))
    assert both < inputs < plain


def statistics_of(name):
    model = make(name)
    return random_statistics(model, find_units(model, Recipe(methods=[SharedFactors(rank=8)])))


def test_coupled_groups_share_the_residual_side():
    model = make("llama")
    fewfold.compress(model, SharedFactors(rank=6, coupled=True, weighting="none"))
    (store,) = stores_of(model).values()
    assert sorted(store.factors) == ["left_16x16", "left_24x16", "left_8x16", "right_16"]
    (record,) = structure_of(model).stores
    assert {bank["right"] for bank in record.settings["banks"].values()} == {"right_16"}
    apart = make("llama")
    fewfold.compress(apart, SharedFactors(rank=6, weighting="none"))
    assert unique_parameters(apart) - unique_parameters(model) == 2 * 6 * 16  # two factors fewer


def texts_for(name, count=24):
    generator = torch.Generator().manual_seed(5)
    return [{"input_ids": torch.randint(3, 49, (2, 9), generator=generator)} for _ in range(count)]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_cores_refitted_in_sequence_lower_the_error_of_the_whole(name):
    calibration = texts_for(name)
    dense = make(name)
    held_out = torch.randint(3, 49, (8, 9), generator=torch.Generator().manual_seed(9))

    def error(sequential):
        model = fewfold.compress(
            make(name), SharedFactors(rank=9), calibration=calibration, sequential=sequential, cache=False
        )
        with torch.no_grad():
            wrong = model(input_ids=held_out).last_hidden_state - dense(input_ids=held_out).last_hidden_state
        return float(wrong.square().mean())

    assert error(True) < error(False)


@pytest.mark.parametrize("config", [SharedFactors(), Tucker(), TensorTrain()], ids=lambda c: c.method)
def test_a_budget_chooses_sizes(config):
    model = make("vit")
    fewfold.compress(model, config, budget=Budget(parameters="1/2 of linears"))
    linears = sum(record.rows * record.columns for record in structure_of(model).targets)
    spent = sum(row.parameters for row in fewfold.summary(model).rows)
    assert 0.25 * linears < spent <= 0.5 * linears


def test_one_recipe_one_budget_several_methods(tmp_path):
    model = make("bert_mlm")
    recipe = [Tucker(), LowRank(targets="embeddings")]
    fewfold.compress(
        model, recipe, budget=Budget(parameters="1/4 of all"), calibration=texts_for("bert_mlm"), cache=False
    )
    methods = {record.method for record in structure_of(model).targets}
    assert methods == {"tucker", "low_rank"}
    expected = outputs(model, "bert_mlm")
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(again, "bert_mlm"), expected, rtol=0, atol=1e-6)


def test_compressing_further_keeps_what_is_there():
    model = make("bert")
    fewfold.compress(model, SharedFactors(rank=8, weighting="none", layers="0"))
    fewfold.compress(model, SharedFactors(rank=8, weighting="none", layers="1"))
    assert sorted(stores_of(model)) == ["shared_factors", "shared_factors_2", "shared_factors_3", "shared_factors_4"]
    before = outputs(model, "bert")
    names = [store.name for store in structure_of(model).stores]
    assert sorted(names) == sorted(stores_of(model))
    fewfold.compress(model, LowRank(targets=["encoder.layer.1.*"], rank=16, weighting="none"))
    assert sorted(stores_of(model)) == ["shared_factors", "shared_factors_2"]
    assert [store.name for store in structure_of(model).stores] == ["shared_factors", "shared_factors_2"]
    torch.testing.assert_close(outputs(model, "bert"), before, rtol=1e-3, atol=1e-3)
    fewfold.densify(model)
    assert not stores_of(model)


def test_vocabulary_heads_in_a_store_refuse_to_be_resized():
    model = make("llama_untied")
    fewfold.compress(model, SharedFactors(targets=["lm_head"], rank=8, weighting="none"))
    with pytest.raises(fewfold.TargetError, match="densify the model"):
        model.resize_token_embeddings(70)
