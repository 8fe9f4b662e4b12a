import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from distill_models import Killed, config, make_student, make_teacher
from transformers import BertForMaskedLM

from fewfold import DistillError, FewfoldWarning
from fewfold.distill import run
from fewfold.distill.examples import Examples
from fewfold.distill.outputs import Needs
from fewfold.distill.run import distil
from fewfold.distill.teachers import LiveTeacher, _write, cached_teacher, move
from fewfold.distill.tokens import tokenise


@pytest.fixture
def calls(monkeypatch):
    """How many texts the teacher was run on."""
    seen = []
    original = LiveTeacher.__call__

    def counting(self, batch):
        seen.append(len(batch["input_ids"]))
        return original(self, batch)

    monkeypatch.setattr(LiveTeacher, "__call__", counting)
    return seen


@pytest.mark.parametrize(
    "terms",
    [
        {"hidden": [{}]}, {"hidden": [], "sentence": {}}, {"hidden": [{}], "sentence": {}},
        {"hidden": [], "anchors": {"count": 5}},
    ],
)  # fmt: skip
def test_a_cached_teacher_teaches_the_same(terms, teacher, tokenizer, texts, tmp_path, calls):
    settings = config(steps=12, epsilon=1e-4, **terms)
    live = distil(teacher, make_student(teacher), texts, config=settings, tokenizer=tokenizer).histories[0]
    anchors = 2 + 5 if "anchors" in terms else 0  # tried on two texts first
    assert sum(calls) == 12 * 8 + anchors
    for expected in (96, 0):  # the second run finds what the first has written
        calls.clear()
        student = make_student(teacher)
        cached = distil(
            teacher, student, texts, config=settings, tokenizer=tokenizer, cache_teacher=tmp_path
        ).histories[0]
        assert sum(calls) == expected + anchors
        found = [point["loss"] for point in cached.curve]
        assert found == pytest.approx([point["loss"] for point in live.curve], rel=0.02)
    (array,) = tmp_path.glob("*/*.npy")
    kept = np.load(array, mmap_mode="r")
    assert kept.dtype == np.float16
    tokens = sum(len(row) for row in tokenizer(texts)["input_ids"])
    assert kept.shape == ((tokens, 16) if terms["hidden"] else (96, 16))


@pytest.mark.parametrize("count_padding", [False, True])
def test_logits_are_cached(count_padding, classifier, tokenizer, texts, tmp_path, calls):
    settings = config(hidden=[], logits={"temperature": 2.0}, count_padding=count_padding, validation=9)
    runs = []
    for cache in (None, tmp_path):
        history = distil(
            classifier, make_student(classifier), texts, config=settings, tokenizer=tokenizer, cache_teacher=cache
        ).histories[0]
        runs.append([point["loss"] for point in history.curve])
    assert runs[1] == pytest.approx(runs[0], rel=0.02)


@pytest.mark.parametrize(
    ("left", "seconds", "message"), [(0, None, r"would write 0\.0 GB"), (10**9, 1e-9, "takes about")]
)
def test_a_cache_that_cannot_be_filled_is_refused(
    left, seconds, message, teacher, tokenizer, texts, tmp_path, monkeypatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=left))
    tokens = tokenise(Examples(texts), tokenizer, 32)
    with pytest.raises(DistillError, match=message):
        cached_teacher(tmp_path, teacher, Needs(last=True), False, tokens, seconds)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_costs_more_than_it_saves_is_told(teacher, tokenizer, texts, tmp_path):
    options = {"tokenizer": tokenizer, "cache_teacher": tmp_path}
    with pytest.warns(FewfoldWarning, match="over all 96 texts, and this run reads 88"):
        distil(teacher, make_student(teacher), texts, config=config(steps=11), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewfoldWarning)
        distil(teacher, make_student(teacher), texts, config=config(steps=11), **options)  # it is there
        other = make_teacher(seed=1)
        distil(other, make_student(other), texts, config=config(steps=12), **options)


def test_tokens_logits_are_not_cached(tokenizer, texts, tmp_path):
    teacher = make_teacher(BertForMaskedLM)
    with pytest.raises(DistillError, match="gives some for every token: leave out the cache"):
        distil(
            teacher, make_student(teacher), texts, config=config(hidden=[], logits={}), tokenizer=tokenizer,
            cache_teacher=tmp_path,
        )  # fmt: skip


def test_another_teacher_has_another_cache(tokenizer, texts, tmp_path, calls):
    for seed in (0, 1):
        teacher = make_teacher(seed=seed)
        distil(teacher, make_student(teacher), texts, config=config(), tokenizer=tokenizer, cache_teacher=tmp_path)
    assert sum(calls) == 2 * 96


def test_what_is_not_kept_is_refused(teacher, tokenizer, texts, tmp_path):
    for terms in ({"hidden": [{"layers": "all"}]}, {"hidden": [], "attention": [{}]}):
        with pytest.raises(DistillError, match="leave the losses on other layers and on attention out"):
            distil(
                teacher, make_student(teacher), texts, config=config(**terms), tokenizer=tokenizer,
                cache_teacher=tmp_path,
            )  # fmt: skip


@pytest.mark.parametrize("terms", [{"hidden": [{}]}, {"hidden": [], "sentence": {}}])
def test_padding_that_counts_is_not_kept(terms, teacher, tokenizer, texts, tmp_path):
    with pytest.raises(DistillError, match="leave out the cache, or count_padding"):
        distil(
            teacher, make_student(teacher), texts, config=config(count_padding=True, **terms), tokenizer=tokenizer,
            cache_teacher=tmp_path,
        )  # fmt: skip


def test_a_finished_cache_stays_whatever_becomes_of_a_later_run(teacher, tokenizer, texts, tmp_path, monkeypatch):
    """Both runs found no cache when they asked, and the second writes once the first has ended."""
    tokens, needs, seen = tokenise(Examples(texts), tokenizer, 32), Needs(last=True), []
    mapped = cached_teacher(tmp_path, teacher, needs, True, tokens).arrays["sentence"]
    (place,) = tmp_path.iterdir()
    numbers, live = np.array(mapped), LiveTeacher.__call__

    def dying(self, batch):
        seen.append(len(batch["input_ids"]))
        if len(seen) == 2:
            raise Killed
        return live(self, batch)

    monkeypatch.setattr(LiveTeacher, "__call__", dying)
    for _ in range(2):  # the first dies, the second does not
        with pytest.raises(Killed) if not seen else nullcontext():
            _write(place, LiveTeacher(teacher, needs), ["sentence"], tokens)
        assert list(tmp_path.iterdir()) == [place]
        assert np.array_equal(mapped, numbers)
        assert np.array_equal(cached_teacher(tmp_path, teacher, needs, True, tokens).arrays["sentence"], numbers)
    assert seen == [64, 32, 64, 32]
    assert np.abs(numbers).sum(1).all()


def test_a_teacher_is_where_training_is_before_it_is_asked(teacher, tokenizer, texts, tmp_path, calls, monkeypatch):
    moved = []

    def noting(model, device):
        moved.append((model, device.type, len(calls)))
        move(model, device)

    monkeypatch.setattr(run, "move", noting)
    settings = config(hidden=[{}], anchors={"count": 5}, steps=1)
    distil(teacher, make_student(teacher), texts, config=settings, tokenizer=tokenizer, cache_teacher=tmp_path)
    assert calls == [2, 5, 64, 32]
    assert moved == [(teacher, "cuda" if torch.cuda.is_available() else "cpu", 1)]


def test_a_teacher_gives_no_gradients(teacher, tokenizer, texts):
    live = LiveTeacher(teacher.train(), Needs(last=True))
    batch = dict(tokenizer(texts[:2], padding=True, return_tensors="pt"))
    outputs = live(batch)
    assert outputs.last is not None
    assert not outputs.last.requires_grad
    assert not teacher.training
    assert torch.is_grad_enabled()
