"""Whole runs: what is learned, what ends them, and what stops them before they start."""

import copy
import time
import warnings

import pytest
import torch
from distill_models import Killed, config, kill_at, make_student, make_teacher, make_tokenizer, parameters, sentences
from transformers import BertForSequenceClassification, BertModel, BertTokenizerFast, T5Config, T5Model

import fewfold
from fewfold import DistillError, EmbeddingSharing, LowRank, SharedFactors, progress
from fewfold.distill import checks
from fewfold.distill.pupil import dense_tables
from fewfold.distill.run import distil
from fewfold.distill.trainer import DistillTrainer
from fewfold.distill.watch import Watch
from fewfold.store import stores_of
from fewfold.stored import pack
from fewfold.training.rates import rate_factors
from fewfold.training.sharded import exact_state


def losses(history):
    return [point["loss"] for point in history.curve]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"batch_size": 256}, "do not fill one batch of 256"), ({"hidden": [], "logits": {}}, "no logits"),
        ({"hidden": [{"layers": [9]}]}, "layers 9"), ({"cache": True, "hidden": [{"layers": "all"}]}, "other layers"),
        ({"local_steps": 2, "dense": True}, "the student is not compressed"),
    ],
)  # fmt: skip
def test_no_phase_trains_where_a_later_one_cannot(second, message, teacher, tokenizer, texts, tmp_path):
    settings = dict(second)
    cache, dense = (tmp_path if settings.pop("cache", False) else None), settings.pop("dense", False)
    student = copy.deepcopy(teacher) if dense else make_student(teacher)
    before = parameters(student)
    with pytest.raises(DistillError, match=message):
        distil(teacher, student, texts, config=[config(), config(**settings)], tokenizer=tokenizer, cache_teacher=cache)
    assert torch.equal(parameters(student), before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_teacher_in_half_precision_teaches_a_student_in_bf16(half, teacher, tokenizer, texts):
    curves = []
    for dtype in (torch.float32, half):
        settings = config(bf16=True, steps=3, learning_rate=1e-6)
        own = copy.deepcopy(teacher).to(dtype)
        outcome = distil(own, make_student(teacher, rank=2), texts, config=settings, tokenizer=tokenizer)
        assert next(own.parameters()).dtype == dtype
        curves.append(losses(outcome.histories[0]))
    assert curves[1] == pytest.approx(curves[0], rel=0.05)


def test_the_seed_decides_a_run_with_a_projection(teacher, tokenizer, texts):
    """Whatever random numbers were drawn before."""
    curves = []
    for state in (1, 2):
        torch.manual_seed(state)
        student = make_teacher(width=8, seed=1)
        torch.manual_seed(state)
        outcome = distil(teacher, student, texts, config=config(projection=True, steps=3), tokenizer=tokenizer)
        curves.append(losses(outcome.histories[0]))
    assert curves[0] == curves[1]


def test_a_limit_of_minutes_leaves_a_configs_own_end(teacher, tokenizer, texts):
    settings = config(steps=None, epochs=1)
    history = distil(teacher, make_student(teacher), texts, config=settings, tokenizer=tokenizer, minutes=60).histories[
        0
    ]
    assert (history.stopped, history.steps) == ("steps", 96 // 8)


@pytest.mark.parametrize("method", ["low_rank", "shared", "packed int8"])
def test_a_student_learns_and_all_its_stored_tensors_train(method, teacher, tokenizer, texts):
    if method == "shared":
        student = fewfold.compress(copy.deepcopy(teacher), SharedFactors(rank=6, weighting="none"))
    else:
        student = make_student(teacher, "int8" if "int8" in method else "fp32")
    if method == "packed int8":
        pack(student)
    outcome = distil(teacher, student, texts, config=config(steps=40, validation=9, log_steps=20), tokenizer=tokenizer)
    history = outcome.histories[0]
    first, last = history.first_and_last
    assert last < 0.7 * first
    assert history.stopped == "steps"
    assert outcome.data == {
        "name": "unnamed",
        "texts": 96,
        "tokens": outcome.data["tokens"],
        "held_out": 9,
        "excluded": 0,
    }
    fresh = make_student(teacher) if method != "shared" else fewfold.compress(
        copy.deepcopy(teacher), SharedFactors(rank=6, weighting="none")
    )  # fmt: skip
    before = dict(fresh.named_parameters())
    still = [
        name for name, parameter in student.named_parameters() if torch.allclose(parameter, before[name], atol=1e-4)
    ]
    # nothing reaches the pooler, and a key's bias changes no attention
    assert all(name.startswith("pooler") or name.endswith("key.up.bias") or name.endswith("key.bias") for name in still)
    reference = teacher(torch.arange(2, 9)[None])
    assert not reference.last_hidden_state.isnan().any()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_step_follows_the_gradient_of_the_whole_batch(teacher, tokenizer, texts):
    """One step of plain Adam, computed by hand, in one part and in four."""
    start = make_student(teacher)
    by_hand = copy.deepcopy(start).eval()
    batch = tokenizer(texts[:8], padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-4)
    wanted = teacher(**batch).last_hidden_state.detach()[real]
    loss = (by_hand(**batch).last_hidden_state[real] - wanted).square().mean()
    loss.backward()
    optimizer.step()
    for accumulation in (1, 4):
        student = copy.deepcopy(start)
        settings = config(steps=1, clip=0, accumulation=accumulation, epsilon=1e-4, warmup=0, schedule="constant")
        history = distil(teacher, student, texts[:8], config=settings, tokenizer=tokenizer).histories[0]
        assert losses(history) == pytest.approx([loss.item()], rel=1e-5)
        for (name, found), expected in zip(student.named_parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)


def test_larger_numbers_take_as_much_larger_steps(teacher, tokenizer, texts):
    start = make_student(teacher)
    with torch.no_grad():  # the same weight out of unequal factors
        start.encoder.layer[0].output.dense.up.weight.mul_(4)
        start.encoder.layer[0].output.dense.down.weight.div_(4)
    taken = []
    for rates in ("equal", "by_size"):
        student = copy.deepcopy(start)
        # far from where Adam's step is the gradient's sign, so that its size is seen
        settings = config(steps=1, warmup=0, schedule="constant", epsilon=1e-4, rates=rates, learning_rate=1e-4)
        history = distil(teacher, student, texts[:8], config=settings, tokenizer=tokenizer).histories[0]
        assert history.curve[0]["learning_rate"] == 1e-4
        before = dict(start.named_parameters())
        taken.append({name: (p - before[name]).detach() for name, p in student.named_parameters()})
    factors = rate_factors(start)
    assert factors["encoder.layer.0.output.dense.up.weight"] > 4 * factors["encoder.layer.1.output.dense.up.weight"] / 3
    for name, step in taken[0].items():
        torch.testing.assert_close(taken[1][name], step * factors.get(name, 1.0), rtol=2e-2, atol=2e-6, msg=name)
    assert len(set(factors.values())) > 3


def test_a_student_near_its_teacher_takes_smaller_steps(teacher, tokenizer, texts):
    start = make_student(teacher)

    def run(**changes):
        student = copy.deepcopy(start)
        settings = config(**{"steps": 4, "validation": 8, "warmup": 0.5, "learning_rate": 1e-2, **changes})
        history = distil(teacher, student, texts, config=settings, tokenizer=tokenizer).histories[0]
        return parameters(student), history

    whole, history = run()
    loss = history.held_out[0]["loss"]
    assert torch.equal(run(whole_rate_loss=loss / 2)[0], whole)
    quarter, slow = run(whole_rate_loss=16 * loss)
    expected, known = run(learning_rate=2.5e-3)
    assert [p["learning_rate"] for p in slow.curve] == pytest.approx([p["learning_rate"] for p in known.curve])
    torch.testing.assert_close(quarter, expected)
    assert float((quarter - whole).abs().max()) > 1e-4


def test_a_classifier_learns_from_its_teachers_answers(classifier, tokenizer, texts):
    rows = [{"text": text, "label": number % 3} for number, text in enumerate(texts)]
    student = make_student(classifier, rank=3)
    settings = config(hidden=[], logits={"temperature": 2.0}, labels={"weight": 0.01}, steps=40, validation=9)
    history = distil(classifier, student, rows, config=settings, tokenizer=tokenizer).histories[0]
    assert history.held_out[-1]["logits"] < 0.5 * history.held_out[0]["logits"]
    with pytest.raises(DistillError, match=r"label 3 of 'a cat' is no class of .* 3 \(0…2\): number classes"):
        distil(classifier, student, [{"text": "a cat", "label": 3}] * 8, config=settings, tokenizer=tokenizer)


def test_published_stages_run(classifier, tokenizer, texts):
    rows = [{"text": text, "label": number % 3} for number, text in enumerate(texts)]
    student = make_student(classifier)
    outcome = distil(classifier, student, rows, config="published-stage-2-sst-2", tokenizer=tokenizer, steps=6)
    assert [sorted(set(h.curve[0]) & {"attention_scores", "hidden_last", "logits"}) for h in outcome.histories] == [
        ["attention_scores", "hidden_last"], ["logits"],
    ]  # fmt: skip
    assert [history.steps for history in outcome.histories] == [3, 3]
    records = student.config.quantization_config.structure.provenance["recoveries"]
    assert [record["config"] for record in records] == [phase.name for phase in outcome.phases]


def test_dropout_is_off_unless_asked_for(tokenizer, texts):
    teacher = make_teacher(dropout=0.4)
    settings = {"steps": 3, "learning_rate": 1e-12}
    first = {}
    for dropout in (False, True):
        student = copy.deepcopy(teacher)
        history = distil(teacher, student, texts, config=config(dropout=dropout, **settings), tokenizer=tokenizer)
        first[dropout] = losses(history.histories[0])[0]
        assert not student.training
    assert first[False] < 1e-10
    assert first[True] > 1e-3


def test_tables_can_be_frozen(teacher, tokenizer, texts):
    student = make_student(teacher)
    assert {id(t) for t in dense_tables(student)} == {
        id(m) for m in student.embeddings.children() if isinstance(m, torch.nn.Embedding)
    }
    table = student.embeddings.word_embeddings.weight.detach().clone()
    norm = student.embeddings.LayerNorm.weight.detach().clone()
    distil(teacher, student, texts, config=config(freeze_tables=True), tokenizer=tokenizer)
    assert torch.equal(student.embeddings.word_embeddings.weight, table)
    assert not torch.equal(student.embeddings.LayerNorm.weight, norm)
    assert all(parameter.requires_grad for parameter in student.parameters())
    distil(teacher, student, texts, config=config(), tokenizer=tokenizer)
    assert not torch.equal(student.embeddings.word_embeddings.weight, table)
    compressed = fewfold.compress(copy.deepcopy(teacher), LowRank(targets="embeddings", rank=4, weighting="none"))
    assert compressed.embeddings.word_embeddings.latents not in dense_tables(compressed)
    carved = fewfold.compress(make_teacher(), EmbeddingSharing(), fit=False)
    table = stores_of(carved)["embedding_sharing"].table
    assert isinstance(table, torch.nn.Embedding)
    assert table not in dense_tables(carved)
    assert len(dense_tables(carved)) == 2  # positions and types


def test_the_clock_ends_a_run_in_time(teacher, tokenizer, texts, tmp_path, monkeypatch):
    original = DistillTrainer.compute_loss

    def slow(self, *args, **kwargs):
        time.sleep(0.05)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillTrainer, "compute_loss", slow)
    student = make_student(teacher)
    start = time.perf_counter()
    settings = config(steps=None, validation=9, checkpoint_minutes=0.01)
    history = distil(
        teacher, student, texts, config=settings, tokenizer=tokenizer, minutes=0.08, checkpoints=tmp_path
    ).histories[0]
    wall = time.perf_counter() - start
    assert 2 < wall < 8  # 4.8 asked; a busy machine ends the last step late
    assert history.stopped == "time"
    assert history.seconds == pytest.approx(wall, abs=0.5)
    assert history.steps > 2
    rates = [point["learning_rate"] for point in history.curve]
    assert rates[-1] < 0.5 * max(rates)
    saved = {path.name for path in (tmp_path / "phase-1").glob("checkpoint-*")}
    assert f"checkpoint-{history.steps}" in saved
    assert len(saved) == 2


def test_numbers_that_are_none_stop_the_run_at_once(teacher, tokenizer, texts, tmp_path, monkeypatch):
    original = DistillTrainer.compute_loss

    def poisoned(self, model, inputs, **kwargs):
        loss = original(self, model, inputs, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(DistillTrainer, "compute_loss", poisoned)
    student = make_student(teacher)
    settings = config(checkpoint_minutes=1e-9)
    with pytest.raises(DistillError, match=r"norm is no finite number at step 4 .*checkpoint-3"):
        distil(teacher, student, texts, config=settings, tokenizer=tokenizer, checkpoints=tmp_path)
    assert (tmp_path / "phase-1" / "checkpoint-3" / "distill_state.json").is_file()
    monkeypatch.setattr(DistillTrainer, "compute_loss", original)
    good = make_student(teacher)
    distil(teacher, good, texts, config=config(steps=3, schedule="constant"), tokenizer=tokenizer)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    with torch.no_grad():
        teacher.encoder.layer[1].output.dense.weight[0, 0] = float("inf")
    with pytest.raises(DistillError, match=r"the loss is no finite number at step 1 .*Lower learning_rate"):
        distil(teacher, make_student(make_teacher()), texts, config=config(), tokenizer=tokenizer)


def test_a_run_that_is_stopped_ends_its_display(teacher, tokenizer, texts, monkeypatch):
    monkeypatch.setenv("FEWFOLD_PROGRESS", "1")
    kill_at(monkeypatch, 2)
    with pytest.raises(Killed) as kept:  # as a notebook keeps an exception, and all that hangs on it
        distil(teacher, make_student(teacher), texts, config=config(), tokenizer=tokenizer)
    assert progress._current is None
    assert kept.value.__traceback__ is not None


def test_a_run_without_gain_ends_early_with_its_best_state(teacher, tokenizer, texts, monkeypatch):
    states = []
    original = Watch._measure

    def noting(self, step):
        original(self, step)
        states.append((self.history.held_out[-1]["loss"], exact_state(self.trainer.model)))

    monkeypatch.setattr(Watch, "_measure", noting)
    settings = config(steps=200, learning_rate=0.3, warmup=0, validation=9, patience=3, evaluate_minutes=1e-9)
    student = make_student(teacher)
    history = distil(teacher, student, texts, config=settings, tokenizer=tokenizer).histories[0]
    assert history.stopped == "no gain"
    assert history.steps < 200
    lowest, best = min(states, key=lambda pair: pair[0])
    assert states[-1][0] > lowest
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, best[f"student.{name}"]), name
    assert history.first_and_last[1] == lowest


def test_bf16_is_near_fp32(teacher, tokenizer, texts):
    runs = []
    for bf16 in (False, True):
        student = make_student(teacher)
        runs.append(losses(distil(teacher, student, texts, config=config(bf16=bf16), tokenizer=tokenizer).histories[0]))
        assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert runs[0] != runs[1]
    assert runs[1] == pytest.approx(runs[0], rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of processors alone")
def test_bf16_on_a_processor_attends_in_fp32(teacher, tokenizer, texts, monkeypatch):
    seen = []

    def spy(self, func, types, args=(), kwargs=None):
        seen.append(func)
        return func(*args, **(kwargs or {}))

    monkeypatch.setattr("fewfold.training.attention._InFp32.__torch_function__", spy)
    for bf16 in (False, True):
        assert not seen, "fp32 needs nothing"
        distil(teacher, make_student(teacher), texts, config=config(bf16=bf16), tokenizer=tokenizer)
    assert torch.nn.functional.scaled_dot_product_attention in seen


def refused(message, teacher, student, data=None, tokenizer=None, **settings):
    options = {key: settings.pop(key) for key in ("student_tokenizer",) if key in settings}
    with pytest.raises(DistillError, match=message):
        distil(
            teacher,
            student,
            data or sentences(20),
            config=config(**settings),
            tokenizer=tokenizer or make_tokenizer(),
            **options,
        )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_single_step_is_not_lost(schedule, teacher, tokenizer, texts):
    student = make_student(teacher)
    before = parameters(student)
    distil(teacher, student, texts, config=config(steps=1, schedule=schedule, warmup=0.1), tokenizer=tokenizer)
    assert float((parameters(student) - before).abs().max()) > 1e-5


def test_pairs_that_do_not_fit(teacher):
    student = make_student(teacher)
    other = make_tokenizer(["wolf", *make_tokenizer().convert_ids_to_tokens(range(6, 19))])
    refused(r"for example 'the' is 5 and None", teacher, student, student_tokenizer=other)
    refused(r"for example 'cat' is 9 and 10", teacher, student, student_tokenizer=make_tokenizer(
        ["the", "a", "under", "over", "dog", "cat", "house", "tree", "sees", "likes", "runs", "small", "big", "old"]
    ))  # fmt: skip
    cased = BertTokenizerFast(vocab=make_tokenizer().get_vocab(), do_lower_case=False)
    refused("the same tokens and read a text as", teacher, student, student_tokenizer=cased)
    larger = BertModel(copy.deepcopy(teacher.config))
    larger.resize_token_embeddings(25)
    refused("vocabulary has 19 tokens and the student's 25", teacher, larger)
    refused(
        "gives 20 tokens and the models know 19",
        teacher,
        student,
        tokenizer=make_tokenizer([f"w{i}" for i in range(15)]),
    )
    refused("hidden size is 8 and the teacher's 16", teacher, make_teacher(width=8))
    refused("are the same object", teacher, teacher)
    refused("student is a Linear", teacher, torch.nn.Linear(2, 2))
    small = T5Model(T5Config(vocab_size=19, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4))
    refused("one stack and the student an encoder–decoder", teacher, small)
    refused("train student.float", teacher, copy.deepcopy(student).bfloat16())
    refused("no parameter of the student trains", teacher, copy.deepcopy(student).requires_grad_(False))
    refused("a loss asks for labels", teacher, student, labels={})
    with pytest.raises(DistillError, match="texts need a tokenizer"):
        distil(teacher, student, sentences(20))


def test_data_that_is_too_little(teacher, tokenizer, monkeypatch):
    monkeypatch.setattr(checks, "REPEATS", 4)
    student = make_student(teacher)
    refused("7 texts to train on do not fill one batch of 8", teacher, student, sentences(7))
    refused("no text is longer than 3 tokens", teacher, student, ["cat"] * 20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distil(teacher, student, sentences(8), config=config(steps=5, hidden=[], sentence={}), tokenizer=tokenizer)
    assert any("5 steps read each of 8 texts 5 times" in str(warning.message) for warning in caught)


def test_flags_and_modes_are_as_before(tokenizer, texts):
    teacher = make_teacher(BertForSequenceClassification, num_labels=2).train()
    student = make_student(teacher)
    student.classifier.requires_grad_(False)
    head = student.classifier.weight.detach().clone()
    teacher.train().bert.encoder.layer[0].eval()
    student.train().bert.encoder.layer[1].eval()
    modes = [module.training for model in (teacher, student) for module in model.modules()]
    settings = config(freeze_tables=True, anchors={"count": 8})
    distil(teacher, student, texts, config=settings, tokenizer=tokenizer)
    assert [module.training for model in (teacher, student) for module in model.modules()] == modes
    assert torch.equal(head, student.classifier.weight)
    assert {n.split(".")[0] for n, p in student.named_parameters() if not p.requires_grad} == {"classifier"}
