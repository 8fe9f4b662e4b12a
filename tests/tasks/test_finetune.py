"""Fine-tuning against a plain loop, and what is recorded of it."""

import contextlib
import copy

import pytest
import torch
import transformers as tf

import fewfold
from fewfold import LowRank, TaskError, progress
from fewfold.tasks import FineTuning, fine_tune, with_head
from fewfold.tasks.batches import Padding, by_length, text_rows, token_total
from fewfold.tasks.glue import Example
from fewfold.tasks.predict import class_logits
from fewfold.tasks.tuner import Tuner
from fewfold.training.rates import rate_factors


@pytest.fixture
def examples():
    words = ["fine", "dull", "lovely", "poor", "great", "awful"]
    return [Example(f"the film is {words[i % 6]} " + ". " * (i % 4), None, 1 - i % 2) for i in range(24)]


def test_padding_by_hand(tokenizer):
    rows = [{"input_ids": [7, 8, 9], "token_type_ids": [0, 1, 1], "attention_mask": [1, 1, 1], "labels": 2},
            {"input_ids": [7], "token_type_ids": [0], "attention_mask": [1], "labels": 0}]  # fmt: skip
    batch = {name: tensor.tolist() for name, tensor in Padding(tokenizer)(rows).items()}
    pad = tokenizer.pad_token_id
    assert batch == {
        "input_ids": [[7, 8, 9], [7, pad, pad]],
        "token_type_ids": [[0, 1, 1], [0, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [2, 0],
    }
    assert token_total(rows) == 4


def test_batches_of_like_length():
    rows = [{"input_ids": [0] * length} for length in (3, 9, 1, 5, 9)]
    assert list(by_length(rows, 2)) == [[1, 4], [3, 0], [2]]


def test_rows_of_texts_pairs_and_scores(tokenizer, body, make_body):
    model = with_head(body, 3)
    pairs = [Example("the film", "is fine", 2.0), Example("a", "a play is dull .", 0.0)]
    rows = text_rows(model, tokenizer, pairs, 6)
    assert tokenizer.decode(rows[0]["input_ids"]) == "[CLS] the [SEP] is fine [SEP]"
    assert rows[0]["token_type_ids"] == [0, 0, 0, 1, 1, 1]
    assert [row["labels"] for row in rows] == [2, 0]
    assert [row["labels"] for row in text_rows(model, tokenizer, pairs, 6, [1, 2, 0])] == [0, 1]
    (row,) = text_rows(with_head(make_body(), 1), tokenizer, [Example("a " * 99, None, 2.5)], 500)
    assert len(row["input_ids"]) == 64
    assert row["labels"] == 2.5


def test_predictions_come_in_the_order_of_the_rows(tokenizer, body, examples):
    model = with_head(body, 3)
    rows = text_rows(model, tokenizer, examples, 32)
    found = class_logits(model, tokenizer, rows, batch_size=5)
    with torch.no_grad():
        single = [model(**tokenizer(example.first, return_tensors="pt")).logits[0] for example in examples]
    torch.testing.assert_close(torch.from_numpy(found), torch.stack(single), rtol=1e-4, atol=1e-5)
    model.classifier.bias.data[1] = float("nan")
    with pytest.raises(TaskError, match="gives NaN or infinity"):
        class_logits(model, tokenizer, rows)


def plain_loop(model, batch, settings, steps):
    """AdamW with linear warm-up and decay, all examples in every step."""
    factors = rate_factors(model) if settings.rates == "by_size" else {}
    groups = [
        {"params": [p], "weight_decay": settings.weight_decay if p.dim() > 1 else 0.0, "factor": factors.get(name, 1.0)}
        for name, p in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    warm, losses, grids = round(settings.warmup * steps), [], few_bit_grids(model)
    model.train()
    for step in range(steps):
        rate = step / warm if step < warm else (steps - step) / (steps - warm)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate * group["factor"]
        loss = torch.nn.functional.cross_entropy(
            torch.func.functional_call(
                model,
                {name: straight_through(model.get_parameter(name), scales) for name, scales in grids.items()},
                kwargs={name: value for name, value in batch.items() if name != "labels"},
            ).logits,
            batch["labels"],
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        for name, scales in grids.items():
            model.get_parameter(name).copy_(straight_through(model.get_parameter(name), scales))
    return sum(losses) / steps


def few_bit_grids(model):
    """Scales of every number that is kept in three bits, by the name of its weight."""
    return {
        f"{name}.weight": leaf.grid()[1].float().repeat_interleave(leaf.stored.group, 1)[:, : leaf.weight.shape[1]]
        for name, leaf in model.named_modules()
        if getattr(leaf, "stored", None) is not None and leaf.stored.name == "int3"
    }


def straight_through(weight, scales):
    """Rounded to three bits, with the gradient of the float."""
    rounded = (weight / scales).round().clamp(-4, 3) * scales
    return weight + (rounded - weight).detach()


@pytest.mark.parametrize(
    ("stored", "rates"), [(None, "equal"), ("fp32", "equal"), ("fp32", "by_size"), ("int3", "equal")]
)
def test_training_equals_a_plain_loop(stored, rates, tokenizer, body, examples):
    if stored is not None:
        fewfold.compress(body, LowRank(targets="linears", rank=8, weighting="none", stored_dtype=stored))
    model = with_head(body, 2)
    rows = text_rows(model, tokenizer, examples, 32)
    rate = 2e-2 if stored == "int3" else 1e-3  # from one point of a grid to the next
    settings = FineTuning(learning_rate=rate, epochs=5, batch_size=24, warmup=0.4, weight_decay=0.1, rates=rates)
    reference = copy.deepcopy(model)
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    loss = plain_loop(reference, Padding(tokenizer)(rows), settings, steps=5)
    done = fine_tune(model, tokenizer, rows, settings)
    assert (done.examples, done.rows, done.steps, done.tokens) == (24, 24, 5, 5 * token_total(rows))
    assert done.loss == pytest.approx(loss, rel=1e-4)
    assert not model.training
    for (name, found), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        if not name.endswith("key.up.bias"):  # it changes no attention: its gradient is rounding alone
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4, msg=name)
    unused = {name for name, p in model.named_parameters() if p.numel() and torch.equal(p, start[name])}
    assert unused == set()


def test_what_is_judged_is_what_is_saved(tokenizer, body, examples, tmp_path):
    fewfold.compress(body, LowRank(targets="linears", rank=8, weighting="none", stored_dtype="int8"))
    model = with_head(body, 2)
    rows = text_rows(model, tokenizer, examples, 32)
    fine_tune(model, tokenizer, rows, FineTuning(learning_rate=3e-3, epochs=2, batch_size=8))
    found = class_logits(model, tokenizer, rows)
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(class_logits(again, tokenizer, rows), found, rtol=0, atol=1e-6)


def test_bf16_ends_with_the_training(tokenizer, body, examples):
    model = with_head(body, 2)
    rows = text_rows(model, tokenizer, examples, 32)
    fine_tune(model, tokenizer, rows, FineTuning(epochs=1, batch_size=8, bf16=True))
    assert "forward" not in vars(model)
    plain = copy.deepcopy(model).to(torch.float64).to(torch.float32)
    torch.testing.assert_close(
        class_logits(model, tokenizer, rows), class_logits(plain, tokenizer, rows), rtol=0, atol=0
    )


def test_the_seed_decides(tokenizer, make_body, examples):
    def trained(seed, **changes):
        model = with_head(make_body(), 2)
        rows = text_rows(model, tokenizer, examples, 32)
        fine_tune(model, tokenizer, rows, FineTuning(learning_rate=1e-3, epochs=1, batch_size=4, **changes), seed)
        return model.classifier.weight.detach()

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
    torch.testing.assert_close(trained(1), trained(1, bf16=True), rtol=0, atol=2e-2)
    assert not torch.equal(trained(1), trained(1, bf16=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"epochs": -1}, "epochs=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"warmup": 1.0}, "warmup=1.0"),
        ({"limit": 0}, "limit=0"),
        ({"rates": "large"}, "rates='large'.*equal, by_size"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(TaskError, match=message):
        FineTuning(**changes)


def test_no_rows_and_no_numbers(tokenizer, body, examples):
    model = with_head(body, 2)
    with pytest.raises(TaskError, match="at least one"):
        fine_tune(model, tokenizer, [], FineTuning())
    model.classifier.weight.data[:] = float("inf")
    rows = text_rows(model, tokenizer, examples, 32)
    with pytest.raises(TaskError, match="lower learning_rate"):
        fine_tune(model, tokenizer, rows, FineTuning(epochs=1))


def test_a_loss_that_is_no_number_stops_the_training(tokenizer, body, examples, monkeypatch):
    model = with_head(body, 2)
    rows = text_rows(model, tokenizer, examples, 32)
    steps = []
    monkeypatch.setattr(
        tf.Trainer, "training_step", lambda self, *_, **__: steps.append(1) or torch.tensor(float("nan"))
    )
    with pytest.raises(TaskError, match=r"the loss became nan by step 1: lower learning_rate"):
        fine_tune(model, tokenizer, rows, FineTuning(epochs=50, batch_size=4))
    assert len(steps) == 1


@pytest.mark.parametrize(("stored", "dies"), [("int3", 3), (None, 8), ("int3", 10), (None, 16)])
def test_a_killed_training_goes_on_to_the_same_numbers(stored, dies, tokenizer, make_body, examples, tmp_path):
    """In the first epoch, in the second, right at the begin of the third, and after the last step."""

    def fresh():
        body = make_body()
        body.config.hidden_dropout_prob = 0.2
        model = with_head(type(body)(body.config), 2, seed=1)
        model.load_state_dict(body.state_dict(), strict=False)
        if stored is not None:
            fewfold.compress(model, LowRank(targets="linears", rank=8, weighting="none", stored_dtype=stored))
        return model

    settings = FineTuning(learning_rate=2e-2, epochs=3, batch_size=5, rates="by_size" if stored else "equal")
    rows = text_rows(fresh(), tokenizer, examples, 32)
    whole = fresh()
    expected = fine_tune(whole, tokenizer, rows, settings, seed=3)
    steps = []

    class Killed(BaseException):
        pass

    def step(self, *arguments, **named):
        steps.append(1)
        if len(steps) == dies:
            raise Killed
        return trains(self, *arguments, **named)

    trains = Tuner.training_step
    folder = tmp_path / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuner, "training_step", step)
        for _ in range(2):  # after the last step nothing is left to be killed
            with contextlib.suppress(Killed):
                found = fine_tune(going := fresh(), tokenizer, rows, settings, 3, None, folder, 0.0)
            (folder / "checkpoint-99").mkdir(exist_ok=True)  # one that a kill cut short
    fine_tune(fresh(), tokenizer, rows, settings, 3, None, folder, 0.0)
    assert not (folder / "checkpoint-99").exists()
    if dies < 16:
        assert 15 < len(steps) <= 17  # of the killed one, and perhaps one between two epochs, done twice
    assert len(steps) >= 15
    assert (found.steps, found.tokens) == (expected.steps, expected.tokens) == (15, 3 * token_total(rows))
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.seconds > 0
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(going.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_checkpoints_of_another_training_are_refused(tokenizer, body, examples, tmp_path):
    model = with_head(body, 2)
    rows = text_rows(model, tokenizer, examples, 32)
    fine_tune(model, tokenizer, rows, FineTuning(epochs=1), checkpoints=tmp_path / "kept")
    with pytest.raises(TaskError, match=r"kept holds checkpoints of another model, other rows or settings"):
        fine_tune(model, tokenizer, rows, FineTuning(epochs=1), checkpoints=tmp_path / "kept")


def test_a_training_that_is_stopped_ends_its_display(tokenizer, body, examples, monkeypatch):
    monkeypatch.setenv("FEWFOLD_PROGRESS", "1")
    model = with_head(body, 2)
    model.classifier.bias.data[0] = float("nan")
    rows = text_rows(model, tokenizer, examples, 32)
    with pytest.raises(TaskError, match="the loss became nan") as kept:
        fine_tune(model, tokenizer, rows, FineTuning(epochs=1, batch_size=8))
    assert progress._current is None
    assert kept.value.__traceback__ is not None
