"""Training against a plain loop, resume, slim tables, and a toy language that is learned."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

import fewfold
from fewfold import TaskError
from fewfold.stored.codes import CodedMatrix
from fewfold.tasks.translation import (
    SlimTables,
    TranslationTraining,
    build_model,
    train_translation,
    train_vocabularies,
    translate,
)
from fewfold.tasks.translation.batching import collate, encode_pairs
from fewfold.tasks.translation.run import train_and_save
from fewfold.tasks.translation.training import held_out_loss
from fewfold.training import neighbours


def plain_loop(model, batch, settings):
    """AdamW on one batch, loss in float64 with smoothed labels, by hand."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    losses = []
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.double()
        logs, labels = logits.log_softmax(-1), batch["labels"]
        real = labels != -100
        hit = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        smooth = settings.label_smoothing
        loss = -((1 - smooth) * hit + smooth * logs.mean(-1))[real].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_training_equals_a_plain_loop(kind, corpus, vocabularies):
    model = build_model(kind, vocabularies, size=64, layers=1, dropout=0.0)
    settings = TranslationTraining(steps=4, batch_tokens=10_000, learning_rate=3e-3, warmup=2, weight_decay=0.1)
    reference = copy.deepcopy(model)
    pairs = encode_pairs(vocabularies, corpus)
    expected = plain_loop(reference, collate(pairs, (0, 0), 1), settings)
    history = train_translation(model, vocabularies, corpus, corpus, settings)
    assert history.curve[-1]["loss"] == pytest.approx(expected, rel=1e-5)
    assert history.tokens == 4 * sum(len(pair.target) for pair in pairs)
    for (name, found), wanted in zip(model.named_parameters(), reference.parameters(), strict=True):
        if "k_proj.bias" not in name:  # it moves all scores alike: its gradient is rounding noise
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4, msg=name)


@pytest.mark.filterwarnings("ignore:bf16 on")
@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_bfloat16_computes_coarsely_and_keeps_weights(kind, corpus, vocabularies):
    losses = {}
    for bf16 in (False, True):
        model = build_model(kind, vocabularies, size=64, layers=1, dropout=0.0, seed=0)
        settings = TranslationTraining(steps=4, batch_tokens=10_000, learning_rate=3e-3, warmup=2, bf16=bf16)
        losses[bf16] = train_translation(model, vocabularies, corpus, corpus, settings).curve[-1]["loss"]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


@pytest.mark.parametrize(("kind", "slim"), [("lstm", SlimTables(4, 4)), ("transformer", None)])
def test_a_stopped_run_ends_where_an_uninterrupted_one_does(kind, slim, corpus, vocabularies, tmp_path):
    settings = TranslationTraining(steps=7, batch_tokens=90, warmup=2, evaluate_steps=3, seed=5)

    def fresh():
        return build_model(kind, vocabularies, size=64, layers=1, dropout=0.3, slim=slim)

    whole = fresh()
    straight = train_translation(whole, vocabularies, corpus, corpus.first(5), settings)
    for stop in (3, None):
        torch.manual_seed(99)
        model = fresh()
        history = train_translation(
            model, vocabularies, corpus, corpus.first(5), settings, checkpoints=tmp_path, stop_after=stop
        )
    for (name, found), expected in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected[1], rtol=0, atol=1e-6, msg=name)
    assert [point["loss"] for point in history.held_out] == pytest.approx([p["loss"] for p in straight.held_out])
    assert [point["loss"] for point in history.curve] == pytest.approx([p["loss"] for p in straight.curve])
    assert (history.steps, history.tokens) == (7, straight.tokens)
    with pytest.raises(TaskError, match="another model, other data or settings"):
        train_translation(
            fresh(), vocabularies, corpus.first(9), corpus, settings, checkpoints=tmp_path,
        )  # fmt: skip
    (tmp_path / "training.safetensors").write_bytes(b"cut")
    with pytest.raises(TaskError, match="damaged"):
        train_translation(fresh(), vocabularies, corpus, corpus, settings, checkpoints=tmp_path)


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_another_dropout_is_another_run(kind, corpus, vocabularies, tmp_path):
    settings = TranslationTraining(steps=2, batch_tokens=200)
    for dropout in (0.1, 0.2):
        model = build_model(kind, vocabularies, size=64, layers=1, dropout=dropout)
        options = {"checkpoints": tmp_path, "stop_after": 1}
        if dropout == 0.1:
            train_translation(model, vocabularies, corpus, corpus, settings, **options)
        else:
            with pytest.raises(TaskError, match="another model"):
                train_translation(model, vocabularies, corpus, corpus, settings, **options)


@pytest.mark.parametrize("slim", [None, SlimTables(2, 8)])
def test_a_toy_language_is_learned(slim, corpus, vocabularies):
    model = build_model("lstm", vocabularies, size=64, layers=1, dropout=0.0, slim=slim)
    settings = TranslationTraining(steps=40, batch_tokens=400, learning_rate=1e-2, warmup=5, evaluate_steps=40)
    history = train_translation(model, vocabularies, corpus, corpus, settings)
    assert history.held_out[-1]["loss"] < 0.3
    found = translate(model, vocabularies, corpus.sources[:12])
    assert sum(text == wanted for text, wanted in zip(found.texts, corpus.targets, strict=False)) >= 11


def test_the_held_out_loss_is_the_mean_over_tokens(corpus, vocabularies):
    model = build_model("transformer", vocabularies, size=64, layers=1)
    pairs = encode_pairs(vocabularies, corpus)[:7]
    total = count = 0
    model.eval()
    with torch.no_grad():
        for pair in pairs:
            batch = collate([pair], (0, 0), 1)
            logits = model(input_ids=batch["input_ids"], decoder_input_ids=batch["decoder_input_ids"]).logits[0]
            total += cross_entropy(logits.double(), batch["labels"][0], reduction="sum").item()
            count += len(pair.target)
    model.train()
    before = torch.get_rng_state()
    assert held_out_loss(model, vocabularies, pairs, 300) == pytest.approx(total / count, rel=1e-5)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_learning_rates_by_hand():
    cosine = TranslationTraining(steps=10, warmup=2, learning_rate=1.0)
    assert [cosine.rate(step) for step in (1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    root = TranslationTraining(steps=99, warmup=4, learning_rate=1.0, schedule="inverse_sqrt")
    assert [root.rate(step) for step in (2, 4, 16, 64)] == pytest.approx([0.5, 1.0, 0.5, 0.25])


def test_a_loss_that_is_no_number(corpus, vocabularies):
    model = build_model("lstm", vocabularies, size=64)
    model.decoder.combine.bias.data[0] = float("nan")
    with pytest.raises(TaskError, match="at step 1: lower learning_rate"):
        train_translation(model, vocabularies, corpus, corpus, TranslationTraining(steps=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"warmup": -1}, "not negative"),
        ({"output_bias": "ones"}, "output_bias='ones'.*frequencies"),
        ({"neighbours": "coded"}, "neighbours='coded'.*slim or all or none"),
        ({"schedule": "linear"}, "cosine or inverse_sqrt"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(TaskError, match=message):
        TranslationTraining(**changes)


def test_a_transformer_begins_at_the_frequencies_of_words(corpus, tmp_path):
    losses = {}
    for begin in ("frequencies", "zeros"):
        settings = TranslationTraining(steps=1, batch_tokens=10_000, warmup=0, learning_rate=1e-9, output_bias=begin)
        record = train_and_save(tmp_path / begin, "transformer", corpus, corpus, settings, vocabulary=300, size=64)
        losses[begin] = record["training"]["held_out"][-1]["loss"]
    vocabularies = train_vocabularies(corpus, 300)
    found = torch.cat([torch.tensor(pair.target) for pair in encode_pairs(vocabularies, corpus)])
    counts = torch.bincount(found, minlength=len(vocabularies.target)) + 1.0
    kept = fewfold.load(tmp_path / "frequencies").final_logits_bias[0]
    torch.testing.assert_close(kept, (counts / counts.sum()).log(), rtol=1e-5, atol=1e-5)
    # what fresh weights add to the scores, mostly of the word that came in, is the same for both
    assert losses["zeros"] > losses["frequencies"] + 0.5


@pytest.mark.parametrize(
    ("kind", "joint"), [("lstm", True), ("lstm", False), ("transformer", True), ("transformer", False)]
)
def test_slim_tables_begin_at_the_neighbours_of_their_own_side(kind, joint, corpus, tmp_path, monkeypatch):
    vectors, known = [], neighbours.neighbour_vectors

    def seen(ids, words, width):
        vectors.append((set(ids.tolist()), words))
        return known(ids, words, width)

    monkeypatch.setattr(neighbours, "neighbour_vectors", seen)
    codes = {}
    for choice in ("slim", "none"):
        settings = TranslationTraining(steps=1, batch_tokens=10_000, warmup=0, learning_rate=1e-9, neighbours=choice)
        train_and_save(
            tmp_path / choice, kind, corpus, corpus, settings, slim=SlimTables(4, 8), vocabulary=300, joint=joint,
            size=64, layers=1,
        )  # fmt: skip
        model = fewfold.load(tmp_path / choice)
        tables = {id(part): part for part in model.modules() if isinstance(part, CodedMatrix)}
        codes[choice] = [table.codes(0) for table in tables.values()]
    pairs = encode_pairs(train_vocabularies(corpus, 300, joint), corpus, 128)
    sides = {token for pair in pairs for token in pair.source}, {token for pair in pairs for token in pair.target}
    assert [ids for ids, _ in vectors] == ([sides[0] | sides[1]] if joint else list(sides))
    assert len(codes["slim"]) == (1 if joint else 2)
    for chosen, drawn in zip(codes["slim"], codes["none"], strict=True):
        assert not torch.equal(chosen, drawn)
