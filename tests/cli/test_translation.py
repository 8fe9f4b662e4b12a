"""fewfold translation, and BLEU through fewfold evaluate."""

import json

import pytest


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three words of a language pair."""
    folder = tmp_path / "data" / "multi30k"
    folder.mkdir(parents=True)
    for split, count in (("train", 24), ("val", 6), ("test_2016_flickr", 5)):
        pairs = [(["a red dog", "a cat", "two dogs"][i % 3], ["ein roter Hund", "eine Katze", "zwei Hunde"][i % 3])
                 for i in range(count)]  # fmt: skip
        for side, language in enumerate(("en", "de")):
            (folder / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path / "data"))
    return folder


def test_trained_judged_and_run(run, root, tmp_path):
    out = tmp_path / "mt"
    options = ("--model", "lstm", "--size", 64, "--vocabulary", 280, "--steps", 30, "--batch-tokens", 200,
               "--warmup", 5, "--learning-rate", 1e-2, "--dropout", 0, "--slim", 2)  # fmt: skip
    trained = json.loads(run("translation", "train", out, *options, "--json").out)
    assert trained["training"]["steps"] == 30
    assert trained["settings"]["slim"] == {"ratio": 2.0, "positions": 8, "seed": 0}
    assert trained["data"]["train"]["pairs"] == 24
    assert not (tmp_path / "mt.checkpoints").exists()
    assert {"training.json", "training.png", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    judged = json.loads(run("evaluate", out, "--task", "multi30k-en-de", "--beams", 2, "--json").out)
    assert judged["metrics"]["bleu"]["mean"] > 30 or trained["training"]["held_out"][-1]["loss"] < 0.5
    shown = run("evaluate", out, "--task", "multi30k-en-de").out
    assert "greedily, nrefs:1|case:mixed" in shown
    (tmp_path / "in.txt").write_text("a cat\n\ntwo dogs\n")
    result = run("translation", "run", out, tmp_path / "in.txt")
    assert result.code == 0
    assert result.out.splitlines()[0] == "eine Katze"
    assert result.out.splitlines()[1:] == ["", "zwei Hunde"]
    both = json.loads(run("translation", "run", out, tmp_path / "in.txt", "--json").out)
    assert both["sentences"][0] == {"source": "a cat", "target": "eine Katze"}
    assert [one["target"] for one in both["sentences"]] == ["eine Katze", "", "zwei Hunde"]
    (tmp_path / "in.txt").write_text("\n \n")
    assert "holds no sentence" in run("translation", "run", out, tmp_path / "in.txt").err
    again = run("translation", "train", out, *options)
    assert again.code == 1
    assert "--force" in again.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pair", "en-fr"), "choose one of multi30k-en-de"),
        (("--model", "gru"), "choose lstm, transformer"),
        (("--vocabulary", 100), "261"),
        (("--files", "a", "b"), "--held-out"),
        (("--schedule", "flat"), "cosine or inverse_sqrt"),
    ],
)
def test_errors_are_one_message(options, message, run, root, tmp_path):
    result = run("translation", "train", tmp_path / "mt", *options)
    assert result.code == 1
    assert message in " ".join(result.err.split())
