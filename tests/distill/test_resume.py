"""Checkpoints: what was interrupted ends where an uninterrupted run ends."""

import copy
import json
import shutil

import pytest
import torch
from distill_models import Killed, config, kill_at, make_student, make_teacher, parameters

import fewfold
from fewfold import DistillError
from fewfold.distill.checkpoints import STATE
from fewfold.distill.run import distil
from fewfold.distill.watch import Watch
from fewfold.training.complete import newest


@pytest.mark.parametrize("stored", ["fp32", "int8"])
@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_killed_run_ends_where_an_uninterrupted_one_ends(
    stored, accumulation, teacher, tokenizer, texts, tmp_path, monkeypatch
):
    settings = config(
        steps=9, accumulation=accumulation, anchors={"count": 8}, rates="by_size", whole_rate_loss=100.0,
        checkpoint_minutes=1e-9, validation=8, patience=50, learning_rate=5e-2,
    )  # fmt: skip
    start = make_student(teacher, stored)
    straight = copy.deepcopy(start)
    whole = distil(teacher, straight, texts, config=settings, tokenizer=tokenizer)
    live = kill_at(monkeypatch, 5)
    killed, folder = copy.deepcopy(start), tmp_path / "checkpoints"
    with pytest.raises(Killed):
        distil(teacher, killed, texts, config=settings, tokenizer=tokenizer, checkpoints=folder)
    live()
    assert sorted(path.name for path in (folder / "phase-1").iterdir()) == ["checkpoint-3", "checkpoint-4"]
    resumed = copy.deepcopy(start)
    outcome = distil(teacher, resumed, texts, config=settings, tokenizer=tokenizer, checkpoints=folder)
    assert float((parameters(resumed) - parameters(straight)).abs().max()) < 1e-6
    assert float((parameters(straight) - parameters(start)).abs().max()) > 1e-3
    first, second = whole.histories[0], outcome.histories[0]
    assert [point["step"] for point in second.curve] == list(range(1, 10))
    assert [point["loss"] for point in second.curve] == pytest.approx([p["loss"] for p in first.curve], abs=1e-6)
    assert second.tokens == first.tokens


def test_an_unfinished_checkpoint_is_passed_over(teacher, tokenizer, texts, tmp_path, monkeypatch):
    settings = config(steps=6, checkpoint_minutes=1e-9)
    live = kill_at(monkeypatch, 5)
    with pytest.raises(Killed):
        distil(teacher, make_student(teacher), texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
    live()
    (tmp_path / "phase-1" / "checkpoint-4" / STATE).unlink()
    (tmp_path / "phase-1" / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    resumed, straight = make_student(teacher), make_student(teacher)
    distil(teacher, resumed, texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
    distil(teacher, straight, texts, config=settings, tokenizer=tokenizer)
    assert float((parameters(resumed) - parameters(straight)).abs().max()) < 1e-6


def test_an_unfinished_checkpoint_never_drives_out_a_finished_one(teacher, tokenizer, texts, tmp_path, monkeypatch):
    """Two kills: one in the midst of a checkpoint, and one as the next is written."""
    settings, folder = config(steps=6, checkpoint_minutes=1e-9), tmp_path / "phase-1"
    live = kill_at(monkeypatch, 3)
    with pytest.raises(Killed):
        distil(teacher, make_student(teacher), texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
    live()
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-4")
    (folder / "checkpoint-4" / STATE).unlink()
    monkeypatch.setattr(Watch, "on_save", lambda *args, **options: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        distil(teacher, make_student(teacher), texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
    assert newest(folder, STATE) == folder / "checkpoint-2"


def test_another_runs_checkpoints_are_refused(teacher, tokenizer, texts, tmp_path, monkeypatch):
    live = kill_at(monkeypatch, 3)
    options = {"tokenizer": tokenizer, "checkpoints": tmp_path}
    with pytest.raises(Killed):
        distil(teacher, make_student(teacher), texts, config=config(checkpoint_minutes=1e-9), **options)
    live()
    for changed, data in ((config(learning_rate=0.02), texts), (config(), texts[:90])):
        with pytest.raises(DistillError, match="other settings, data or student"):
            distil(teacher, make_student(teacher), data, config=changed, **options)
    with pytest.raises(DistillError, match="resume=False"):
        distil(teacher, make_student(teacher, rank=3), texts, config=config(), **options)


@pytest.mark.parametrize("other", ["student", "teacher"])
def test_checkpoints_of_another_model_of_the_same_shape_are_refused(
    other, teacher, tokenizer, texts, tmp_path, monkeypatch
):
    live = kill_at(monkeypatch, 3)
    options = {"tokenizer": tokenizer, "checkpoints": tmp_path, "config": config(checkpoint_minutes=1e-9)}
    with pytest.raises(Killed):
        distil(teacher, make_student(teacher), texts, **options)
    live()
    stranger = make_teacher(seed=1)
    with pytest.raises(DistillError, match=f"another {other}"):
        distil(*((teacher, make_student(stranger)) if other == "student" else (stranger, make_student(teacher))),
               texts, **options)  # fmt: skip
    near = make_student(teacher)
    with torch.no_grad():  # as far off as another number of threads
        for parameter in near.parameters():
            parameter.mul_(1 + 1e-6)
    distil(teacher, near, texts, **options)


def test_a_finished_phase_is_not_trained_again(teacher, tokenizer, texts, tmp_path):
    first, second = make_student(teacher), make_student(teacher)
    for student in (first, second):
        distil(teacher, student, texts, config=config(), tokenizer=tokenizer, checkpoints=tmp_path)
    assert torch.equal(parameters(first), parameters(second))


def test_a_phase_that_the_clock_ended_is_not_trained_again(teacher, tokenizer, texts, tmp_path):
    settings, students, histories = config(steps=None, minutes=0.01, validation=9), [], []

    def run(settings):
        students.append(make_student(teacher))
        outcome = distil(teacher, students[-1], texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
        histories.append(outcome.histories[0])

    for _ in range(2):
        run(settings)
    first, second = histories
    assert first.stopped == second.stopped == "time"
    assert second.steps == first.steps
    assert torch.equal(*map(parameters, students))
    run(settings.changed(minutes=60, steps=first.steps + 2))
    assert (histories[2].stopped, histories[2].steps) == ("steps", first.steps + 2)
    run(settings)
    assert histories[3].steps == first.steps + 2


def test_a_phase_that_ended_early_gives_its_best_state_again(teacher, tokenizer, texts, tmp_path):
    """As when a later phase was killed: no further step, and not the last state."""
    settings = config(steps=200, learning_rate=0.3, warmup=0, validation=9, patience=2, evaluate_minutes=1e-9)
    students, histories = [], []
    for _ in range(2):
        student = make_student(teacher)
        outcome = distil(teacher, student, texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
        students.append(parameters(student))
        histories.append(outcome.histories[0])
    assert histories[0].stopped == histories[1].stopped == "no gain"
    assert histories[0].steps == histories[1].steps < 200
    assert torch.equal(*students)
    assert histories[1].first_and_last == histories[0].first_and_last


def test_distill_leaves_the_model_and_no_checkpoints(teacher, tokenizer, texts, tmp_path):
    student = make_student(teacher, "int8")
    out = tmp_path / "out"
    assert fewfold.distill(teacher, student, texts, config=config(), tokenizer=tokenizer, out=out) is student
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    loaded = fewfold.load(out)
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        difference = float((loaded(ids).last_hidden_state - student(ids).last_hidden_state).abs().max())
    assert difference < 0.1
    content = json.loads((out / "distill.json").read_text())
    assert content["phases"][0]["steps"] == 6
    assert content["tokens"] == content["phases"][0]["tokens"] > 6 * 8 * 5
    assert content["data"]["texts"] == 96
    assert {"cpu", "torch", "fewfold"} <= set(content["environment"])
    assert (out / "distill.png").read_bytes().startswith(b"\x89PNG")
    (record,) = loaded.config.quantization_config.structure.provenance["recoveries"]
    assert record["steps"] == 6
