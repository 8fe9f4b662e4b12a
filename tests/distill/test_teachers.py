import numpy as np
import pytest
import torch
from distill_models import config, make_student, make_teacher

from fewfold import DistillError
from fewfold.distill.outputs import Needs
from fewfold.distill.run import distil
from fewfold.distill.teachers import LiveTeacher


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
    anchors = 5 if "anchors" in terms else 0
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


def test_logits_are_cached(classifier, tokenizer, texts, tmp_path, calls):
    settings = config(hidden=[], logits={"temperature": 2.0}, validation=9)
    runs = []
    for cache in (None, tmp_path):
        history = distil(
            classifier, make_student(classifier), texts, config=settings, tokenizer=tokenizer, cache_teacher=cache
        ).histories[0]
        runs.append([point["loss"] for point in history.curve])
    assert runs[1] == pytest.approx(runs[0], rel=0.02)


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


def test_a_teacher_gives_no_gradients(teacher, tokenizer, texts):
    live = LiveTeacher(teacher.train(), Needs(last=True))
    batch = dict(tokenizer(texts[:2], padding=True, return_tensors="pt"))
    outputs = live(batch)
    assert outputs.last is not None
    assert not outputs.last.requires_grad
    assert not teacher.training
    assert torch.is_grad_enabled()
