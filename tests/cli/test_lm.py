import gzip
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fewfold.lm.training import LMTrainer

SIZES = ("--hidden", 16, "--batch", 4, "--bptt", 8, "--learning-rate", 0.02, "--positions", 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    words = ["the", "cat", "sees", "a", "small", "dog", "under", "house", "tree"]
    for seed, (name, count) in enumerate({"train": 120, "valid": 12, "test": 12}.items()):
        lines = [" ".join(words[(seed + i * k) % 9] for k in range(3 + i % 6)) for i in range(count)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    with gzip.open(folder / "test.txt.gz", "wt") as file:
        file.write((folder / "test.txt").read_text())
    (folder / "empty.txt").write_text("\n \n")
    (folder / "unseen.txt").write_text("the zebra sees a zebra\n")
    return folder


def train(run, files, out, *more):
    return run("lm", "train", files / "train.txt", "--valid", files / "valid.txt", "--out", out, *SIZES, *more)


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    from typer.testing import CliRunner

    from fewfold_cli.main import app

    out = tmp_path_factory.mktemp("lm-out") / "lm"
    options = ["--steps", 30, "--slim-output", "1/2", "--slim-input", "1/2", "--test", files / "test.txt", "--json"]
    arguments = ["lm", "train", files / "train.txt", "--valid", files / "valid.txt", "--out", out, *SIZES, *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_what_is_saved(trained):
    out, result = trained
    assert sorted(path.name for path in out.parent.iterdir()) == ["lm"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "lm.json", "history.jsonl", "lm.png"} <= {
        path.name for path in out.iterdir()
    }
    assert (out / "lm.png").read_bytes().startswith(b"\x89PNG")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == len(tokenizer) == result["data"]["vocabulary"] == 11
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert result["progress"]["step"] == 30
    assert json.loads((out / "lm.json").read_text()) == {k: v for k, v in result.items() if k != "folder"}


def test_evaluate_agrees_with_training(run, files, trained):
    out, result = trained
    for name in ("test.txt", "test.txt.gz"):
        found = json.loads(run("lm", "evaluate", out, files / name, "--json").out)
        assert found["perplexity"] == pytest.approx(result["test"]["perplexity"], rel=1e-6)
        assert found["tokens"] == result["test"]["tokens"]
    shown = run("lm", "evaluate", out, files / "unseen.txt")
    assert "2 (33.3%)" in shown.out
    assert "vocabulary lacks" in shown.err


def test_generate(run, trained):
    out, _ = trained
    found = json.loads(run("lm", "generate", out, "--prompt", "the cat", "--tokens", 12, "--json").out)
    assert found["text"].startswith("the cat")
    assert found["tokens_a_second"] > 0
    shown = run("lm", "generate", out, "--prompt", "the cat", "--tokens", 12)
    assert shown.out.strip() == found["text"].strip()
    assert "12 tokens" in shown.err


def test_the_same_command_goes_on(run, files, tmp_path, monkeypatch):
    out, original = tmp_path / "lm", LMTrainer._step
    seen, killed = [], []

    def dying(self, advance):
        seen.append(self.progress.step)
        if self.progress.step == 7 and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        original(self, advance)

    monkeypatch.setattr(LMTrainer, "_step", dying)
    options = ("--steps", 10, "--checkpoint-minutes", 0)
    assert train(run, files, out, *options).code == 130
    assert not out.exists()
    other = train(run, files, out, *options, "--learning-rate", 0.01)
    assert other.code == 1
    assert "learning_rate was 0.02 and is 0.01" in other.err
    result = train(run, files, out, *options)
    assert result.code == 0, result.err
    assert "valid perplexity" in result.out
    assert seen == [*range(8), 7, 8, 9]
    assert "exists and is not empty" in train(run, files, out, *options).err
    seen.clear()
    assert train(run, files, out, *options, "--force", "--dropout", 0.1).code == 0
    assert seen == [*range(10)]


def test_the_working_directory_can_be_written(run, files, tmp_path, monkeypatch):
    out = tmp_path / "lm"
    out.mkdir()
    monkeypatch.chdir(out)
    result = train(run, files, ".", "--steps", 2)
    assert result.code == 0, result.err
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]
    assert AutoModelForCausalLM.from_pretrained(out).config.hidden_size == 16


def test_another_tokenizer(run, files, encoder, tmp_path):
    result = train(run, files, tmp_path / "lm", "--steps", 3, "--tokenizer", encoder, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["data"]["vocabulary"] == len(AutoTokenizer.from_pretrained(encoder))
    assert found["valid"]["word_perplexity"] > 1


def test_noise_follows_the_text_where_ids_do_not(run, files, encoder, tmp_path):
    options = ("--steps", 2, "--loss", "sampled", "--json")
    words, others = (
        json.loads(train(run, files, tmp_path / name, *options, *more).out)["model"]
        for name, more in (("words", ()), ("others", ("--tokenizer", encoder)))
    )
    assert words.get("loss_noise", "log_uniform") == "log_uniform"
    assert others["loss_noise"] == "unigram"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--valid", "empty.txt"], "empty.txt is empty"),
        (["--valid", "none.txt"], "none.txt: no such file"),
        (["--test", "unseen.txt"], "unseen.txt has 1 words that train.txt lacks ('zebra', …)"),
        (["--slim-output", "ten"], "slim size 'ten'"),
        (["--slim-output", "1/1000"], "words in a pool"),
        (["--tie", "--slim-output", "1/2"], "size it by --slim-input"),
        (["--positions", 5, "--slim-input", "1/2"], "positions=5"),
        (["--schedule", "cosin"], "schedule='cosin'"),
        (["--cell", "rnn"], "cell='rnn'"),
        (["--batch", 10_000], "too few for 10000 streams"),
        (["--vocab-size", 2], "a vocabulary of 2"),
    ],
)
def test_errors_come_before_work(run, files, tmp_path, options, message):
    options = [files / option if str(option).endswith(".txt") else option for option in options]
    result = train(run, files, tmp_path / "lm", "--steps", 2, *options)
    assert result.code == 1
    assert message in result.err
    assert not (tmp_path / "lm").exists()


def test_models_that_do_not_fit(run, files, trained, encoder, tmp_path):
    out, _ = trained
    assert "carries no state" in run("lm", "evaluate", encoder, files / "test.txt").err
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    config = json.loads((broken / "config.json").read_text())
    config["output_codes"]["words"] = 3
    (broken / "config.json").write_text(json.dumps(config))
    for result in (run("lm", "evaluate", broken, files / "test.txt"), run("lm", "generate", broken)):
        assert result.code == 1
        assert "do not belong together" in result.err


def test_a_code_outside_of_its_pool(run, files, trained, tmp_path):
    out, result = trained
    assert result["model"]["output_codes"]["words"] < 8  # three bits, all of them set, point outside
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    tensors = load_file(broken / "model.safetensors")
    (name,) = (name for name in tensors if name.startswith("lm_head") and "codes" in name)
    tensors[name].fill_(-1 if tensors[name].is_signed() else 255)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    result = run("lm", "evaluate", broken, files / "test.txt")
    assert result.code == 1
    assert "lm_head" in result.err
    assert "7" in result.err


@pytest.mark.parametrize("command", ["train", "evaluate", "generate"])
def test_help_has_an_example(run, command):
    shown = " ".join(run("lm", command, "--help").out.split())
    assert f"Example: fewfold lm {command}" in shown
