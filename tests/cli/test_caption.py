"""fewfold caption, and its models through fewfold evaluate."""

import gzip
import json
import zipfile

import pytest
from PIL import Image


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "flickr8k-1k"
    folder.mkdir(parents=True)
    rows = ["image,caption"]
    with zipfile.ZipFile(folder / "images.zip", "w") as packed:
        for place in range(20):
            word, colour = [("red", (230, 0, 0)), ("blue", (0, 0, 230))][place % 2]
            Image.new("RGB", (20, 20), colour).save(tmp_path / f"{word}.png")
            packed.write(tmp_path / f"{word}.png", f"{place:02}.png")
            rows.append(f"{place:02}.png,all is {word} .")
    (folder / "captions.txt.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    monkeypatch.setenv("FEWFOLD_DATA", str(tmp_path / "data"))
    return tmp_path


def test_trained_judged_and_run(run, root):
    out, recipe = root / "captioner", root / "veps.yaml"
    recipe.write_text("methods:\n- method: embedding_sharing\n  exclude: [encoder.stem]\n  init_std: 0.1\n")
    options = ("--recipe", recipe, "--size", 64, "--encoder-layers", 0, "--decoder-layers", 1, "--image-size", 16,
               "--steps", 50, "--batch", 8, "--vocabulary", 270, "--dropout", 0, "--learning-rate", 5e-3)  # fmt: skip
    result = run("caption", "train", out, *options, "--json")
    assert result.code == 0, result.err
    trained = json.loads(result.out)
    assert trained["model"]["replaced"]["embedding_sharing in fp32"] > 5
    assert trained["training"]["steps"] == 50
    assert {"training.json", "training.png", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    assert not (root / "captioner.checkpoints").exists()
    told = run("caption", "run", out, root / "blue.png", root / "red.png")
    assert told.code == 0, told.err
    assert [line.split("\t")[1] for line in told.out.splitlines()] == ["all is blue", "all is red"]
    judged = json.loads(run("evaluate", out, "--task", "flickr8k-captions", "--json").out)
    assert judged["metrics"]["bleu"]["mean"] >= 0
    assert judged["data"]["test"]["examples"] == 2
    assert "greedily" in run("evaluate", out, "--task", "flickr8k-captions").out
    again = run("caption", "train", out, *options)
    assert again.code == 1
    assert "--force" in again.err
    (root / "no.png").write_text("no image")
    assert "cannot be read as an image" in " ".join(run("caption", "run", out, root / "no.png").err.split())
