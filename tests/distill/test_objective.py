"""The weighted sum: layers, projections, attention taken from running models, and parts of a batch."""

import numpy as np
import pytest
import torch
from distill_models import config, make_student, make_teacher, make_tokenizer, sentences
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from fewfold import DistillError
from fewfold.distill.attention import recording
from fewfold.distill.examples import Examples
from fewfold.distill.objective import Objective
from fewfold.distill.outputs import Needs, run
from fewfold.distill.stacks import layer_pairs
from fewfold.distill.targets import longest
from fewfold.distill.tokens import tokenise


def batch_of(count=4):
    return tokenise(Examples(sentences(count, seed=5)), make_tokenizer(), 32).batch(range(count))


def losses_of(settings, teacher, student, batch=None, shares=None, tokens=None):
    objective = Objective(config(**settings), student, teacher)
    if tokens is not None:
        objective.prepare(teacher, tokens)
    batch = batch if batch is not None else batch_of()
    with torch.no_grad():
        outputs = run(student, batch, objective.needs(0)), run(teacher, batch, objective.needs(1))
        return objective(*outputs, batch, shares or {})


def states(model, batch):
    with torch.no_grad():
        output = model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
    return [state[batch["attention_mask"].bool()].double().numpy() for state in output.hidden_states]


def test_hidden_states_of_chosen_layers(teacher):
    student, batch = make_student(teacher), batch_of()
    ours, theirs = states(student, batch), states(teacher, batch)
    errors = [((a - b) ** 2).mean() for a, b in zip(ours, theirs, strict=True)]
    for layers, expected in (("last", errors[2]), ("all", np.mean(errors)), ([1], errors[1])):
        (found,) = losses_of({"hidden": [{"weight": 3.0, "layers": layers}]}, teacher, student).values()
        assert float(found) == pytest.approx(3 * expected, rel=1e-5)
    assert errors[1] > 1e-3
    crossed = ((ours[1] - theirs[2]) ** 2).mean()
    (found,) = losses_of({"hidden": [{"layers": [(1, 2)]}]}, teacher, student).values()
    assert float(found) == pytest.approx(crossed, rel=1e-5)


def test_layers_of_unequal_depth():
    assert layer_pairs("all", 3, 12, first=0) == [(0, 0), (1, 4), (2, 8), (3, 12)]
    assert layer_pairs("all", 3, 12, first=1) == [(1, 4), (2, 8), (3, 12)]
    assert layer_pairs("last", 3, 12, first=0) == [(3, 12)]
    with pytest.raises(DistillError, match="layers 4 ← 16"):
        layer_pairs([4], 3, 12, first=0)


def test_a_projection_maps_widths():
    teacher, student = make_teacher(width=16), make_teacher(width=8, seed=1)
    with pytest.raises(DistillError, match="hidden size is 8 and the teacher's 16: set projection=True"):
        Objective(config(), student, teacher)
    objective = Objective(config(projection=True, sentence={}), student, teacher)
    batch = batch_of()
    with torch.no_grad():
        ours, theirs = run(student, batch, objective.needs(0)), run(teacher, batch, objective.needs(1))
        found = objective(ours, theirs, batch, {})
    projection = objective.projections["2"]
    mapped = states(student, batch)[2] @ projection.weight.detach().double().numpy().T
    mapped = mapped + projection.bias.detach().double().numpy()
    expected = ((mapped - states(teacher, batch)[2]) ** 2).mean()
    assert float(found["hidden_last"]) == pytest.approx(expected, rel=1e-5)
    assert 0 < float(found["sentence"]) < 2


@pytest.mark.parametrize("count", [3, 99])
def test_anchors_are_texts_evenly_spaced_in_the_data(teacher, count):
    student, texts = make_student(teacher, rank=1), sentences(7, seed=5)
    tokens = tokenise(Examples(texts), make_tokenizer(), 32)

    def vectors(model, places):
        found = [states(model, tokens.batch([place]))[2].mean(0) for place in places]
        return np.array([vector / np.linalg.norm(vector) for vector in found])

    anchors = vectors(teacher, [0, 3, 6] if count == 3 else range(7))
    settings = {"hidden": [], "anchors": {"weight": 2.0, "count": count, "temperature": 0.2}}
    (found,) = losses_of(settings, teacher, student, tokens.batch([1, 3]), tokens=tokens).values()
    divergences = []
    for own, wanted in zip(vectors(student, [1, 3]), vectors(teacher, [1, 3]), strict=True):
        others = anchors[anchors @ wanted < 0.999]  # the fourth text is an anchor itself
        assert len(others) < len(anchors) or count == 3
        q, p = (np.exp(others @ vector / 0.2) for vector in (own, wanted))
        q, p = q / q.sum(), p / p.sum()
        divergences.append((p * np.log(p / q)).sum())
    assert float(found) == pytest.approx(2 * np.mean(divergences), rel=1e-3)
    assert float(found) > 1e-3


def test_anchors_of_masked_language_models_are_whole_texts():
    """Their logits are asked of hidden tokens alone, and anchors hide none."""
    teacher = make_teacher(BertForMaskedLM)
    student, tokens = make_student(teacher), tokenise(Examples(sentences(6, seed=5)), make_tokenizer(), 32)
    objective = Objective(config(hidden=[], logits={}, anchors={}, masking=0.3), student, teacher)
    objective.sparse = True
    objective.prepare(teacher, tokens)
    expected = Objective(config(hidden=[], anchors={}), teacher.bert, teacher.bert)
    expected.prepare(teacher.bert, tokens)
    torch.testing.assert_close(objective.anchors, expected.anchors)


def eager_attention(model, batch):
    """Probabilities as the model itself reports them."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(batch["input_ids"], batch["attention_mask"], output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return found


@pytest.mark.parametrize("layer", [1, 2])
def test_recorded_attention_is_what_the_model_attends_to(teacher, layer):
    batch = batch_of()
    with torch.no_grad(), recording(teacher, [layer]) as heads:
        output = teacher(batch["input_ids"], batch["attention_mask"])
    hidden = (1 - batch["attention_mask"][:, None, None, :]) * -1e9
    found = (heads[layer].scores() + hidden).softmax(-1)
    torch.testing.assert_close(found, eager_attention(teacher, batch)[layer - 1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        plain = teacher(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(output.last_hidden_state, plain.last_hidden_state)
    assert teacher.config._attn_implementation == "sdpa"


def test_recording_goes_through_grouped_keys():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=19, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    intermediate_size=24, max_position_embeddings=40)
    ).eval()  # fmt: skip
    batch = batch_of()
    outputs = run(model, batch, Needs(attention=(2,)))
    hidden = torch.ones(outputs.attention[2].scores().shape[-2:]).tril() == 0
    mask = (hidden | ~batch["attention_mask"].bool()[:, None, None, :]) * -1e9
    found = (outputs.attention[2].scores() + mask).softmax(-1)
    expected = eager_attention(model, batch)[1]
    real = batch["attention_mask"].bool()[:, None, :, None].expand_as(found)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["scores", "probabilities", "values"])
def test_unequal_heads_are_refused(teacher, kind):
    fewer = make_teacher()
    fewer.config.num_attention_heads = 2
    student = BertModel(fewer.config)
    with pytest.raises(DistillError, match="student and teacher have 2 and 4 heads"):
        losses_of({"hidden": [], "attention": [{"kind": kind}]}, teacher, student)


@pytest.mark.parametrize("kind", ["scores", "probabilities", "values"])
def test_attention_of_a_running_pair(teacher, kind):
    settings = {"hidden": [], "attention": [{"kind": kind, "layers": "all"}]}
    student, batch = make_student(teacher), batch_of()
    (found,) = losses_of(settings, teacher, student).values()
    with torch.no_grad(), recording(student, [1, 2]) as ours:
        student(batch["input_ids"], batch["attention_mask"])
    with torch.no_grad(), recording(teacher, [1, 2]) as theirs:
        teacher(batch["input_ids"], batch["attention_mask"])
    values = []
    for layer in (1, 2):
        total, count = 0.0, 0
        for text, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            pair = [
                (h[layer].value_relations() if kind == "values" else h[layer].scores())[text, :, :length, :length]
                for h in (ours, theirs)
            ]
            s, t = (x.double() for x in pair)
            if kind == "scores":
                total, count = total + float(((s - t) ** 2).sum()), count + s.numel()
            else:
                p, q = t.softmax(-1), s.softmax(-1)
                total, count = total + float((p * (p / q).log()).sum()), count + s.shape[0] * length
        values.append(total / count)
    assert float(found) == pytest.approx(np.mean(values), rel=1e-4)
    assert float(found) > 1e-4
    (zero,) = losses_of(settings, teacher, teacher).values()
    assert float(zero) == pytest.approx(0, abs=1e-6)


def test_the_published_terms_sum_means_over_a_padded_batch(teacher):
    """As the published code has it: sums over the batch of means over all positions, masked scores as zeros."""
    student, tokens = make_student(teacher), tokenise(Examples(sentences(4, seed=5)), make_tokenizer(), 32)
    batch = tokens.batch(range(4), lambda longest: 20)
    settings = {
        "hidden": [{"weight": 4}], "attention": [{"weight": 4, "kind": "scores"}], "reduction": "examples",
        "count_padding": True,
    }  # fmt: skip
    found = losses_of(settings, teacher, student, batch)
    with torch.no_grad(), recording(student, [2]) as ours:
        s = student(batch["input_ids"], batch["attention_mask"]).last_hidden_state.double()
    with torch.no_grad(), recording(teacher, [2]) as theirs:
        t = teacher(batch["input_ids"], batch["attention_mask"]).last_hidden_state.double()
    assert s.shape[1] == 20
    assert float(found["hidden_last"]) == pytest.approx(sum(float(((s[b] - t[b]) ** 2).mean()) for b in range(4)))
    masked = (1 - batch["attention_mask"][:, None, None, :]) * -10000.0
    scores = [(h[2].scores() + masked).double() for h in (ours, theirs)]
    scores = [torch.where(x <= -100, 0.0, x) for x in scores]
    expected = sum(float(((scores[0][b] - scores[1][b]) ** 2).mean()) for b in range(4))
    assert float(found["attention_scores"]) == pytest.approx(expected, rel=1e-5)


def test_a_head_is_only_run_where_logits_are_asked_for():
    teacher = make_teacher(BertForMaskedLM)
    student, batch = make_student(teacher), batch_of()
    assert run(student, batch, Needs(last=True)).logits is None
    outputs = run(student, batch, Needs(last=True, logits=True))
    assert outputs.logits is not None
    assert outputs.logits.shape[-1] == 19
    torch.testing.assert_close(outputs.last, run(student, batch, Needs(last=True)).last)
    found = losses_of({"hidden": [], "logits": {"temperature": 2.0}}, teacher, student)
    assert float(found["logits"]) > 0


def test_losses_of_a_classifier(classifier):
    student, batch = make_student(classifier), batch_of()
    batch["labels"] = torch.tensor([0.0, 2.0, 1.0, 1.0])
    settings = {"hidden": [], "logits": {"temperature": 2.0, "weight": 0.5}, "labels": {"weight": 2.0}}
    found = losses_of(settings, classifier, student, batch)
    with torch.no_grad():
        s, t = (m(batch["input_ids"], batch["attention_mask"]).logits.double() for m in (student, classifier))
    p, q = (t / 2).softmax(-1), (s / 2).softmax(-1)
    assert float(found["logits"]) == pytest.approx(float(0.5 * 4 * (p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    gold = -s.log_softmax(-1)[range(4), [0, 2, 1, 1]].mean()
    assert float(found["labels"]) == pytest.approx(2 * float(gold), rel=1e-5)


@pytest.mark.parametrize("kind", ["kl", "soft_cross_entropy"])
def test_a_head_of_one_score_learns_the_teachers(kind):
    teacher, batch = make_teacher(BertForSequenceClassification, num_labels=1), batch_of()
    student = make_student(teacher, rank=1)
    (found,) = losses_of({"hidden": [], "logits": {"kind": kind, "weight": 3.0}}, teacher, student).values()
    with torch.no_grad():
        s, t = (m(batch["input_ids"], batch["attention_mask"]).logits.double() for m in (student, teacher))
    assert float(found) == pytest.approx(3 * float((s - t).square().mean()), rel=1e-5)
    assert float(found) > 1e-6


def test_answers_places_are_learned_from_the_teachers():
    teacher, batch = make_teacher(BertForQuestionAnswering), batch_of()
    student = make_student(teacher)
    (found,) = losses_of({"hidden": [], "logits": {"temperature": 2.0}}, teacher, student).values()
    with torch.no_grad():
        outputs = [m(batch["input_ids"], batch["attention_mask"]) for m in (student, teacher)]
    divergences = []
    for text, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        for name in ("start_logits", "end_logits"):
            s, t = (output[name][text, :length].double() / 2 for output in outputs)
            p, q = t.softmax(-1), s.softmax(-1)
            divergences.append(4 * float((p * (p / q).log()).sum()))
    assert float(found) == pytest.approx(np.mean(divergences), rel=1e-4)
    assert float(found) > 1e-4
    with pytest.raises(DistillError, match="take kind='kl'"):
        losses_of({"hidden": [], "logits": {"kind": "soft_cross_entropy"}}, teacher, student)
    with pytest.raises(DistillError, match="from such a teacher's alone, without labels"):
        losses_of({"hidden": [], "labels": {}}, teacher, student)


def test_the_seed_decides_what_projections_begin_with():
    teacher, student = make_teacher(width=16), make_teacher(width=8, seed=1)
    drawn = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        drawn.append(Objective(config(projection=True, seed=seed), student, teacher).projections["2"].weight)
        assert torch.initial_seed() == state
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_models_without_heads_have_no_logits(teacher):
    with pytest.raises(DistillError, match="the student has no logits"):
        losses_of({"hidden": [], "logits": {}}, teacher, make_student(teacher))


@pytest.mark.parametrize("kind", ["scores", "probabilities", "values"])
@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize("reduction", ["tokens", "examples"])
def test_parts_weighed_by_their_shares_make_the_whole(reduction, count_padding, kind):
    teacher = make_teacher(BertForSequenceClassification, num_labels=3)
    student = make_student(teacher)
    tokens = tokenise(Examples(sentences(6, seed=5)), make_tokenizer(), 32)
    settings = {
        "hidden": [{"layers": "all"}], "attention": [{"kind": kind}], "sentence": {}, "logits": {},
        "anchors": {"count": 4}, "reduction": reduction, "count_padding": count_padding,
    }  # fmt: skip

    def batch(places):
        return tokens.batch(places, (lambda longest: 20) if count_padding else longest)

    whole = losses_of(settings, teacher, student, batch(range(6)), tokens=tokens)
    objective = Objective(config(**settings), student, teacher)
    parts = [batch([0, 1]), batch([2, 3, 4, 5])]
    counts = [objective.counts(part) for part in parts]
    total = dict.fromkeys(whole, 0.0)
    for part, count in zip(parts, counts, strict=True):
        shares = {name: value / sum(other[name] for other in counts) for name, value in count.items()}
        for name, loss in losses_of(settings, teacher, student, part, shares, tokens).items():
            total[name] += float(loss)
    for name, loss in whole.items():
        assert total[name] == pytest.approx(float(loss), rel=1e-4), name
