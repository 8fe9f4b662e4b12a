import copy
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from cases import METHODS, small_config
from tiny_models import inputs, make, outputs

import fewfold
from fewfold import Budget, BudgetError, Dense, LowRank, Recipe, RecipeError, SubvectorCodes, TargetError, compress
from fewfold.calibration.statistics import Statistics
from fewfold.checkpoint.config import structure_of
from fewfold.measure.parameters import stored_bytes, unique_parameters
from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.surgery.targets import find_targets, read_bias

LINEARS = 2 * (4 * 16 * 16 + 2 * 16 * 24)


@pytest.fixture
def bert():
    return make("bert")


@pytest.fixture
def texts():
    return [inputs("bert", batch=16), inputs("bert", batch=16, length=11)]


def run(model, recipe, budget=None, texts=None, **options):
    return compress(model, recipe, budget=budget, calibration=texts, cache=False, **options)


def stored(model, kind="linear"):
    rows = [row for row in fewfold.summary(model) if (row.layout == "table") == (kind == "embedding")]
    return sum(row.parameters for row in rows)


@pytest.mark.parametrize("share", ["1/2", "1/4"])
def test_a_share_of_the_linears_is_kept_and_used_up(bert, texts, share):
    run(bert, LowRank(), Budget(parameters=f"{share} of linears"), texts)
    limit = LINEARS / int(share[-1])
    assert limit - 40 < stored(bert) <= limit
    (budget,) = fewfold.summary(bert).budgets
    assert (budget["limit"], budget["reached"]) == (limit, stored(bert))


def test_ranks_differ_across_targets(bert, texts):
    run(bert, LowRank(), Budget(parameters="1/3 of linears"), texts)
    assert len({row.rank for row in fewfold.summary(bert)}) > 2


def test_whole_model_budgets_count_everything(bert, texts):
    limit = unique_parameters(bert) - 1500
    run(bert, LowRank(targets="all"), Budget(parameters=limit), texts)
    assert limit - 80 < unique_parameters(bert) <= limit


def test_bytes_follow_the_stored_dtype(texts):
    models = {}
    for dtype in ("fp32", "int8"):
        models[dtype] = run(make("bert"), LowRank(stored_dtype=dtype), Budget(bytes="1/2 of linears"), texts)
        assert sum(row.bytes for row in fewfold.summary(models[dtype])) <= LINEARS * 4 / 2
    assert stored(models["int8"]) > 1.3 * stored(models["fp32"])


def test_whole_file_in_bytes(bert, texts):
    limit = stored_bytes(bert) - 4000
    run(bert, LowRank(), Budget(bytes=limit), texts)
    assert limit - 400 < stored_bytes(bert) <= limit


def test_macs_of_a_part(bert, texts):
    run(bert, LowRank(targets="encoder.layer.1"), Budget(macs="1/2 of encoder.layer.1"), texts)
    assert sum(row.macs for row in fewfold.summary(bert)) <= LINEARS / 2 / 2
    assert {row.target.split(".")[2] for row in fewfold.summary(bert)} == {"1"}


def test_latency_records_what_was_measured(bert, texts):
    run(bert, LowRank(), Budget(latency="1000ms at 1x8 with 1 threads"), texts)
    step = fewfold.checkpoint.config.structure_of(bert).provenance["steps"][0]
    assert step["timing"]["threads"] == 1
    assert "whole model" in step["timing"]["milliseconds"]
    assert 0 < step["budgets"][0]["measured"] < 1000


def test_two_methods_share_one_budget(bert, texts):
    recipe = [LowRank(targets="*.attention.*"), LowRank(targets="linears", stored_dtype="int8")]
    run(bert, recipe, Budget(parameters="1/3 of linears"), texts)
    assert stored(bert) <= LINEARS / 3
    kept = {row.target.split(".")[3]: row.stored for row in fewfold.summary(bert)}
    assert kept == {"attention": "fp32", "intermediate": "int8", "output": "int8"}


def test_every_config_may_carry_its_own_budget(bert, texts):
    recipe = [
        LowRank(budget=Budget(parameters="1/4 of linears")),
        LowRank(targets="embeddings", budget=Budget(parameters="1/2 of embeddings")),
    ]
    run(bert, recipe, texts=texts)
    assert stored(bert) <= LINEARS / 4
    assert stored(bert, "embedding") <= 61 * 16 / 2
    assert len(fewfold.summary(bert).budgets) == 2


@pytest.mark.parametrize("order", [1, -1])
def test_a_budget_of_all_counts_what_another_decides(bert, texts, order):
    table, budgets = 61 * 16, [Budget(parameters="1/2 of embeddings"), Budget(parameters="1/2 of all")]
    run(bert, [LowRank(), LowRank(targets="embeddings")], budgets[::order], texts)
    reached = {one["asked"]: one for one in fewfold.summary(bert).budgets}["parameters=1/2 of all"]
    assert reached["limit"] == (LINEARS + table) / 2
    assert reached["reached"] == stored(bert) + stored(bert, "embedding") <= reached["limit"]
    assert stored(bert) > LINEARS / 2 - 100  # half of all is left to them, about


def test_only_tables_of_tokens_are_counted_in_texts(bert):
    targets = [target for target in find_targets(bert) if target.kind == "embedding"]
    by_name = {target.module.rpartition(".")[2]: target for target in targets}
    counted = {target.module: torch.full((target.rows,), 7) for target in targets}
    statistics = Statistics(token_counts=dict(counted))
    units = [SimpleNamespace(targets=tuple(targets))]

    def numbers(texts, **_):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    sys.modules["fewfold.compress"]._count_everything(bert, statistics, units, ["3 5 5"], numbers)
    found = statistics.token_counts
    assert found[by_name["word_embeddings"].module][[3, 5, 7]].tolist() == [1, 2, 0]
    for name in ("position_embeddings", "token_type_embeddings"):
        assert torch.equal(found[by_name[name].module], counted[by_name[name].module])


def test_packed_numbers_count_in_a_budget_of_the_whole_model(bert, texts):
    run(bert, Dense(targets="embeddings", stored_dtype="int8"))
    fewfold.pack(bert)
    limit = fewfold.summary(bert).parameters - 1500
    run(bert, LowRank(), Budget(parameters=limit), texts)
    assert limit - 80 < fewfold.summary(bert).parameters <= limit


def test_fixed_and_dense_units_count_in_a_whole_model_budget(bert, texts):
    limit = stored_bytes(bert) - 5000
    recipe = [Dense(targets="embeddings", stored_dtype="int8"), LowRank()]
    run(bert, recipe, Budget(bytes=limit), texts)
    assert limit - 400 < stored_bytes(bert) <= limit


@pytest.mark.parametrize(
    ("recipe", "budget", "message"),
    [
        (LowRank(rank=4), Budget(parameters="1/4 of linears"), "nothing to choose"),
        ("int8", Budget(parameters="1/4 of linears"), "nothing to choose"),
        (LowRank(), None, r"11 more have no size: give a budget .*of linears.*LowRank\(rank=…\)"),
        (SubvectorCodes(targets="embeddings"), None, r"has no size: .*of embeddings.*SubvectorCodes\(width=…\)"),
        (LowRank(), Budget(parameters="1/900 of linears"), "cannot be reached"),
        (LowRank(), Budget(parameters="1/4 of embeddings"), "covers no weight"),
        (LowRank(), ["bytes=20KB", "macs=3K"], "'bytes=20KB' decides the sizes of all weights"),
        ([LowRank(), LowRank(targets="embeddings")], Budget(parameters="1/4 of linears"), "no size"),
    ],
)
def test_impossible_budgets_leave_the_model_as_it_was(bert, texts, recipe, budget, message):
    before = copy.deepcopy(bert.state_dict())
    with pytest.raises(BudgetError, match=message):
        run(bert, recipe, budget, texts)
    after = bert.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not hasattr(bert.config, "quantization_config")


def test_a_config_with_rank_and_budget_is_refused(bert, texts):
    recipe = [LowRank(rank=2, budget=Budget(parameters="1/4 of linears")), LowRank(targets="embeddings", rank=4)]
    with pytest.raises(BudgetError):
        run(bert, recipe, texts=texts)


def test_without_fit_the_structure_is_fresh_and_even(bert):
    before = bert.encoder.layer[0].output.dense.weight.clone()
    run(bert, LowRank(), Budget(parameters="1/3 of linears"), fit=False, seed=3)
    assert LINEARS / 3 * 0.8 < stored(bert) <= LINEARS / 3
    module = bert.encoder.layer[0].output.dense
    assert torch.corrcoef(torch.stack([module.assembled_weight().flatten(), before.flatten()]))[0, 1].abs() < 0.3
    again = run(make("bert"), LowRank(), Budget(parameters="1/3 of linears"), fit=False, seed=3)
    assert torch.equal(again.encoder.layer[0].output.dense.up.weight, module.up.weight)


def test_no_calibration_warns_and_gives_the_svd(bert):
    weight = bert.encoder.layer[0].output.dense.weight.detach().double()
    with pytest.warns(UserWarning, match="no calibration data"):
        run(bert, LowRank(rank=5))
    left, values, right = torch.linalg.svd(weight)
    expected = (left[:, :5] * values[:5]) @ right[:5]
    torch.testing.assert_close(
        bert.encoder.layer[0].output.dense.assembled_weight().double(), expected, rtol=1e-4, atol=1e-5
    )


def test_metrics_that_need_too_much_memory_are_left_out(bert, texts, monkeypatch):
    main = sys.modules["fewfold.compress"]
    monkeypatch.setattr(main, "METRIC_BYTES", 100)
    with pytest.warns(UserWarning, match="on the inputs alone"):
        run(bert, LowRank(), Budget(parameters="1/3 of linears"), texts)
    inputs_only = run(make("bert"), LowRank(weighting="inputs"), Budget(parameters="1/3 of linears"), texts)
    assert [row.rank for row in fewfold.summary(bert)] == [row.rank for row in fewfold.summary(inputs_only)]


def test_same_seed_same_model(texts):
    first = run(make("bert"), LowRank(), Budget(parameters="1/3 of linears"), texts)
    second = run(make("bert"), LowRank(), Budget(parameters="1/3 of linears"), texts)
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_yaml_and_presets(bert, tmp_path):
    recipe = Recipe(methods=[LowRank(rank=3), Dense(targets="embeddings", stored_dtype="int4")], name="mine")
    recipe.to_yaml(tmp_path / "recipe.yaml")
    assert Recipe.of(tmp_path / "recipe.yaml") == recipe
    with pytest.warns(UserWarning, match="no calibration"):
        run(bert, str(tmp_path / "recipe.yaml"))
    assert {row.stored for row in fewfold.summary(bert)} == {"fp32", "int4"}
    run(make("bert"), "int8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [{method: low_rank, rnk: 3}]", "rnk"),
        ("methods: [{method: low_rnk}]", "low_rnk"),
        ("methods: [{method: low_rank, rank: 0}]", "rank"),
        ("methods: []", "methods"),
        ("", "empty"),
        ("methods: [", "no YAML"),
        ("{methods: [{method: low_rank}], budget: {parameters: 1/4}}", "bare ratio"),
    ],
)
def test_wrong_recipe_files_are_named(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        Recipe.of(path)


def test_unknown_names_say_what_exists(bert):
    with pytest.raises(RecipeError, match="low-rank-int8"):
        compress(bert, "low-rnk")
    with pytest.raises(RecipeError, match="cannot be read"):
        compress(bert, "missing.yaml")
    with pytest.raises(TargetError, match=r"encoder\.layer\.\*\.attention\.self\.query"):
        compress(bert, LowRank(targets="encoder.layers.*", rank=2))


def test_what_is_left_out_anyway_may_be_excluded(bert):
    run(bert, LowRank(rank=2, exclude=["pooler.*", "encoder.layer.1"], weighting="none"))
    assert {row.target.split(".")[2] for row in fewfold.summary(bert)} == {"0"}
    with pytest.raises(TargetError, match=r"exclude='decoder\.\*' names no weight"):
        run(make("bert"), LowRank(rank=2, exclude=["decoder.*"]))


def test_packing_changes_no_count(bert):
    run(bert, LowRank(rank=3, stored_dtype="int4", weighting="none"))
    before = fewfold.summary(bert)
    assert {row.parameters for row in before} == {3 * 32, 3 * 40}
    after = fewfold.summary(fewfold.pack(bert))
    assert (after.rows, after.parameters, after.dense_parameters) == (
        before.rows,
        before.parameters,
        before.dense_parameters,
    )
    assert after.bytes == before.bytes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["bert_mlm", "gpt2_lm"])
def test_fresh_weights_keep_the_biases_of_the_model(name, method):
    dense = make(name)
    fresh = compress(copy.deepcopy(dense), small_config(name, method, "fp32"), fit=False)
    replaced = [t for t in find_targets(dense) if t.kind == "linear" and read_bias(dense, t) is not None]
    assert len(replaced) > 5
    for target in replaced:
        module = fresh.get_submodule(target.module)
        parts = [part.bias for part in module.parts.values()] if hasattr(module, "parts") else [module.bias]
        if parts[0] is not None:  # else the block's own, shared
            assert torch.equal(torch.cat(parts), read_bias(dense, target)), target.name


def test_fresh_recurrent_layers_keep_their_open_gates():
    config = fewfold.EmbeddingSharing()
    lm = SlimLMForCausalLM(SlimLMConfig(vocab_size=200, hidden_size=16, num_layers=2, tie_word_embeddings=True))
    compress(lm, config, fit=False)
    assert float(lm.model.layers[1].input_map.bias[16:32].min()) == 1
    body = torch.nn.ModuleDict({"table": torch.nn.Embedding(200, 16), "lstm": torch.nn.LSTM(16, 16)})
    before = body["lstm"].bias_hh_l0.detach().clone()
    compress(body, config, fit=False)
    assert torch.equal(body["lstm"].bias_hh_l0, before)
    zeros = torch.nn.ModuleDict({"table": torch.nn.Embedding(200, 16), "lstm": torch.nn.LSTM(16, 16)})
    compress(zeros, fewfold.EmbeddingSharing(bias_init="zeros"), fit=False)
    assert float(zeros["lstm"].bias_hh_l0.abs().max()) == 0


def test_a_part_that_is_not_trained_stays_in_its_mode(bert, texts):
    bert.train().encoder.layer[0].eval()
    before = {name: module.training for name, module in bert.named_modules()}
    run(bert, LowRank(rank=4), texts=texts)
    after = {name: module.training for name, module in bert.named_modules()}
    assert {name: after[name] for name in before} == before
    assert not any(mode for name, mode in after.items() if name.startswith("encoder.layer.0"))


def test_models_of_one_config_stay_apart(tmp_path):
    config = make("bert").config
    teacher, student = tf.BertModel(config).eval(), tf.BertModel(config).eval()
    plain = outputs(teacher, "bert")
    run(student, LowRank(rank=4, weighting="none"))
    small = outputs(student, "bert")
    assert structure_of(teacher) is None
    assert student.encoder.config is student.config
    with pytest.raises(TargetError, match="not compressed"):
        fewfold.densify(teacher)
    for model, name, expected in ((teacher, "teacher", plain), (student, "student", small)):
        fewfold.save(model, tmp_path / name)
        assert torch.equal(outputs(fewfold.load(tmp_path / name), "bert"), expected)
    torch.testing.assert_close(outputs(fewfold.densify(student), "bert"), small, rtol=1e-4, atol=1e-5)


def test_a_dense_model_of_a_compressed_ones_config_has_no_records(tmp_path):
    model = run(make("bert_mlm"), [LowRank(rank=4, weighting="none"), Dense(targets="embeddings", stored_dtype="int8")])
    fresh = tf.AutoModelForMaskedLM.from_config(model.config).eval()
    assert not fewfold.summary(fresh).rows
    run(fresh, LowRank(targets="*.query", rank=3, weighting="none"))
    assert [row.target.split(".")[-1] for row in fewfold.summary(fresh)] == ["query", "query"]
    assert not structure_of(fresh).ties
    fewfold.save(fresh, tmp_path / "out")
    assert torch.equal(outputs(fewfold.load(tmp_path / "out"), "bert_mlm"), outputs(fresh, "bert_mlm"))
