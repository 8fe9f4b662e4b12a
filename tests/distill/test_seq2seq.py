"""Encoder–decoders: every loss against runs of single unpadded pairs in float64, and whole runs."""

import copy

import numpy as np
import pytest
import torch
import transformers as tf
from distill_models import (
    Killed,
    config,
    kill_at,
    make_student,
    make_teacher,
    make_tokenizer,
    parameters,
    sentences,
)
from tiny_models import make

import fewfold
from fewfold import DistillError
from fewfold.distill.examples import read_examples
from fewfold.distill.objective import Objective
from fewfold.distill.outputs import run
from fewfold.distill.run import distil
from fewfold.distill.targets import longest
from fewfold.distill.tokens import tokenise

MODELS = ("t5_lm", "bart_lm")
STACKS = ("encoder", "decoder")
TERMS = {
    "hidden": [{"layers": "all", "kind": "relative"}, {"layers": "last", "stack": "decoder", "weight": 0.5}],
    "attention": [{"layers": "all"}, {"stack": "cross"}, {"stack": "cross", "kind": "scores"}],
    "sentence": {}, "anchors": {"count": 3}, "logits": {"temperature": 2.0}, "labels": {"weight": 0.5},
}  # fmt: skip


def rows(count=64, seed=3):
    sources, targets = sentences(count, seed), sentences(count, seed + 1)
    return [{"source": a, "target": b} for a, b in zip(sources, targets, strict=True)]


def tokens_of(count=5):
    return tokenise(read_examples(rows(count), False, writes=True), make_tokenizer(), 32, start=2)


def losses_of(settings, teacher, student, batch, shares=None):
    objective = Objective(config(**settings), student, teacher)
    objective.prepare(teacher, tokens_of())
    with torch.no_grad():
        outputs = run(student, batch, objective.needs(0)), run(teacher, batch, objective.needs(1))
        found = objective(*outputs, batch, shares or {})
    return {name: float(loss) for name, loss in found.items()}


def alone(model, tokens):
    """What a model gives for each pair by itself, without padding: numpy, float64, by name."""
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    found = []
    for place in range(len(tokens)):
        batch = tokens.batch([place])
        inputs = {name: batch[name] for name in ("input_ids", "decoder_input_ids")}
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True, output_attentions=True)
        named = {"logits": output.logits[0].numpy(), "targets": batch["targets"][0].numpy()}
        for stack in STACKS:
            named[stack] = [state[0].numpy() for state in output[f"{stack}_hidden_states"]]
            named[f"{stack} attention"] = [heads[0].numpy() for heads in output[f"{stack}_attentions"]]
        named["cross"] = output.cross_attentions[-1][0].numpy()
        found.append(named)
    return found


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def divergences(ours, theirs):
    """KL divergence of every head and query from the teacher's attention."""
    return [
        sum(p * np.log(p / q) for p, q in zip(theirs[h, i], ours[h, i], strict=True) if p > 0)
        for h in range(ours.shape[0]) for i in range(ours.shape[1])
    ]  # fmt: skip


def mean(lists, reduction):
    if reduction == "tokens":
        return np.mean([value for values in lists for value in values])
    return np.mean([np.mean(values) for values in lists])


def expected(student, teacher, tokens, reduction):
    """The losses of ``TERMS``, pair by pair; those of cross-attention's scores are left out."""
    pairs = list(zip(alone(student, tokens), alone(teacher, tokens), strict=True))
    found = {}
    for stack in STACKS:
        depth = len(pairs[0][0][stack])
        found[f"hidden_all_{stack}"] = np.mean([
            mean([[((s - t) ** 2).sum() / (t**2).sum() for s, t in zip(a[stack][layer], b[stack][layer], strict=True)]
                  for a, b in pairs], reduction)
            for layer in range(depth)
        ])  # fmt: skip
        name = f"{stack} attention"
        found[f"attention_{stack}_probabilities"] = np.mean([
            mean([divergences(a[name][layer], b[name][layer]) for a, b in pairs], reduction)
            for layer in range(depth - 1)
        ])  # fmt: skip
    last = [[((s - t) ** 2).mean() for s, t in zip(a["decoder"][-1], b["decoder"][-1], strict=True)] for a, b in pairs]
    found["hidden_last_decoder"] = 0.5 * mean(last, reduction)
    found["attention_cross_probabilities"] = mean([divergences(a["cross"], b["cross"]) for a, b in pairs], reduction)
    vectors = [(a["encoder"][-1].mean(0), b["encoder"][-1].mean(0)) for a, b in pairs]
    found["sentence"] = np.mean([1 - s @ t / np.linalg.norm(s) / np.linalg.norm(t) for s, t in vectors])
    units = [[vector / np.linalg.norm(vector) for vector in pair] for pair in vectors]
    anchors, divergence = np.array([units[place][1] for place in (0, 2, 4)]), []
    for own, wanted in units:
        others = anchors[anchors @ wanted < 0.999]
        q, p = softmax(others @ own / 0.1), softmax(others @ wanted / 0.1)
        divergence.append((p * np.log(p / q)).sum())
    found["anchors"] = np.mean(divergence)
    kl, gold = [], []
    for a, b in pairs:
        q, p = softmax(a["logits"] / 2), softmax(b["logits"] / 2)
        kl.append([4 * (p[i] * np.log(p[i] / q[i])).sum() for i in range(len(p))])
        gold.append([-np.log(softmax(a["logits"])[i, token]) for i, token in enumerate(a["targets"])])
    return found | {"logits": mean(kl, reduction), "labels": 0.5 * mean(gold, reduction)}


@pytest.mark.parametrize("reduction", ["tokens", "examples"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_of_padded_batches_are_those_of_single_pairs(name, reduction):
    teacher, tokens = make(name), tokens_of()
    student = make_student(teacher)
    batch = tokens.batch(range(5))
    assert 0 < int(batch["attention_mask"].sum()) < batch["attention_mask"].numel()
    assert 0 < int(batch["decoder_attention_mask"].sum()) < batch["decoder_attention_mask"].numel()
    found = losses_of({**TERMS, "reduction": reduction}, teacher, student, batch)
    wanted = expected(student, teacher, tokens, reduction)
    assert set(found) == set(wanted) | {"attention_cross_scores"}
    for loss, value in wanted.items():
        assert found[loss] == pytest.approx(value, rel=1e-4), loss
        assert value > 1e-4, loss


def test_scores_of_cross_attention():
    """Queries of real target tokens with keys of real source tokens, out of hooks on the maps that give them."""
    teacher, tokens = make("bart_lm"), tokens_of()
    student, seen = make_student(teacher), []
    scores = []
    for model in (student, teacher):
        attention = model.model.decoder.layers[0].encoder_attn
        for part in (attention.q_proj, attention.k_proj):
            part.register_forward_hook(lambda module, args, output: seen.append(output[0].double().view(-1, 4, 4)))
        scores.append([])
        for place in range(len(tokens)):
            seen.clear()
            run(model, tokens.batch([place]), Objective(config(), student, teacher).needs(0))
            query, key = seen
            scores[-1].append(torch.einsum("qhd,khd->hqk", query, key).detach().numpy() / 2)
    squares = np.concatenate([((s - t) ** 2).ravel() for s, t in zip(*scores, strict=True)])
    found = losses_of(TERMS, teacher, student, tokens.batch(range(5)))["attention_cross_scores"]
    assert found == pytest.approx(squares.mean(), rel=1e-4)
    assert found > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_what_stands_in_padding_changes_nothing(name):
    teacher = make(name)
    student, batch = make_student(teacher), tokens_of().batch(range(5))
    before = losses_of(TERMS, teacher, student, batch)
    for ids, mask in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        batch[ids][batch[mask] == 0] = 17
    batch["targets"][batch["decoder_attention_mask"] == 0] = 18
    after = losses_of(TERMS, teacher, student, batch)
    assert after == pytest.approx(before, rel=1e-6)
    batch["decoder_input_ids"][0, 1] = 17
    changed = losses_of(TERMS, teacher, student, batch)
    assert {loss for loss in before if abs(changed[loss] - before[loss]) < 1e-6} == {
        "hidden_all_encoder", "attention_encoder_probabilities", "sentence", "anchors",
    }  # fmt: skip


@pytest.mark.parametrize("reduction", ["tokens", "examples"])
@pytest.mark.parametrize("count_padding", [False, True])
def test_parts_weighed_by_their_shares_make_the_whole(reduction, count_padding):
    teacher, tokens = make("t5_lm"), tokens_of(6)
    student, settings = make_student(teacher), {**TERMS, "reduction": reduction, "count_padding": count_padding}
    padded = (lambda size: 30) if count_padding else longest
    whole = losses_of(settings, teacher, student, tokens.batch(range(6), padded))
    parts = [tokens.batch([0, 1], padded), tokens.batch([2, 3, 4, 5], padded)]
    counts = [Objective(config(**settings), student, teacher).counts(part) for part in parts]
    total = dict.fromkeys(whole, 0.0)
    for part, count in zip(parts, counts, strict=True):
        shares = {name: value / sum(other[name] for other in counts) for name, value in count.items()}
        for loss, value in losses_of(settings, teacher, student, part, shares).items():
            total[loss] += value
    assert total == pytest.approx(whole, rel=1e-4)


def test_every_stack_has_its_own_layers():
    teacher, batch = make("t5_lm"), tokens_of().batch(range(5))  # two layers in the encoder, one in the decoder
    student = make_student(teacher)
    found = losses_of({"hidden": [{"layers": [(1, 2)], "stack": "encoder"}]}, teacher, student, batch)
    assert list(found) == ["hidden_encoder"]
    with pytest.raises(DistillError, match=r"decoder: layers 2 ← 2: .* give a term for each stack"):
        Objective(config(hidden=[{"layers": [2]}]), student, teacher)
    small = tf.T5Config(**{**teacher.config.to_dict(), "num_layers": 1})
    shallow = tf.T5ForConditionalGeneration(small).eval()
    objective = Objective(config(hidden=[{"layers": "all"}]), shallow, teacher)
    assert [(stack.name, pairs) for _, stack, pairs in objective.hidden] == [
        ("encoder", [(0, 0), (1, 2)]), ("decoder", [(0, 0), (1, 1)]),
    ]  # fmt: skip
    plain = make_teacher()
    with pytest.raises(DistillError, match="stack='decoder' is for encoder–decoders"):
        Objective(config(hidden=[{"stack": "decoder"}]), make_student(plain), plain)
    with pytest.raises(DistillError, match="relates tokens of one stack"):
        distil(teacher, student, rows(), config={"attention": [{"stack": "cross", "kind": "values"}]})


@pytest.mark.parametrize("name", MODELS)
def test_a_head_is_only_run_where_logits_are_asked_for(name):
    teacher, batch, calls = make(name), tokens_of().batch(range(5)), []
    student = make_student(teacher)
    student.lm_head.register_forward_hook(lambda *args: calls.append(1))
    with_head = losses_of({"hidden": [{"layers": "all"}], "logits": {}}, teacher, student, batch)
    assert calls == [1]
    without = losses_of({"hidden": [{"layers": "all"}]}, teacher, student, batch)
    assert calls == [1]
    assert without == pytest.approx({name: with_head[name] for name in without}, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_student_learns_from_pairs(name):
    teacher = make(name)
    student = make_student(teacher)
    settings = config(logits={"temperature": 2.0}, labels={"weight": 0.01}, steps=30, validation=6)
    outcome = distil(teacher, student, rows(), config=settings, tokenizer=make_tokenizer())
    history = outcome.histories[0]
    before, after = history.held_out[0], history.held_out[-1]
    assert {"hidden_last_encoder", "hidden_last_decoder", "logits", "labels"} <= set(before)
    assert after["logits"] < 0.8 * before["logits"]
    assert after["hidden_last_encoder"] < 0.8 * before["hidden_last_encoder"]
    assert outcome.data["held_out"] == 6


def test_texts_without_targets_are_their_own_behind_a_noisy_source():
    teacher = make("bart_lm")
    student = make_student(teacher)
    settings = config(hidden=[{"layers": "all"}], logits={}, steps=20, validation=9)
    history = distil(teacher, student, sentences(96), config=settings, tokenizer=make_tokenizer()).histories[0]
    assert history.held_out[-1]["loss"] < 0.8 * history.held_out[0]["loss"]
    two = fewfold.compress(
        copy.deepcopy(teacher), fewfold.LowRank(rank=4, weighting="none"), calibration=sentences(40),
        tokenizer=make_tokenizer(), recover="2 steps",
    )  # fmt: skip
    assert two.config.quantization_config.structure.provenance["recoveries"][0]["steps"] == 2


def test_a_killed_run_ends_where_an_uninterrupted_one_ends(tmp_path, monkeypatch):
    teacher = make("t5_lm")
    settings = config(logits={}, steps=7, accumulation=2, checkpoint_minutes=1e-9, validation=6)
    start, options = make_student(teacher), {"config": settings, "tokenizer": make_tokenizer()}
    straight, killed, resumed = (copy.deepcopy(start) for _ in range(3))
    distil(teacher, straight, rows(), **options)
    live = kill_at(monkeypatch, 4)
    with pytest.raises(Killed):
        distil(teacher, killed, rows(), checkpoints=tmp_path, **options)
    live()
    distil(teacher, resumed, rows(), checkpoints=tmp_path, **options)
    assert float((parameters(resumed) - parameters(straight)).abs().max()) < 1e-6
    assert float((parameters(straight) - parameters(start)).abs().max()) > 1e-3
    other = [*rows()[:-1], {"source": "a cat", "target": "a dog"}]
    with pytest.raises(DistillError, match="other settings, data or student"):
        distil(teacher, copy.deepcopy(start), other, checkpoints=tmp_path, **options)


def test_recurrent_translation_learns_from_logits():
    from fewfold.models.translation.config import RecurrentTranslationConfig
    from fewfold.models.translation.model import RecurrentTranslationModel

    sizes = RecurrentTranslationConfig(vocab_size=19, embedding_size=8, hidden_size=12, dropout=0.0)
    torch.manual_seed(0)
    teacher = RecurrentTranslationModel(sizes).eval()
    student = RecurrentTranslationModel(sizes).eval()
    settings = config(hidden=[], logits={}, steps=30, validation=6)
    history = distil(teacher, student, rows(), config=settings, tokenizer=make_tokenizer()).histories[0]
    assert history.held_out[-1]["loss"] < 0.8 * history.held_out[0]["loss"]
    with pytest.raises(DistillError, match="does not give hidden states of its decoder: learn from logits alone"):
        distil(teacher, student, rows(), config=config(), tokenizer=make_tokenizer())


def test_pairs_that_do_not_fit(tmp_path):
    teacher, tokenizer = make("t5_lm"), make_tokenizer()
    student = make_student(teacher)

    def refused(message, data, teacher=teacher, student=student, own=None, **values):
        with pytest.raises(DistillError, match=message):
            distil(teacher, student, data, config=config(**values), tokenizer=tokenizer, student_tokenizer=own)

    refused("row 1 of the data has no 'target'", [*rows(1), {"source": "a cat", "target": None}])
    refused("row 1 of the data has a blank 'target'", [*rows(1), {"source": "a cat", "target": " "}])
    refused(r"no column label or labels or score and no columns source\+target", sentences(9), labels={})
    refused("for example 'the' is 5 and None", rows(), own=make_tokenizer(["wolf"]))
    refused("the student a model of one stack", rows(), student=make_teacher())
    from fewfold.models.mask_predict.config import MaskPredictConfig
    from fewfold.models.mask_predict.model import MaskPredictModel

    at_once = MaskPredictModel(
        MaskPredictConfig(
            vocab_size=61, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=8, decoder_ffn_dim=8, pad_token_id=0,
        )
    )  # fmt: skip
    refused("predicts all tokens of a target at once", rows(), teacher=at_once)
    with pytest.raises(DistillError, match="leave it out for encoder–decoders"):
        distil(teacher, student, rows(), config=config(), tokenizer=tokenizer, cache_teacher=tmp_path)
    held = [rows(12)[3]["target"]]
    kept = distil(teacher, student, rows(12), config=config(steps=1), tokenizer=tokenizer, exclude=held)
    assert kept.data["excluded"] == 1
