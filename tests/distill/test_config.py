import pytest

from fewfold import DistillConfig, DistillError, LowRank, Recipe, RecipeError
from fewfold.distill.config import parse_limit, read_yaml, write_yaml
from fewfold.distill.presets import PRESETS, limited, phases_of, planned


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_yaml(name, tmp_path):
    phases = phases_of(name)
    write_yaml(phases, tmp_path / "mine.yaml")
    assert phases_of(tmp_path / "mine.yaml") == phases
    assert all(phase.source for phase in phases)


def test_one_phase_in_yaml(tmp_path):
    (tmp_path / "one.yaml").write_text("hidden: {layers: all}\nlearning_rate: 2.0e-4\n")
    (phase,) = read_yaml(tmp_path / "one.yaml")
    assert phase == DistillConfig(hidden=[{"layers": "all"}], learning_rate=2e-4)


def test_limits():
    assert parse_limit("20min") == parse_limit("20 minutes") == {"minutes": 20.0}
    assert parse_limit("1.5h") == {"minutes": 90.0}
    assert parse_limit("90 s") == {"minutes": 1.5}
    assert parse_limit("300 steps") == {"steps": 300}
    assert parse_limit("20 miles") is None
    assert [phase.minutes for phase in phases_of(5)] == [5.0]
    assert [(phase.name, phase.steps) for phase in phases_of("30 steps")] == [("general", 30)]


def test_a_limit_is_shared_by_epochs():
    phases = limited(phases_of("published-stage-2-sts-b"), 60, None)
    assert [phase.minutes for phase in phases] == [45.0, 15.0]
    assert [phase.epochs for phase in phases] == [15, 5]  # whichever ends first
    assert [phase.steps for phase in limited(phases_of(["general", "general"]), None, 10)] == [5, 5]
    own = [DistillConfig(hidden=[{}], steps=7, minutes=3), DistillConfig(hidden=[{}], epochs=2)]
    assert [(one.steps, one.epochs, one.minutes) for one in limited(own, 20, None)] == [(7, None, 10), (None, 2, 10)]
    assert [(one.steps, one.epochs, one.minutes) for one in limited(own, None, 4)] == [(2, None, 3), (2, None, None)]


def test_a_limit_is_that_of_a_recipes_own_recovery():
    own = [DistillConfig(hidden=[{}], epochs=3, name="mine"), DistillConfig(hidden=[{}], epochs=1, name="then")]
    assert planned(None, own) == own
    assert planned([], own) == []
    assert [(one.name, one.minutes, one.epochs) for one in planned("20min", own)] == [("mine", 15, 3), ("then", 5, 1)]
    assert [(one.name, one.minutes) for one in planned(8, own)] == [("mine", 6), ("then", 2)]
    assert [(one.name, one.steps) for one in planned("8 steps", own)] == [("mine", 6), ("then", 2)]
    assert [one.name for one in planned("task", own)] == ["task"]
    assert [(one.name, one.minutes) for one in planned("20min", [])] == [("general", 20)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("generall", "one of the presets general"),
        ({"hidden": [], "logits": None}, "no loss"),
        ({"hidden": {"layer": "last"}}, r"hidden\.0\.layer: Extra inputs"),
        ({"hidden": {}, "batch_size": 10, "accumulation": 3}, "does not divide batch_size=10"),
        ({"hidden": {}, "minutes": 0}, "minutes"),
        ({"hidden": {}, "patience": 2, "validation": 0}, "patience counts measurements on held-out texts"),
        ("missing.yaml", "cannot be read"),
        ("0min", "minutes"),
        ("0 steps", "steps"),
        (0, "minutes"),
        ([], "is no distillation config"),
        (True, "is no distillation config"),
    ],
)
def test_wrong_configs(source, message):
    with pytest.raises(DistillError, match=message):
        phases_of(source)


def test_published_values():
    (stage,) = phases_of("published-stage-1")
    assert (stage.learning_rate, stage.batch_size, stage.epochs, stage.max_length) == (1e-4, 256, 2, 128)
    assert (stage.warmup, stage.schedule, stage.weight_decay, stage.epsilon) == (0.1, "linear", 0.01, 1e-6)
    assert (stage.optimizer, stage.clip, stage.clip_by, stage.dropout) == ("bert_adam", 1.0, "tensor", True)
    assert stage.masking == 0.15
    assert (stage.hidden[0].layers, stage.attention[0].layers, stage.attention[0].kind) == ("last", "last", "scores")
    both = {"reduction": "examples", "count_padding": True, "betas": (0.9, 0.999), "validation": 0}
    assert {name: getattr(stage, name) for name in both} == both
    assert (stage.hidden[0].weight, stage.attention[0].weight) == (32, 32)


@pytest.mark.parametrize(
    ("task", "first", "second", "length"),
    [
        ("cola", 20, 30, 64), ("mnli", 3, 3, 128), ("mrpc", 20, 20, 128), ("sst-2", 5, 5, 64), ("sts-b", 15, 5, 128),
        ("qqp", 3, 3, 128), ("qnli", 10, 10, 128), ("rte", 20, 20, 128),
    ],
)  # fmt: skip
def test_published_values_of_the_second_stage(task, first, second, length):
    one, two = phases_of(f"published-stage-2-{task}")
    shared = {
        "optimizer": "bert_adam", "epsilon": 1e-6, "weight_decay": 0.01, "clip": 1.0, "clip_by": "tensor",
        "dropout": True, "batch_size": 32, "seed": 526, "reduction": "examples", "count_padding": True,
        "learning_rate": 2e-5, "max_length": length, "betas": (0.9, 0.999),
    }  # fmt: skip
    for phase in (one, two):
        assert {name: getattr(phase, name) for name in shared} == shared
    assert (one.epochs, two.epochs, one.warmup, two.warmup) == (first, second, 0.0, 0.1)
    assert (one.schedule, two.schedule) == ("constant", "linear")
    assert (one.hidden[0].weight, one.attention[0].weight) == (32, 32)
    assert (one.hidden[0].layers, one.attention[0].layers, one.attention[0].kind) == ("last", "last", "scores")
    assert [one.logits, one.labels, two.hidden, two.attention] == [None, None, [], []]
    assert (two.labels is None) == (task != "sts-b") == (two.logits is not None)
    if two.logits is not None:
        assert (two.logits.kind, two.logits.temperature, two.logits.weight) == ("soft_cross_entropy", 1.0, 1.0)


def test_a_recipe_carries_its_recovery(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("methods:\n- method: low_rank\n  rank: 4\nrecover: 20min\n")
    recipe = Recipe.of(file)
    assert [(phase.name, phase.minutes) for phase in recipe.recover] == [("general", 20.0)]
    recipe.to_yaml(file)
    assert Recipe.of(file) == recipe
    assert Recipe(methods=[LowRank()]).recover == []
    two = Recipe(methods=[LowRank()], recover=["general", {"hidden": {}, "steps": 3}])
    two.to_yaml(file)
    assert Recipe.of(file).recover == two.recover
    file.write_text("methods:\n- method: low_rank\nrecover: often\n")
    with pytest.raises(RecipeError, match="'often' is no distillation config"):
        Recipe.of(file)
