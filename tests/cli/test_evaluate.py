"""fewfold evaluate."""

import gzip
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

import fewfold
from fewfold.measure.fidelity import fidelity, nearest_neighbours, sentence_embeddings
from fewfold.tasks import FineTuning, evaluate, probe
from fewfold.tasks.perplexity import masked_perplexity, perplexity
from fewfold.tasks.tuner import Tuner
from fewfold_cli import files


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Reviews of things that are big or small."""
    folder = tmp_path / "data"
    monkeypatch.setenv("FEWFOLD_DATA", str(folder))
    for split, count in (("train", 64), ("dev", 24)):
        rows = [
            f"the {'big' if i % 2 else 'small'} {['cat', 'dog', 'tree'][i % 3]} sleeps\t{i % 2}" for i in range(count)
        ]
        (folder / "sst2").mkdir(parents=True, exist_ok=True)
        (folder / "sst2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]))
    (folder / "stsb").mkdir()
    rows = [f"g\tf\ty\t1\t{i % 5 + 0.5}\tthe {'big' if i % 2 else 'old'} cat runs\ta cat sleeps" for i in range(12)]
    (folder / "stsb" / "dev.tsv").write_text("\n".join(rows))
    return folder


def test_fine_tuned_over_seeds(run, small, root, tmp_path):
    options = ("--finetune", "--seeds", 2, "--limit", 48, "--epochs", 2, "--learning-rate", 1e-3, "--batch", 8)
    files = ("--out", tmp_path / "result.json", "--predictions", tmp_path / "predictions.jsonl")
    shown = run("evaluate", small.folder, "--task", "sst2", *options, *files)
    assert shown.code == 0
    result = json.loads((tmp_path / "result.json").read_text())
    found = result["metrics"]["accuracy"]
    model, tokenizer = fewfold.load(small.folder), AutoTokenizer.from_pretrained(small.folder)
    settings = FineTuning(1e-3, epochs=2, batch_size=8, limit=48)
    expected = evaluate(model, "sst2", tokenizer=tokenizer, finetune=settings, seeds=(0, 1))
    assert found == expected.metrics["accuracy"]
    assert [run["training"]["loss"] for run in result["runs"]] == [run.training.loss for run in expected.runs]
    assert f"{found['mean']:.4f}" in shown.out
    assert "standard deviation" in shown.out
    assert "fine-tuned, 2 seeds, first 48 training examples" in shown.out
    assert "trained on 48 examples" in shown.out
    assert result["model"]["replaced"] == {"low_rank in int8": 12}
    assert result["folder"] == str(small.folder)
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 48


def test_a_killed_fine_tuning_goes_on(run, small, root, tmp_path, monkeypatch):
    steps, trains = [], Tuner.training_step

    def step(self, *arguments, **named):
        steps.append(1)
        if len(steps) == 11:
            raise KeyboardInterrupt
        return trains(self, *arguments, **named)

    monkeypatch.setattr(Tuner, "training_step", step)
    options = ("--finetune", "--seeds", 2, "--limit", 48, "--epochs", 1, "--batch", 8, "--out", tmp_path / "r.json")
    assert run("evaluate", small.folder, "--task", "sst2", *options).code == 130
    kept = tmp_path / "r.json.checkpoints"
    assert len(list(kept.glob("seed-0-*/run.json"))) == 1
    assert run("evaluate", small.folder, "--task", "sst2", *options).code == 0
    assert len(steps) == 11 + 6
    assert not kept.exists()
    assert [run["seed"] for run in json.loads((tmp_path / "r.json").read_text())["runs"]] == [0, 1]


def test_probe(run, small, root, tmp_path):
    options = ("--probe", "--limit", 40, "--predictions", tmp_path / "predictions.jsonl")
    shown = run("evaluate", small.folder, "--task", "sst2", *options)
    assert shown.code == 0, shown.err
    model, tokenizer = fewfold.load(small.folder), AutoTokenizer.from_pretrained(small.folder)
    expected = probe(model, "sst2", tokenizer=tokenizer, limit=40)
    assert f"{expected.metrics['accuracy']['mean']:.4f}" in shown.out
    assert "a linear probe, fitted to 40 training examples" in " ".join(shown.out.split())
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 24
    for wrong in (("--finetune",), ("--seeds", 2)):
        assert run("evaluate", small.folder, "--task", "sst2", "--probe", *wrong).code != 0
    assert "is of tasks with examples" in run("evaluate", small.folder, "--task", "perplexity", "--probe").err


def test_as_it_is(run, small, root):
    result = run("evaluate", small.folder, "--task", "stsb", "--json")
    assert result.code == 0
    data = json.loads(result.out)
    model, tokenizer = fewfold.load(small.folder), AutoTokenizer.from_pretrained(small.folder)
    expected = evaluate(model, "stsb", tokenizer=tokenizer).metrics
    assert data["metrics"]["spearman"]["mean"] == pytest.approx(expected["spearman"]["mean"])
    shown = run("evaluate", small.folder, "--task", "stsb").out
    assert "95 % interval" in shown
    assert "as it is, by cosines of sentence vectors" in shown


def test_neighbours_against_another_model(run, small, encoder, texts):
    arguments = ("evaluate", small.folder, "--task", "neighbours", "--against", encoder, "--text", texts)
    data = json.loads(run(*arguments, "--eval-limit", 40, "--json").out)
    lines = texts.read_text().split("\n")[:40]
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    expected = fidelity(fewfold.load(encoder), fewfold.load(small.folder), tokenizer, lines)
    assert data["metrics"]["nn10"]["mean"] == pytest.approx(expected.neighbour_overlap)
    assert data["metrics"]["cosine"]["mean"] == pytest.approx(expected.cosine)
    assert "nn10" in run(*arguments).out
    short = json.loads(run(*arguments, "--eval-limit", 40, "--max-length", 4, "--json").out)
    expected = fidelity(fewfold.load(encoder), fewfold.load(small.folder), tokenizer, lines, max_length=4)
    assert short["metrics"]["cosine"]["mean"] == pytest.approx(expected.cosine)
    assert short["metrics"]["cosine"]["mean"] != pytest.approx(data["metrics"]["cosine"]["mean"], abs=1e-6)
    assert short["data"]["max_length"] == short["settings"]["max_length"] == 4
    assert short["settings"]["eval_limit"] == 40
    assert short["tokens"] == sum(min(4, len(row)) for row in tokenizer(lines)["input_ids"])
    few = run(*arguments, "--eval-limit", 5)
    assert "--eval-limit 5 leaves 5 distinct lines" in few.err


def test_neighbours_against_a_model_of_another_kind(run, encoder, texts, tmp_path):
    """Another width and another vocabulary: each model reads the texts with its own tokenizer."""
    vocabulary = {token: 60 - place for token, place in AutoTokenizer.from_pretrained(encoder).get_vocab().items()}
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    other = BertModel(
        BertConfig(vocab_size=61, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    fewfold.save(other, tmp_path / "other", tokenizer=tokenizer)
    arguments = ("evaluate", encoder, "--task", "neighbours", "--against", tmp_path / "other", "--text", texts)
    result = run(*arguments, "--eval-limit", 40, "--json")
    assert result.code == 0, result.err
    metrics = json.loads(result.out)["metrics"]
    lines = texts.read_text().split("\n")[:40]
    first, second = (
        nearest_neighbours(sentence_embeddings(fewfold.load(folder), AutoTokenizer.from_pretrained(folder), lines), 10)
        for folder in (encoder, tmp_path / "other")
    )
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert {name: found["mean"] for name, found in metrics.items()} == pytest.approx({"nn10": sum(shared) / 40})


def test_results_that_cannot_be_written_are_refused_first(run, small, tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda place, mode: Path(place) != tmp_path)
    for option in ("--out", "--predictions"):
        result = run("evaluate", small.folder, "--task", "stsb", option, tmp_path / "result.json")
        assert result.code == 1
        assert "no permission" in result.err


def test_perplexity_of_a_text(run, encoder, texts, tmp_path):
    from transformers import AutoModelForMaskedLM

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModelForMaskedLM.from_pretrained(encoder)
    fewfold.save(model, tmp_path / "lm", tokenizer=tokenizer)
    arguments = (
        "evaluate",
        tmp_path / "lm",
        "--task",
        "perplexity",
        "--text",
        texts,
        "--max-length",
        16,
        "--stride",
        4,
    )
    data = json.loads(run(*arguments, "--eval-limit", 30, "--json").out)
    expected = masked_perplexity(fewfold.load(tmp_path / "lm"), tokenizer, texts.read_text().split("\n"), 16, 4, 30)
    assert data["metrics"]["perplexity"]["mean"] == pytest.approx(expected.perplexity)
    assert data["data"]["tokens"] == data["tokens"] == 30
    assert data["settings"] == {"max_length": 16, "stride": 4, "eval_limit": 30}
    assert "masked model" in run(*arguments).out


def test_perplexity_of_a_named_text(run, encoder, tmp_path, monkeypatch):
    from transformers import AutoModelForMaskedLM

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModelForMaskedLM.from_pretrained(encoder)
    fewfold.save(model, tmp_path / "lm", tokenizer=tokenizer)
    lines = ["the cat sees a dog", "", "a small tree in the old house"]
    (tmp_path / "wikitext-2").mkdir()
    with gzip.open(tmp_path / "wikitext-2" / "test.txt.gz", "wt") as file:
        file.write("\n".join(lines))
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path))
    result = run("evaluate", tmp_path / "lm", "--task", "perplexity", "--text", "wikitext2-test", "--json")
    expected = perplexity(fewfold.load(tmp_path / "lm"), tokenizer, lines)
    data = json.loads(result.out)
    assert data["metrics"]["perplexity"]["mean"] == pytest.approx(expected.perplexity)
    assert data["data"]["source"] == "wikitext2-test"


def test_slow_bf16_is_told_before_training(run, encoder, monkeypatch, tmp_path):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewfold.measure.environment.bf16_is_slow", lambda: True)
    monkeypatch.setattr(Tuner, "run", interrupted)
    (tmp_path / "sst2").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "sst2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "a cat\t1\na dog\t0\n" * 20)
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path))
    result = run("evaluate", encoder, "--task", "sst2", "--finetune", "--bf16")
    assert result.code == 130
    assert "leave bf16 out here" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "sst2"), "finetune"),
        (("--task", "wnli"), "choose one of cola"),
        (("--task", "rte"), "rte"),
        (("--task", "sst2", "--limit", 5), "--finetune"),
        (("--task", "perplexity"), "--text FILE"),
        (("--task", "perplexity", "--text", "none.txt"), "none.txt"),
        (("--task", "neighbours", "--text", __file__), "--against DIR"),
        (("--task", "sst2", "--probe", "--against", "other"), "--against is of --task"),
        (("--task", "stsb", "--text", __file__), "--text is of --task"),
        (("--task", "perplexity", "--text", __file__, "--against", "other"), "--against is of --task neighbours"),
        (("--task", "perplexity", "--text", __file__, "--limit", 5), "--limit is of tasks with examples, not of perpl"),
        (("--task", "neighbours", "--text", __file__, "--stride", 5), "--stride is of --task squad and perplexity"),
        (("--task", "stsb", "--epochs", 1), "--epochs is of training: add --finetune, or leave it out"),
        (("--task", "sst2", "--probe", "--bf16"), "--bf16 is of training"),
        (("--task", "sst2", "--finetune", "--beams", 2), "--beams is of translation and captions, not of sst2"),
    ],
)
def test_errors_are_one_message(arguments, message, run, small, root):
    result = run("evaluate", small.folder, *arguments)
    assert result.code == 1
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err
