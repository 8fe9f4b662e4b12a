"""Masked language models from text files: every preset's model, learning, going on, several processes."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fewfold
from fewfold import TaskError
from fewfold.measure.parameters import unique_parameters
from fewfold.pretrain.build import build_masked_lm
from fewfold.pretrain.config import PretrainConfig, preset_names
from fewfold.pretrain.frequencies import frequency_loss
from fewfold.pretrain.masking import Masking
from fewfold.pretrain.run import held_out_loss, pretrain_and_save, pretrain_masked_lm
from fewfold.pretrain.text import train_tokenizer, windows
from fewfold.stored.codes import CodedMatrix

LINES = [
    f"{a} {b} {c} {a} {b}" for a in ("red", "blue") for b in ("cats", "dogs") for c in ("see", "like", "chase")
] * 8
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
TRAINING = {"steps": 30, "batch": 8, "learning_rate": 1e-2, "log_steps": 10, "checkpoint_steps": 12}


def config(**changes):
    made = {"family": "bert", "model": TINY, "vocabulary": 90, "length": 16, "training": TRAINING, **changes}
    return PretrainConfig.make(made)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("\n".join(LINES))
    return file


class Words:
    """A tokenizer as far as building needs it."""

    pad_token_id = 0

    def __len__(self):
        return 30522


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("sharebert-small-published", 4_983_040),
        ("sharebert-base-published", 13_847_296),
        ("sharebert-small", 4_878_808),
        ("sharebert-large", 26_387_160),
        ("bert-base", None),
    ],
)
def test_published_sizes(name, body):
    chosen = PretrainConfig.read(name)
    assert (chosen.training.steps, chosen.training.accumulated(1)) == (23000, (250, 16))
    with torch.device("meta"):
        model = build_masked_lm(chosen, Words())
    if body is None:
        assert unique_parameters(model.bert) == 109_191_936 - 768**2 - 768  # the head needs no pooler
    else:
        assert unique_parameters(model.sharebert) == body - 2048  # the head needs no pooler's bias


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta"])
def test_marks_of_the_model_are_the_tokenizers(family):
    tokenizer = train_tokenizer(LINES, 90)
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    made = build_masked_lm(config(family=family, model=model), tokenizer).config
    first = {made.bos_token_id, getattr(made, "cls_token_id", None)} - {None}
    last = {made.eos_token_id, getattr(made, "sep_token_id", None)} - {None}
    assert [first, last] == (
        [set(), set()] if family == "bert" else [{tokenizer.cls_token_id}, {tokenizer.sep_token_id}]
    )


@pytest.mark.parametrize(("family", "begins"), [("bert", 0), ("roberta", 1), ("mpnet", 2)])
def test_windows_of_full_length_have_positions(family, begins, tmp_path):
    """RoBERTa counts positions from behind the padding token's id, which is 0 here; in MPNet it is always 1."""
    tokenizer = train_tokenizer(LINES, 90)
    chosen = config(family=family, training={**TRAINING, "steps": 2})
    rows = windows(tokenizer, LINES, 16)
    model = build_masked_lm(chosen, tokenizer)
    history = pretrain_masked_lm(model, Masking.of(tokenizer), rows[:-6], rows[-6:], chosen, folder=tmp_path)
    assert math.isfinite(history.held_out[-1]["loss"])
    assert model.config.max_position_embeddings == 16 + begins
    given = config(family=family, model={**TINY, "max_position_embeddings": 20})
    assert build_masked_lm(given, tokenizer).config.max_position_embeddings == 20


@pytest.mark.parametrize("methods", [None, [{"method": "embedding_sharing"}]])
def test_learns_and_goes_on(tmp_path, methods):
    chosen = config(methods=methods)
    tokenizer = train_tokenizer(LINES, 90)
    rows = windows(tokenizer, LINES, 16)
    masking, judged, states = Masking.of(tokenizer), rows[-6:], []
    for _ in range(2):
        model = build_masked_lm(chosen, tokenizer)
        before = held_out_loss(model, masking, judged)
        history = pretrain_masked_lm(model, masking, rows[:-6], judged, chosen, folder=tmp_path / "c")
        assert history.held_out[-1]["loss"] < 0.8 * before
        assert history.held_out[-1]["loss"] == pytest.approx(held_out_loss(model, masking, judged), abs=1e-6)
        assert (history.steps, history.tokens) == (30, 30 * 8 * 16)
        states.append(model.state_dict())
        shutil.rmtree(tmp_path / "c" / "checkpoint-30", ignore_errors=True)
        for late in (24,):
            if (tmp_path / "c" / f"checkpoint-{late}").exists():
                (tmp_path / "c" / f"checkpoint-{late}").rename(tmp_path / f"kept-{len(states)}")
        if len(states) == 1:
            assert not list((tmp_path / "c").glob("checkpoint-*"))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, msg=name)


def test_rates_are_the_schedule(tmp_path, text):
    record = pretrain_and_save(tmp_path / "m", config(training={**TRAINING, "warmup": 0.2, "log_steps": 1}), [text])
    rates = [point["learning_rate"] for point in record["training"]["curve"]]
    expected = [1e-2 * (k / 6 if k < 6 else (30 - k) / 24) for k in range(30)]
    assert rates == pytest.approx(expected) or rates == pytest.approx([*expected[1:], 0.0], abs=1e-12)


def test_saved_with_its_record(tmp_path, text):
    record = pretrain_and_save(tmp_path / "m", config(methods=[{"method": "embedding_sharing"}]), [text])
    assert record == json.loads((tmp_path / "m" / "training.json").read_text())
    assert not (tmp_path / "m.checkpoints").exists()
    assert record["model"]["replaced"]
    model = fewfold.load(tmp_path / "m")
    assert type(model).__name__ == "BertForMaskedLM"
    assert math.exp(record["training"]["held_out"][-1]["loss"]) == record["training"]["held_out"][-1]["perplexity"]


@pytest.mark.full
def test_two_processes_learn_what_one_does(tmp_path, text):
    file = tmp_path / "config.yaml"
    import yaml

    smooth = {"steps": 6, "learning_rate": 0.3, "epsilon": 1.0}  # steps follow gradients, not their signs
    chosen = config(training={**TRAINING, **smooth}, methods=[{"method": "embedding_sharing"}])
    file.write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
    source = str(Path(fewfold.__file__).parents[1])
    command = ["-m", "fewfold_cli.main", "pretrain", "--config", str(file), "--text", str(text)]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *command, str(tmp_path / "two")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pretrain_and_save(tmp_path / "one", chosen, [text])
    assert json.loads((tmp_path / "two" / "training.json").read_text())["processes"] == 2
    one, two = (fewfold.load(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


def test_every_preset_is_read():
    assert {"sharebert-small", "bert-base", "modernbert-mini-veps"} <= set(preset_names())
    for name in preset_names():
        assert PretrainConfig.read(name).description


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "berd"}, "berd"),
        ({"size": "small"}, "of sharebert"),
        ({"training": {"steps": 0}}, "training.steps"),
        ({"model": {**TINY, "num_attention_heads": 5}}, "bert"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(TaskError, match=message):
        build_masked_lm(config(**changes), train_tokenizer(LINES, 90))
    with pytest.raises(TaskError, match="modernbert-mini"):
        PretrainConfig.read("nothing")


@pytest.mark.parametrize("family", ["bert", "modernbert", "sharebert"])
def test_begins_at_the_frequencies_of_tokens(family, text, tmp_path, monkeypatch):
    found = {}

    def seen(model, masking, rows, judged, config, **rest):
        found[config.output_bias] = held_out_loss(model, masking, judged), frequency_loss(masking, rows, judged)
        raise KeyboardInterrupt

    monkeypatch.setattr("fewfold.pretrain.run.pretrain_masked_lm", seen)
    fields = {"bert": TINY, "modernbert": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}}
    model = fields.get(family, {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "factor_size": 16,
                                "intermediate_size": 32, "attention_head_size": 16})  # fmt: skip
    for begin in ("frequencies", "zeros"):
        plan = config(family=family, model=model, output_bias=begin, vocabulary=120)
        with pytest.raises(KeyboardInterrupt):
            pretrain_and_save(tmp_path / begin, plan, [text], [text])
    begun, floor = found["frequencies"]
    assert begun < 1.2 * floor
    assert found["zeros"][0] > begun + 0.5


def test_coded_tables_begin_at_the_neighbours_of_tokens(text, tmp_path, monkeypatch):
    found = {}

    def seen(model, masking, rows, judged, config, **rest):
        found[config.neighbours] = [part.codes(0).clone() for part in model.modules() if isinstance(part, CodedMatrix)]
        raise KeyboardInterrupt

    monkeypatch.setattr("fewfold.pretrain.run.pretrain_masked_lm", seen)
    methods = [{"method": "subvector_codes", "targets": "embeddings", "width": 8, "words": 16}]
    for choice in ("slim", "none"):
        plan = config(methods=methods, neighbours=choice, vocabulary=120)
        with pytest.raises(KeyboardInterrupt):
            pretrain_and_save(tmp_path / choice, plan, [text], [text])
    assert found["slim"]
    assert not torch.equal(found["slim"][0], found["none"][0])
