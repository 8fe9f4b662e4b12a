import pytest

from fewfold import DistillConfig, DistillError, LowRank, Recipe, RecipeError
from fewfold.distill.config import parse_limit, read_yaml, write_yaml
from fewfold.distill.presets import PRESETS, TASKS, limited, phases_of


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
    assert [phase.epochs for phase in phases] == [None, None]
    assert [phase.steps for phase in limited(phases_of(["general", "general"]), None, 10)] == [5, 5]


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
    for task, (first, second, length) in TASKS.items():
        one, two = phases_of(f"published-stage-2-{task}")
        assert (one.epochs, two.epochs, one.max_length, two.max_length) == (first, second, length, length)
        assert (one.schedule, two.schedule, one.learning_rate) == ("constant", "linear", 2e-5)
        assert [one.logits, one.labels, two.hidden, two.attention] == [None, None, [], []]
        assert (two.labels is None) == (task != "sts-b") == (two.logits is not None)


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
