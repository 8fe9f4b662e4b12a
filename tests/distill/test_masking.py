"""Distilling masked language models: what is hidden, what counts, and runs that go on."""

import copy

import numpy as np
import pytest
import torch
from distill_models import Killed, config, kill_at, make_student, make_teacher, parameters
from torch.nn.functional import cross_entropy, kl_div
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from fewfold import DistillError
from fewfold.distill.masked import HELD_OUT, HIDDEN, BatchMasking
from fewfold.distill.presets import phases_of
from fewfold.distill.run import distil

SETTINGS = {"hidden": [], "logits": {"temperature": 2.0}, "labels": {"weight": 0.5}, "masking": 0.3}


@pytest.fixture
def masked_teacher():
    return make_teacher(BertForMaskedLM)


def encoded(tokenizer, texts):
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"],
            "index": torch.arange(len(texts))}  # fmt: skip


def test_what_is_hidden_depends_on_step_and_text_alone(tokenizer, texts):
    masking = BatchMasking.of(config(**SETTINGS), tokenizer)
    batch = encoded(tokenizer, texts[:16])
    found = masking(batch, 3)
    hidden = found[HIDDEN] != -100
    assert torch.equal(found[HIDDEN][hidden], batch["input_ids"][hidden])
    assert torch.equal(found["input_ids"][~hidden], batch["input_ids"][~hidden])
    free = ~torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
    assert hidden.sum(1).tolist() == [max(1, round(0.3 * int(count))) for count in free.sum(1)]
    assert not (hidden & ~free).any()
    part = {name: tensor[5:9] for name, tensor in batch.items()}
    assert torch.equal(masking(part, 3)["input_ids"], found["input_ids"][5:9])
    assert not torch.equal(masking(batch, 4)["input_ids"], found["input_ids"])
    assert BatchMasking.of(config(), tokenizer) is None


def by_hand(student, teacher, batch):
    hidden = batch[HIDDEN] != -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = teacher(**inputs).logits[hidden]
    logits = student(**inputs).logits[hidden]
    divergence = kl_div(logits.div(2).log_softmax(-1), wanted.div(2).softmax(-1), reduction="batchmean") * 4
    return divergence + 0.5 * cross_entropy(logits, batch[HIDDEN][hidden])


@pytest.mark.parametrize(("accumulation", "sparse"), [(1, True), (4, True), (4, False)])
def test_a_step_follows_the_gradient_at_the_masked_tokens(
    masked_teacher, tokenizer, texts, accumulation, sparse, monkeypatch
):
    seen = []
    monkeypatch.setattr(BatchMasking, "sparse", lambda *_: sparse)
    start = make_student(masked_teacher)
    hand = copy.deepcopy(start).eval()
    settings = config(**SETTINGS, steps=1, clip=0, accumulation=accumulation, epsilon=1e-4, warmup=0,
                      schedule="constant")  # fmt: skip
    loss = by_hand(hand, masked_teacher, BatchMasking.of(settings, tokenizer)(encoded(tokenizer, texts[:8]), 1))
    optimizer = torch.optim.AdamW(hand.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-4)
    loss.backward()
    optimizer.step()
    masked_teacher.register_forward_hook(lambda module, args, output: seen.append(output.logits.shape[0]))
    student = copy.deepcopy(start)
    history = distil(masked_teacher, student, texts[:8], config=settings, tokenizer=tokenizer).histories[0]
    assert history.curve[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(parameters(student), parameters(hand), atol=1e-5, rtol=1e-5)
    # the first two try it, and tell this teacher from others
    assert set(seen[2:]) == {1 if sparse else 8 // accumulation}


def test_it_learns_and_held_out_masks_stay(masked_teacher, tokenizer, texts):
    student = make_student(masked_teacher)
    settings = config(**SETTINGS, steps=40, validation=16, log_steps=20, evaluate_minutes=1e-9, patience=1000)
    history = distil(masked_teacher, student, texts, config=settings, tokenizer=tokenizer).histories[0]
    first, last = history.first_and_last
    assert last < 0.8 * first
    held_out = np.sort(np.random.default_rng(0).permutation(96)[:9]).tolist()  # a tenth at most
    batch = encoded(tokenizer, [texts[place] for place in held_out])
    masked = BatchMasking.of(settings, tokenizer)(batch, HELD_OUT)
    with torch.no_grad():
        assert history.held_out[-1]["loss"] == pytest.approx(float(by_hand(student, masked_teacher, masked)), rel=1e-4)


@pytest.mark.parametrize("sparse", [True, False])
def test_parts_without_a_hidden_token_count_for_nothing(masked_teacher, tokenizer, texts, sparse, monkeypatch):
    monkeypatch.setattr(BatchMasking, "sparse", lambda *_: sparse)
    data, start = ["@ @ @"] * 6 + texts[:2], make_student(masked_teacher)  # unknown words are never hidden
    found, students = [], [copy.deepcopy(start) for _ in range(2)]
    for accumulation, student in zip((1, 4), students, strict=True):
        settings = config(**SETTINGS, steps=3, accumulation=accumulation, epsilon=1e-4)
        history = distil(masked_teacher, student, data, config=settings, tokenizer=tokenizer).histories[0]
        found.append([point["loss"] for point in history.curve])
    loss = by_hand(start.eval(), masked_teacher, BatchMasking.of(settings, tokenizer)(encoded(tokenizer, data), 1))
    assert found[0][0] == pytest.approx(loss.item(), rel=1e-5)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    torch.testing.assert_close(*map(parameters, students), atol=1e-5, rtol=1e-5)


def test_texts_that_hide_nothing_teach_nothing(masked_teacher, tokenizer):
    student = make_student(masked_teacher)
    history = distil(masked_teacher, student, ["@ @ @"] * 24, config=config(**SETTINGS, steps=1, validation=2),
                     tokenizer=tokenizer).histories[0]  # fmt: skip
    assert [point["loss"] for point in (*history.curve, *history.held_out)] == [0.0] * 3
    assert torch.equal(parameters(student), parameters(make_student(masked_teacher)))


def test_a_killed_run_goes_on(masked_teacher, tokenizer, texts, tmp_path, monkeypatch):
    settings = config(**SETTINGS, steps=6, checkpoint_minutes=1e-9)
    start = make_student(masked_teacher)
    straight, killed, resumed = (copy.deepcopy(start) for _ in range(3))
    distil(masked_teacher, straight, texts, config=settings, tokenizer=tokenizer)
    live = kill_at(monkeypatch, 4)
    with pytest.raises(Killed):
        distil(masked_teacher, killed, texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
    live()
    distil(masked_teacher, resumed, texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
    assert float((parameters(resumed) - parameters(straight)).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", [BertModel, BertForSequenceClassification])
def test_the_published_first_stage_masks_what_both_models_read(kind, tokenizer, texts, monkeypatch):
    teacher, seen = make_teacher(kind), []
    student = make_student(teacher)
    for model in (teacher, student):
        model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
        )
    stage = phases_of("published-stage-1")[0].changed(batch_size=len(texts), max_length=16)
    history = distil(teacher, student, texts, config=stage, tokenizer=tokenizer, steps=1).histories[0]
    assert {"hidden_last", "attention_scores"} <= set(history.curve[0])
    first, second = seen[-2:]
    assert torch.equal(first, second)
    words = (first != tokenizer.pad_token_id) & (first != tokenizer.cls_token_id) & (first != tokenizer.sep_token_id)
    assert 0.08 < float((first[words] == tokenizer.mask_token_id).double().mean()) < 0.16


def test_refusals(masked_teacher, tokenizer, texts, tmp_path):
    with pytest.raises(ValueError, match="reduction='tokens'"):
        config(**SETTINGS, reduction="examples")
    with pytest.raises(DistillError, match="leave out the cache, or masking"):
        distil(masked_teacher, make_student(masked_teacher), texts, config=config(**SETTINGS), tokenizer=tokenizer,
               cache_teacher=tmp_path)  # fmt: skip
    without = copy.deepcopy(tokenizer)
    without.mask_token = None
    with pytest.raises(DistillError, match="mask token"):
        distil(masked_teacher, make_student(masked_teacher), texts, config=config(**SETTINGS), tokenizer=without)
