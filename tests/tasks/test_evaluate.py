"""Whole evaluations on tiny written data."""

import copy
import json

import numpy as np
import pytest
import torch
import transformers as tf

import fewfold
from fewfold import LowRank, TaskError
from fewfold.tasks import FineTuning, evaluate, with_head
from fewfold.tasks.classify import Classification
from fewfold.tasks.data import SentencePair
from fewfold.tasks.glue import read_glue
from fewfold.tasks.result import over_seeds
from fewfold.tasks.squad import read_squad
from fewfold.tasks.squad_metrics import exact_match, token_f1
from fewfold.tasks.sts import sts_score
from fewfold.tasks.tuner import Tuner

QUICK = FineTuning(learning_rate=3e-3, epochs=3, batch_size=8)


def classes(model, tokenizer, texts):
    with torch.no_grad():
        return [int(model(**tokenizer(*text, return_tensors="pt")).logits.argmax()) for text in texts]


def test_as_it_is_against_a_plain_loop(root, tokenizer, body, tmp_path):
    model = balanced(with_head(body, 2, seed=3), tokenizer)
    result = evaluate(model, "sst2", tokenizer=tokenizer, predictions=tmp_path / "new" / "p.jsonl")
    examples = read_glue("sst2", "dev").examples
    predicted = classes(model, tokenizer, [(example.first,) for example in examples])
    expected = np.mean([a == example.label for a, example in zip(predicted, examples, strict=True)])
    assert set(predicted) == {0, 1}
    assert result.metrics == {"accuracy": {"mean": pytest.approx(expected), "std": None, "values": [expected]}}
    score = result.runs[0].judged.metrics["accuracy"]
    assert score.low < expected < score.high
    records = [json.loads(line) for line in (tmp_path / "new" / "p.jsonl").read_text().splitlines()]
    assert [record["prediction"] for record in records] == predicted
    assert [record["label"] for record in records] == [example.label for example in examples]
    tokens = sum(len(tokenizer(example.first)["input_ids"]) for example in examples)
    assert result.tokens == tokens
    assert result.runs[0].training is None


def balanced(model, tokenizer):
    """Shift the logits so that no class is all that the model says."""
    with torch.no_grad():
        texts = [example.first for example in read_glue("sst2", "dev").examples]
        found = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
        model.classifier.bias -= torch.stack(found).mean(dim=0)
    return model


@pytest.mark.parametrize("is_compressed", [False, True])
def test_fine_tuning_over_seeds(is_compressed, root, tokenizer, body, tmp_path):
    if is_compressed:
        fewfold.compress(body, LowRank(targets="linears", rank=8, weighting="none", stored_dtype="int8"))
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    result = evaluate(body, "sst2", tokenizer=tokenizer, finetune=QUICK, seeds=(0, 1), predictions=tmp_path / "p.jsonl")
    assert type(body) is tf.BertModel
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())
    found = result.metrics["accuracy"]
    assert found["mean"] > 0.9
    assert found["mean"] == pytest.approx(sum(found["values"]) / 2)
    assert found["std"] == pytest.approx(abs(found["values"][0] - found["values"][1]) / 2**0.5)
    assert [run.training.examples for run in result.runs] == [96, 96]
    assert [run.training.steps for run in result.runs] == [36, 36]
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 60
    record = json.loads(result.save(tmp_path / "r" / "result.json").read_text())
    assert record == json.loads(json.dumps(result.to_dict()))
    assert record["model"]["compressed"] is is_compressed
    assert record["model"]["head"] == "fresh"
    assert record["data"]["train"] == {"source": "sst2/train.tsv", "examples": 96}
    assert record["settings"]["finetune"]["learning_rate"] == 3e-3
    assert {"torch", "cpu", "fewfold"} <= set(record["environment"])
    assert record["minutes"] * 60 >= sum(run["training"]["seconds"] for run in record["runs"])
    assert record["tokens"] == sum(run["training"]["tokens"] + run["evaluation"]["tokens"] for run in record["runs"])
    if is_compressed:
        assert record["model"]["replaced"] == {"low_rank in int8": 12}
        assert record["model"]["steps"][0]["methods"][0]["method"] == "low_rank"
        assert record["model"]["dense_parameters"] > record["model"]["parameters"]


class Killed(BaseException):
    """In place of a signal."""


@pytest.mark.parametrize("dies", [20, 72])
def test_a_killed_evaluation_goes_on_to_the_same_result(dies, root, tokenizer, body, tmp_path, monkeypatch):
    """In the second seed's training, and in its judgement."""
    expected = evaluate(body, "sst2", tokenizer=tokenizer, finetune=QUICK, seeds=(1, 0))
    steps, trains = [], Tuner.training_step

    def step(self, *arguments, **named):
        steps.append(self.args.seed)
        if dies == 20 and len(steps) == 36 + dies:
            raise Killed
        return trains(self, *arguments, **named)

    monkeypatch.setattr(Tuner, "training_step", step)
    judge, judged = Classification.judge, []

    def judge_once(*arguments):
        judged.append(1)
        if dies == 72 and len(judged) == 2:
            raise Killed
        return judge(*arguments)

    monkeypatch.setattr(Classification, "judge", judge_once)
    arguments = {"tokenizer": tokenizer, "finetune": QUICK, "seeds": (1, 0), "checkpoint_minutes": 0.0}
    folder = tmp_path / "kept"
    with pytest.raises(Killed):
        evaluate(body, "sst2", checkpoints=folder, **arguments)
    found = evaluate(body, "sst2", checkpoints=folder, predictions=tmp_path / "p.jsonl", **arguments)
    assert steps.count(1) == 36
    assert steps.count(0) == (37 if dies == 20 else 36)
    assert found.metrics == expected.metrics
    assert [run.seed for run in found.runs] == [1, 0]
    spent = sum(run.training.seconds + run.judged.seconds for run in found.runs)
    assert found.minutes >= spent / 60 - 1e-9
    assert [run.judged.predictions for run in found.runs] == [run.judged.predictions for run in expected.runs]
    assert found.model == expected.model
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 60
    before = len(steps)
    evaluate(body, "sst2", checkpoints=folder, **arguments)
    assert len(steps) == before
    evaluate(body, "sst2", checkpoints=folder, eval_limit=5, **{**arguments, "seeds": (0,)})
    assert len(steps) == before + 36


def test_other_examples_are_judged_anew(root, tokenizer, body, tmp_path):
    settings = {"tokenizer": tokenizer, "finetune": FineTuning(learning_rate=3e-3, epochs=1, batch_size=32)}
    first = evaluate(body, "sst2", checkpoints=tmp_path / "kept", **settings)
    dev = root / "glue/sst2/dev.tsv"
    head, *rows = dev.read_text().splitlines()
    dev.write_text("\n".join([head, *(f"{row[:-1]}{1 - int(row[-1])}" for row in rows[:-1])]) + "\n")
    again = evaluate(body, "sst2", checkpoints=tmp_path / "kept", **settings)
    fresh = evaluate(body, "sst2", **settings)
    assert again.metrics == fresh.metrics != first.metrics
    assert again.runs[0].judged.predictions == fresh.runs[0].judged.predictions
    assert len(fresh.runs[0].judged.predictions) == len(first.runs[0].judged.predictions) - 1


def test_limits(root, tokenizer, body):
    settings = FineTuning(epochs=1, batch_size=8, limit=20)
    result = evaluate(body, "sst2", tokenizer=tokenizer, finetune=settings, eval_limit=7)
    run = result.runs[0]
    assert (run.training.examples, run.training.steps, run.judged.examples) == (20, 3, 7)
    assert result.to_dict()["settings"]["finetune"]["limit"] == 20
    assert result.to_dict()["settings"]["eval_limit"] == 7


def test_a_head_that_fits_goes_on(root, tokenizer, body):
    model = with_head(body, 2)
    model.classifier.bias.data[:] = torch.tensor([9.0, -9.0])
    tiny = FineTuning(learning_rate=1e-9, epochs=1)
    result = evaluate(model, "sst2", tokenizer=tokenizer, finetune=tiny)
    assert result.model["head"] == "kept"
    assert {record["prediction"] for record in result.runs[0].judged.predictions} == {0}


def test_mnli_on_both_dev_sets_with_labels_in_another_order(root, tokenizer, make_body):
    model = with_head(make_body(), 3, seed=1)
    plain = evaluate(model, "mnli", tokenizer=tokenizer)
    assert list(plain.metrics) == ["accuracy_matched", "accuracy_mismatched"]
    for split, count in (("dev_matched", 9), ("dev_mismatched", 12)):
        examples = read_glue("mnli", split).examples
        predicted = classes(model, tokenizer, [(example.first, example.second) for example in examples])
        records = [record for record in plain.runs[0].judged.predictions if record["split"] == split]
        assert [record["prediction"] for record in records] == predicted
        assert len(records) == count
    other = copy.deepcopy(model)
    order = [2, 0, 1]  # output 0 says contradiction, 1 entailment, 2 neutral
    other.classifier.weight.data[:] = model.classifier.weight.data[order]
    other.classifier.bias.data[:] = model.classifier.bias.data[order]
    other.config.id2label = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}
    other.config.label2id = {name: number for number, name in other.config.id2label.items()}
    again = evaluate(other, "mnli", tokenizer=tokenizer)
    for one, same in zip(plain.runs[0].judged.predictions, again.runs[0].judged.predictions, strict=True):
        assert one["logits"] == pytest.approx(same["logits"], abs=2e-5)
    trained = evaluate(
        other, "mnli", tokenizer=tokenizer, finetune=FineTuning(learning_rate=1e-9, epochs=1, batch_size=99)
    )
    direct = evaluate(
        model, "mnli", tokenizer=tokenizer, finetune=FineTuning(learning_rate=1e-9, epochs=1, batch_size=99)
    )
    assert trained.runs[0].training.loss == pytest.approx(direct.runs[0].training.loss, rel=1e-5)


def test_scores_of_sts_with_and_without_a_head(root, tokenizer, make_body):
    body, examples = make_body(), read_glue("stsb", "dev").examples
    bare = evaluate(body, "stsb", tokenizer=tokenizer)
    pairs = [SentencePair(example.first, example.second, example.label) for example in examples]
    expected = sts_score(body, tokenizer, pairs)
    assert bare.metrics["spearman"]["mean"] == pytest.approx(expected.spearman)
    assert bare.runs[0].judged.metrics["spearman"].low == pytest.approx(expected.low, abs=1e-6)
    assert bare.runs[0].judged.by == "cosines"
    tuned = evaluate(body, "stsb", tokenizer=tokenizer, finetune=QUICK)
    assert tuned.runs[0].judged.by == "head"
    assert tuned.model["class"] == "BertForSequenceClassification"
    assert tuned.metrics["spearman"]["mean"] > bare.metrics["spearman"]["mean"]
    assert tuned.metrics["pearson"]["mean"] > 0.5


def test_squad_from_training_to_answers(root, tokenizer, body, tmp_path):
    chance = evaluate(with_head(copy.deepcopy(body), kind="question-answering"), "squad", tokenizer=tokenizer, stride=4,
                      max_length=32)  # fmt: skip
    result = evaluate(
        body, "squad", tokenizer=tokenizer, finetune=FineTuning(learning_rate=3e-3, epochs=8, batch_size=16), stride=4,
        max_length=20, eval_limit=20, predictions=tmp_path / "p.jsonl",
    )  # fmt: skip
    assert chance.metrics["exact_match"]["mean"] < 0.4
    assert result.metrics["exact_match"]["mean"] > 0.8
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    questions = read_squad("dev").questions[:20]
    assert [record["id"] for record in records] == [question.id for question in questions]
    pairs = [(record["prediction"], question.answers) for record, question in zip(records, questions, strict=True)]
    assert result.metrics["f1"]["mean"] == pytest.approx(np.mean([token_f1(*pair) for pair in pairs]))
    assert result.metrics["exact_match"]["mean"] == pytest.approx(np.mean([exact_match(*pair) for pair in pairs]))
    assert all(record["n_best"][0][0] == record["prediction"] for record in records)
    run = result.runs[0]
    assert run.judged.examples == 20
    assert run.judged.rows >= 20
    assert result.data["stride"] == 4


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_models_without_the_head(task, root, tokenizer, body):
    with pytest.raises(TaskError, match=f"{task}: BertModel has no head for it.*finetune=FineTuning"):
        evaluate(body, task, tokenizer=tokenizer)


def test_arguments_that_make_no_sense(root, tokenizer, body):
    for changes, message in (
        ({"task": "wnli"}, "choose one of cola.*squad"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (0, 1)}, "only one where nothing is trained"),
        ({"eval_limit": 0}, "eval_limit=0"),
    ):
        with pytest.raises(TaskError, match=message):
            evaluate(body, **{"task": "stsb", "tokenizer": tokenizer, **changes})


def test_mean_and_spread_by_hand():
    found = over_seeds([{"f1": 1.0}, {"f1": 2.0}, {"f1": 6.0}])["f1"]
    assert found == {"mean": 3.0, "std": pytest.approx(7**0.5), "values": [1.0, 2.0, 6.0]}
