"""A training that was killed ends where one that was not ends; what it reports is what a plain loop gives."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fewfold
from fewfold import CheckpointError, LowRank, TaskError
from fewfold.lm.checkpoints import STATE, TENSORS, take_optimizer_tensors
from fewfold.lm.config import LMTraining
from fewfold.lm.judge import judge
from fewfold.lm.run import train_lm
from fewfold.lm.saving import save_lm
from fewfold.lm.training import LMTrainer
from fewfold.models import SlimLMConfig

DROPOUT = {"input_dropout": 0.2, "output_dropout": 0.3, "weight_dropout": 0.1}


class Killed(BaseException):
    """Ends a training as a kill does."""


def config(corpus, **changes):
    settings = {"vocab_size": len(corpus.tokenizer), "hidden_size": 16, "eos_token_id": corpus.boundary}
    return SlimLMConfig(**{**settings, **DROPOUT, **changes})


def training(**changes):
    settings = {"batch": 4, "bptt": 8, "learning_rate": 0.02, "steps": 60, "evaluate_steps": 20, "log_steps": 1}
    return LMTraining(**{**settings, "checkpoint_minutes": 0, **changes})


def kill_at(monkeypatch, step):
    original = LMTrainer._step

    def dying(self, advance):
        if self.progress.step == step:
            raise Killed
        original(self, advance)

    monkeypatch.setattr(LMTrainer, "_step", dying)
    return lambda: monkeypatch.setattr(LMTrainer, "_step", original)


def numbers(model):
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])


def losses(trained, kind="train"):
    return [point["loss"] for point in trained.points if point["kind"] == kind]


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({"input_codes": {"positions": 4, "ratio": 3}, "output_codes": {"positions": 4, "ratio": 2}}, {}),
        ({"cell": "gru", "num_layers": 2, "hidden_dropout": 0.2, "tie_word_embeddings": True}, {"optimizer": "adamw"}),
        ({}, {"optimizer": "sgd", "learning_rate": 2.0, "schedule": "plateau"}),
    ],
)
def test_a_killed_training_ends_where_another_ends(model, settings, corpus, tmp_path, monkeypatch):
    settings = training(**settings)
    whole = train_lm(config(corpus, **model), corpus, settings)
    before = torch.get_rng_state()
    for step in (23, 44):
        live = kill_at(monkeypatch, step)
        with pytest.raises(Killed):
            train_lm(config(corpus, **model), corpus, settings, checkpoints=tmp_path)
        live()
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    assert torch.equal(before, torch.get_rng_state())
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 45, "loss": 99}\n')  # written after the last checkpoint
    resumed = train_lm(config(corpus, **model), corpus, settings, checkpoints=tmp_path)
    assert float((numbers(resumed.model) - numbers(whole.model)).abs().max()) < 1e-6
    for kind in ("train", "valid"):
        assert losses(resumed, kind) == pytest.approx(losses(whole, kind), abs=1e-6)
    assert len(losses(whole)) == 60
    assert resumed.test.nll == pytest.approx(whole.test.nll, abs=1e-6)
    assert (resumed.progress.best_step, resumed.progress.tokens) == (whole.progress.best_step, whole.progress.tokens)
    assert (tmp_path / "history.jsonl").read_text().splitlines() == [json.dumps(point) for point in resumed.points]
    assert losses(whole)[-1] < losses(whole)[0] - 0.03


def test_what_was_begun_anew_does_not_come_back(corpus, tmp_path, monkeypatch):
    for step, settings, resume in ((8, training(steps=12), True), (3, training(steps=12, checkpoint_minutes=9), False)):
        live = kill_at(monkeypatch, step)
        with pytest.raises(Killed):
            train_lm(config(corpus), corpus, settings, checkpoints=tmp_path, resume=resume)
        live()
    found = train_lm(config(corpus), corpus, training(steps=12), checkpoints=tmp_path)
    assert [point["step"] for point in found.points if point["kind"] == "train"] == list(range(1, 13))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-12", "history.jsonl"]


def test_dropout_goes_on_where_it_was(corpus, tmp_path, monkeypatch):
    """A resume that drew other masks would end elsewhere: the comparison above can fail."""
    live = kill_at(monkeypatch, 23)
    with pytest.raises(Killed):
        train_lm(config(corpus), corpus, training(), checkpoints=tmp_path)
    live()
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    resumed, whole = (train_lm(config(corpus), corpus, training(), checkpoints=f) for f in (tmp_path, None))
    assert float((numbers(resumed.model) - numbers(whole.model)).abs().max()) > 1e-4


def test_losses_against_a_plain_loop(corpus):
    """Adam without dropout: the streams of one epoch and a half, the state carried and cut."""
    settings = training(steps=40, clip=0.1, schedule="linear", warmup=0.2, evaluate_steps=None, output_bias="zeros")
    plain = {name: 0.0 for name in DROPOUT}
    trained = train_lm(config(corpus, **plain), replace(corpus, valid=None, test=None), settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from fewfold.models import SlimLMForCausalLM

        model = SlimLMForCausalLM(config(corpus, **plain)).train()
    optimizer = torch.optim.Adam(model.parameters())
    ids = corpus.train.ids
    each = (len(ids) - 1) // 4
    rows = np.stack([ids[row * each : row * each + each + 1] for row in range(4)])
    found, place, state = [], 0, None
    for step in range(40):
        fraction = (step + 0.5) / 40
        rate = 0.02 * (fraction / 0.2 if fraction < 0.2 else (1 - fraction) / 0.8)
        optimizer.param_groups[0]["lr"] = rate
        if place >= each:
            place, state = 0, None
        end = min(place + 8, each)
        output = model(input_ids=torch.tensor(rows[:, place:end]), state=state)
        wanted = torch.tensor(rows[:, place + 1 : end + 1])
        loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        state, place = tuple(tuple(part.detach() for part in layer) for layer in output.state), end
        found.append(float(loss.detach()))
    assert losses(trained) == pytest.approx(found, abs=2e-5)


def test_perplexity_against_a_loop_over_tokens(corpus):
    model = train_lm(config(corpus), replace(corpus, test=None), training(steps=20)).model
    total, state, before = 0.0, None, corpus.boundary
    for token in corpus.test.ids.tolist():
        with torch.no_grad():
            output = model(input_ids=torch.tensor([[before]]), state=state)
        total -= float(torch.log_softmax(output.logits[0, -1].double(), -1)[token])
        state, before = output.state, token
    found = judge(model, corpus.test, corpus.boundary)
    assert found.tokens == len(corpus.test.ids)
    assert found.nll == pytest.approx(total / found.tokens, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / found.tokens), rel=1e-4)
    parts = judge(model, corpus.test, corpus.boundary, streams=4)
    assert parts.nll != found.nll
    assert parts.nll == pytest.approx(found.nll, rel=0.05)


def test_the_best_weights_are_kept_and_training_stops(corpus, tmp_path):
    settings = training(learning_rate=0.3, clip=0, schedule="constant", evaluate_steps=5, patience=2, steps=200)
    trained = train_lm(config(corpus), corpus, settings, checkpoints=tmp_path)
    valid = losses(trained, "valid")
    assert trained.progress.stopped == "no gain"
    assert trained.progress.step == 5 * len(valid) < 200
    assert valid.index(min(valid)) == len(valid) - 3
    assert trained.progress.best_step == 5 * (len(valid) - 2)
    again = judge(trained.model, corpus.valid, corpus.boundary, settings.evaluate_streams)
    assert again.nll == pytest.approx(min(valid), abs=1e-9)
    finished = train_lm(config(corpus), corpus, settings, checkpoints=tmp_path)
    assert torch.equal(numbers(finished.model), numbers(trained.model))
    assert len(finished.points) == len(trained.points)


def test_a_plateau_lowers_the_rate(corpus):
    settings = training(
        learning_rate=0.3, clip=0, schedule="plateau", decay=0.1, warmup=0, evaluate_steps=5, steps=60
    )  # fmt: skip
    trained = train_lm(config(corpus), corpus, settings)
    valid, best, lowered = losses(trained, "valid"), math.inf, 0
    rates = [point["learning_rate"] for point in trained.points if point["kind"] == "train"]
    for number, loss in enumerate(valid):
        assert rates[5 * number : 5 * number + 5] == pytest.approx([0.3 * 0.1**lowered] * 5)
        lowered, best = lowered + (loss >= best), min(best, loss)
    assert lowered > 0


def test_the_clock_ends_a_training(corpus):
    settings = training(steps=None, minutes=0.02, evaluate_steps=1000)
    trained = train_lm(config(corpus), replace(corpus, test=None), settings)
    assert trained.progress.stopped == "time"
    assert trained.progress.step > 3
    rates = [point["learning_rate"] for point in trained.points if point["kind"] == "train"]
    assert rates[-1] < 0.2 * max(rates)


def test_bf16_stays_near(corpus):
    half, full = (train_lm(config(corpus), corpus, training(bf16=bf16, steps=40)) for bf16 in (True, False))
    assert losses(half) != losses(full)
    assert losses(half) == pytest.approx(losses(full), abs=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


def test_checkpoints_hold_no_pickle_and_damage_is_named(corpus, tmp_path, monkeypatch):
    kill_at(monkeypatch, 3)
    with pytest.raises(Killed):
        train_lm(config(corpus), corpus, training(), checkpoints=tmp_path)
    (folder,) = tmp_path.glob("checkpoint-*")
    assert sorted(path.name for path in folder.iterdir()) == [STATE, TENSORS]
    assert "random/cpu" in load_file(folder / TENSORS)
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"checkpoint-3 cannot be read .*--fresh"):
        train_lm(config(corpus), corpus, training(), checkpoints=tmp_path)
    with pytest.raises(Killed):
        train_lm(config(corpus), corpus, training(), checkpoints=tmp_path, resume=False)


def test_another_training_is_refused(corpus, tmp_path, monkeypatch):
    live = kill_at(monkeypatch, 3)
    with pytest.raises(Killed):
        train_lm(config(corpus), corpus, training(), checkpoints=tmp_path)
    live()
    other = replace(corpus, train=replace(corpus.train, ids=corpus.train.ids[::-1].copy()))
    for model, texts, settings, message in (
        (config(corpus), corpus, training(learning_rate=0.01), "learning_rate was 0.02 and is 0.01"),
        (config(corpus, hidden_size=24), corpus, training(), "model.hidden_size was 16 and is 24"),
        (config(corpus), other, training(), "text was 'train, "),
    ):
        with pytest.raises(CheckpointError, match=message):
            train_lm(model, texts, settings, checkpoints=tmp_path)
    train_lm(config(corpus), corpus, training(checkpoint_minutes=9, log_steps=2), checkpoints=tmp_path)


def test_errors(corpus):
    with pytest.raises(TaskError, match=r"the loss is (nan|inf) at step \d+: lower the learning rate"):
        train_lm(config(corpus), corpus, training(optimizer="sgd", learning_rate=1e38, clip=0))
    with pytest.raises(TaskError, match="patience=1 needs a valid text"):
        train_lm(config(corpus), replace(corpus, valid=None), training(patience=1))
    with pytest.raises(TaskError, match="schedule='cosin'"):
        LMTraining.make(schedule="cosin")


def test_the_models_words_are_the_texts(corpus):
    words = len(corpus.tokenizer)
    with pytest.raises(TaskError, match=f"vocab_size=5, and the corpus has {words} words"):
        train_lm(config(corpus, vocab_size=5), corpus, training(steps=1))
    noisy = config(corpus, loss="nce", loss_noise="unigram", loss_samples=4)
    counts = train_lm(noisy, corpus, training(steps=2)).model.word_counts
    assert counts.tolist() == [int((corpus.train.ids == word).sum()) for word in range(words)]


def test_what_is_judged_is_what_is_saved(corpus, tmp_path):
    recipe = LowRank(targets="all", rank=4, stored_dtype="int3")
    trained = train_lm(config(corpus), corpus, training(), recipe=recipe)
    trained.model.save_pretrained(tmp_path)
    again = judge(fewfold.load(tmp_path), corpus.valid, corpus.boundary, 1)
    assert again.perplexity == pytest.approx(trained.valid.perplexity, rel=1e-5)


@pytest.mark.parametrize(("fused", "device"), [(True, "meta"), (False, "cpu")])
def test_steps_of_adam_come_back_to_where_it_counts_them(fused, device):
    linear = torch.nn.Linear(2, 2, device="meta")
    optimizer = torch.optim.Adam(linear.parameters())
    for group in optimizer.param_groups:
        group["fused"] = fused
    given = {"weight:step": torch.tensor(3.0), "weight:exp_avg": torch.zeros(2, 2)}
    take_optimizer_tensors(linear, optimizer, given)
    kept = optimizer.state[linear.weight]
    assert (kept["step"].device.type, kept["exp_avg"].device.type) == (device, "meta")


def test_other_files_are_not_saved_over(corpus, tmp_path):
    trained = train_lm(config(corpus), corpus, training(steps=1))
    (tmp_path / "mine.csv").write_text("1")
    with pytest.raises(CheckpointError, match=r"holds files and no model"):
        save_lm(trained, corpus.tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


def test_built_from_a_recipe(corpus, tmp_path, monkeypatch):
    sharing, shape = (
        fewfold.EmbeddingSharing(init_std=0.25),
        {"num_layers": 2, "hidden_size": 4, "tie_word_embeddings": True},
    )
    whole = train_lm(config(corpus, **shape), corpus, training(), recipe=sharing)
    first, second = (layer.hidden_map.assembled_weight() for layer in whole.model.model.layers)
    assert torch.equal(first, second)
    assert losses(whole)[-1] < losses(whole)[0] - 0.1
    live = kill_at(monkeypatch, 23)
    with pytest.raises(Killed):
        train_lm(config(corpus, **shape), corpus, training(), checkpoints=tmp_path, recipe=sharing)
    live()
    resumed = train_lm(config(corpus, **shape), corpus, training(), checkpoints=tmp_path, recipe=sharing)
    assert float((numbers(resumed.model) - numbers(whole.model)).abs().max()) < 1e-6
    with pytest.raises(CheckpointError):
        train_lm(config(corpus, **shape), corpus, training(), checkpoints=tmp_path)
