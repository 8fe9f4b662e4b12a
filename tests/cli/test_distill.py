import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel

import fewfold
from fewfold.checkpoint.config import structure_of
from fewfold.distill import records
from fewfold.distill.watch import Watch


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": "the cat runs", "label": n % 2}) + "\n" for n in range(40)))
    return file


@pytest.fixture(scope="module")
def poor(encoder, tmp_path_factory):
    """A student with much to learn."""
    folder = tmp_path_factory.mktemp("poor") / "poor"
    model = fewfold.compress(fewfold.load(encoder), fewfold.LowRank(rank=4, weighting="none", stored_dtype="int8"))
    fewfold.save(model, folder, source=encoder)
    return SimpleNamespace(folder=folder)


def distill(run, encoder, small, texts, out, *more):
    return run("distill", encoder, small.folder, "--data", texts, "--out", out, "--steps", 12, *more)


def test_a_student_comes_nearer_to_its_teacher(run, encoder, poor, texts, tmp_path):
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("The small CAT sees under a dog.\n")
    out = tmp_path / "out"
    result = distill(run, encoder, poor, texts, out, "--exclude", held_out, "--json")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["data"]["excluded"] == 1
    assert content["data"]["name"] == texts.name
    (phase,) = content["phases"]
    assert (phase["steps"], phase["config"]["name"], phase["stopped"]) == (12, "general", "steps")
    assert phase["held_out"][-1]["loss"] < 0.95 * phase["held_out"][0]["loss"]
    assert json.loads((out / "distill.json").read_text()) == {k: v for k, v in content.items() if k != "folder"}
    assert (out / "distill.png").is_file()
    assert (out / "1_Pooling" / "config.json").is_file()
    assert "recovered by distillation `general`" in (out / "README.md").read_text()
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        dense, before, after = (
            AutoModel.from_pretrained(folder).eval()(ids).last_hidden_state for folder in (encoder, poor.folder, out)
        )
    assert float((after - dense).norm()) < float((before - dense).norm())


def test_the_table(run, encoder, small, texts, tmp_path):
    result = distill(run, encoder, small, texts, tmp_path / "out")
    assert result.code == 0, result.err
    assert "general" in result.out
    assert "→" in result.out
    assert "tokens/s" in result.out


@pytest.mark.full
def test_the_same_command_goes_on(run, encoder, small, texts, tmp_path, monkeypatch):
    config = tmp_path / "mine.yaml"
    config.write_text("hidden: {layers: last}\nbatch_size: 16\ncheckpoint_minutes: 1.0e-9\nlog_steps: 1\n")
    out, original = tmp_path / "out", Watch.on_step_end
    seen, killed = [], []

    def dying(self, args, state, control, **kwargs):
        seen.append(state.global_step)
        if seen == [1, 2, 3, 4, 5] and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(Watch, "on_step_end", dying)
    assert distill(run, encoder, small, texts, out, "--config", config).code == 130
    assert not out.exists()
    assert distill(run, encoder, small, texts, out, "--config", config).code == 0
    assert seen == [1, 2, 3, 4, 5, *range(5, 13)]
    assert len(json.loads((out / "distill.json").read_text())["phases"][0]["curve"]) == 12
    assert distill(run, encoder, small, texts, out, "--config", config).code == 1
    seen.clear()
    assert distill(run, encoder, small, texts, out, "--config", config, "--force", "--fresh").code == 0
    assert seen == [*range(1, 13)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "generall"], "one of the presets general"),
        (["--data", "missing.txt"], "--data missing.txt: no such file"),
        (["--exclude", "missing.txt"], "--exclude missing.txt: no such file"),
        (["--config", "task"], "a loss asks for labels"),
    ],
)
def test_errors_come_before_work(run, encoder, small, texts, tmp_path, options, message):
    result = distill(run, encoder, small, texts, tmp_path / "out", *options)
    assert result.code == 1
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_labelled_rows(run, encoder, small, labelled, tmp_path):
    result = distill(run, encoder, small, labelled, tmp_path / "out", "--config", "task")
    assert result.code == 1
    assert "has no logits" in result.err
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\nnone\n')
    assert "line 2 is no JSON" in distill(run, encoder, small, broken, tmp_path / "out").err


def test_other_tokens_are_refused(run, encoder, small, texts, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(encoder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = distill(run, other, small, texts, tmp_path / "out")
    assert result.code == 1
    assert "for example" in result.err


def test_compress_recovers_in_one_command(run, encoder, texts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    options = ["-r", "low-rank", "-b", "parameters=1/2 of linears", "-c", texts, "--recover", "10 steps", "--json"]
    result = run("compress", encoder, ".", *options)
    assert result.code == 0, result.err
    content = json.loads((out / "distill.json").read_text())
    assert content["phases"][0]["steps"] == 10
    assert content["data"]["name"] == texts.name
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    structure = structure_of(fewfold.load(out))
    assert [record["steps"] for record in structure.provenance["recoveries"]] == [10]


@pytest.mark.parametrize("own", [False, True])
def test_recovery_without_a_value(own, run, encoder, texts, tmp_path):
    """As the recipe says, else one pass over the texts; a limit is that of the recipe's own recovery."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recovery = "recover: {hidden: {layers: last}, batch_size: 4, name: mine}\n" if own else ""
    recipe.write_text(f"methods:\n- method: low_rank\n  rank: 4\n{recovery}")
    found = {}
    for name, options in {"bare": ["--recover", "--json"], "last": ["--json", "--recover"]}.items():
        result = run("compress", encoder, out / name, "-r", recipe, "-c", texts, *options)
        assert result.code == 0, result.err
        found[name] = json.loads((out / name / "distill.json").read_text())["phases"]
    assert [phase["config"]["name"] for phase in found["bare"]] == ["mine" if own else "general"]
    assert found["bare"][0]["steps"] == found["last"][0]["steps"] > 1
    limited = run("compress", encoder, out / "limited", "-r", recipe, "-c", texts, "--recover", "3 steps", "--json")
    (phase,) = json.loads(limited.out)["recovery"]["phases"]
    assert (phase["config"]["name"], phase["steps"]) == ("mine" if own else "general", 3)


def test_a_recovery_keeps_to_its_time(run, encoder, texts, tmp_path):
    options = ["-r", "low-rank", "-b", "parameters=1/2 of linears", "-c", texts, "--recover", "2s", "--json"]
    result = run("compress", encoder, tmp_path / "out", *options)
    (phase,) = json.loads(result.out)["recovery"]["phases"]
    assert phase["stopped"] == "time"
    assert phase["config"]["minutes"] == 2 / 60


def test_warnings_are_shown_once(run, encoder, small, texts, tmp_path):
    config = tmp_path / "mine.yaml"
    phase = "{hidden: {layers: last}, batch_size: 32, steps: 99999, minutes: 0.001, validation: 0}"
    config.write_text(f"phases:\n- {phase}\n- {phase}\n")
    result = run("distill", encoder, small.folder, "--data", texts, "--out", tmp_path / "out", "--config", config)
    assert result.code == 0, result.err
    assert " ".join(result.err.split()).count("times: give more text") == 1


def test_compress_says_what_recovery_did_and_starts_anew(run, encoder, texts, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    options = ["-r", "low-rank", "-b", "parameters=1/2 of linears", "-c", texts, "--recover"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "write_history", interrupted)
        assert run("compress", encoder, tmp_path / "out", *options, "10 steps").code == 130
    assert list(tmp_path.glob("out.checkpoints/phase-1/checkpoint-*"))
    other = tmp_path / "other.yaml"
    other.write_text("hidden: {layers: last}\nsteps: 4\nname: other\n")
    refused = run("compress", encoder, tmp_path / "out", *options, other)
    assert refused.code == 1
    assert "holds checkpoints of a run with other settings" in " ".join(refused.err.split())
    done = run("compress", encoder, tmp_path / "out", *options, other, "--fresh")
    assert done.code == 0, done.err
    assert re.search(r"other +│ +4 +│", done.out)


def test_local_recovery_comes_first(run, encoder, small, texts, tmp_path):
    result = distill(run, encoder, small, texts, tmp_path / "out", "--steps", 2, "--local", 3)
    assert result.code == 0, result.err
    phase = json.loads((tmp_path / "out" / "distill.json").read_text())["phases"][0]
    assert phase["config"]["local_steps"] == 3
    assert len(phase["local"]) == 12
    assert sum(phase["local"].values()) > 0


def test_a_recipe_recovers_on_texts_of_its_own(run, encoder, texts, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("methods:\n- method: low_rank\n  rank: 8\n  weighting: none\nrecover: 5 steps\n")
    result = run("compress", encoder, tmp_path / "out", "-r", recipe)
    assert result.code == 1
    assert "recovery needs texts" in result.err
    result = run("compress", encoder, tmp_path / "out", "-r", recipe, "--recover-data", texts, "--json")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "out" / "distill.json").read_text())["phases"][0]["steps"] == 5
