import gzip
import json
import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import fewfold
from fewfold.checkpoint import folders
from fewfold.checkpoint.config import structure_of
from fewfold.measure.parameters import unique_parameters

BUDGET = ("--budget", "parameters=1/2 of linears")


def test_json_tells_what_was_saved(small, encoder):
    result = small.json
    model = AutoModel.from_pretrained(small.folder)
    assert result["parameters"] == unique_parameters(model)
    assert result["before"]["parameters"] == unique_parameters(AutoModel.from_pretrained(encoder))
    assert result["parameters"] < result["before"]["parameters"]
    assert result["weight_file_bytes"] == (small.folder / "model.safetensors").stat().st_size
    (budget,) = result["budgets"]
    assert budget["asked"] == "parameters=1/2 of linears"
    assert budget["reached"] <= budget["limit"]
    assert {row["stored"] for row in result["rows"]} == {"int8"}


def test_calibration_is_recorded_by_name(small, texts):
    (step,) = structure_of(fewfold.load(small.folder)).provenance["steps"]
    assert step["calibration"]["name"] == texts.name
    assert step["calibration"]["texts"] == len([line for line in texts.read_text().splitlines() if line])


@pytest.mark.checkpoint
def test_files_beside_the_weights_are_kept(small, encoder):
    kept = ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json", "vocab.txt"]
    for name in kept:
        assert (small.folder / name).read_bytes() == (encoder / name).read_bytes()
    assert "compressed with fewfold" in (small.folder / "README.md").read_text()
    assert (small.folder / "README.original.md").read_text() == (encoder / "README.md").read_text()


@pytest.mark.checkpoint
def test_sentence_transformer_loads_it(small):
    from sentence_transformers import SentenceTransformer

    sentences = ["the cat sees a dog", "a small tree in the old house"]
    found = torch.from_numpy(SentenceTransformer(str(small.folder), device="cpu").encode(sentences))
    model, tokenizer = fewfold.load(small.folder).eval(), AutoTokenizer.from_pretrained(small.folder)
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    torch.testing.assert_close(found, (hidden * mask).sum(1) / mask.sum(1), atol=1e-5, rtol=1e-5)


def test_table_on_stdout(run, encoder, texts, tmp_path):
    result = run("compress", encoder, tmp_path / "out", "-r", "low-rank", *BUDGET, "-c", texts)
    assert result.code == 0
    assert "unique parameters" in result.out
    assert "budget parameters=1/2 of linears" in result.out
    assert result.err == ""


def test_recipe_file_and_packed_texts(run, encoder, texts, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("methods:\n- method: low_rank\n  rank: 3\n  targets: embeddings\nname: mine\n")
    packed = tmp_path / "texts.txt.gz"
    packed.write_bytes(gzip.compress(texts.read_bytes()))
    result = run("compress", encoder, tmp_path / "out", "-r", recipe, "-c", packed, "--json")
    assert result.code == 0
    assert {row["rank"].split(",")[0] for row in json.loads(result.out)["rows"]} == {"3"}


def test_without_calibration_it_warns(run, encoder, tmp_path):
    result = run("compress", encoder, tmp_path / "out", "-r", "low-rank", *BUDGET, "--json")
    assert result.code == 0
    assert json.loads(result.out)["rows"]
    assert "no --calibration" in result.err
    assert "python-manual" in result.err


def test_no_fit_builds_the_same_structure(run, encoder, tmp_path):
    recipe = tmp_path / "fixed.yaml"
    recipe.write_text("- method: low_rank\n  rank: 4\n")
    fresh = run("compress", encoder, tmp_path / "fresh", "-r", recipe, "--no-fit", "--json")
    assert fresh.code == 0
    assert fresh.err == ""
    assert {row["rank"] for row in json.loads(fresh.out)["rows"]} == {"4"}


def test_two_budgets(run, encoder, texts, tmp_path):
    budgets = ("-b", "parameters=1/2 of linears", "-b", "bytes=1/3 of embeddings")
    result = run("compress", encoder, tmp_path / "out", "-r", "low-rank-all", *budgets, "-c", texts, "--json")
    assert result.code == 0
    assert [budget["asked"] for budget in json.loads(result.out)["budgets"]] == list(budgets[1::2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("-r", "no-such-recipe"), ("no-such-recipe", "presets are")),
        (("-r", "missing.yaml"), ("missing.yaml", "cannot be read")),
        (("-b", "1/4"), ("'1/4'", "parameters=1/4 of linears")),
        (("-b", "parameters=1/4"), ("bare ratio",)),
        (("-c", "no-such-texts.txt"), ("no-such-texts.txt", "no such file")),
    ],
)
def test_mistakes_are_one_line(run, encoder, tmp_path, change, words):
    arguments = {"-r": "low-rank", "-b": BUDGET[1]} | dict([change])
    given = [piece for pair in arguments.items() for piece in pair]
    result = run("compress", encoder, tmp_path / "out", *given)
    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
    assert not (tmp_path / "out").exists()


def test_missing_model(run, tmp_path):
    folder = run("compress", tmp_path / "nothing", tmp_path / "out", "-r", "svd")
    assert folder.code == 1
    assert "is not a folder" in folder.err
    name = run("compress", "nobody/no-such-model", tmp_path / "out", "-r", "svd")
    assert name.code == 1
    assert "nobody/no-such-model is neither a folder" in name.err


def test_full_folders_are_not_overwritten(run, encoder, small, texts, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(small.folder, out)
    before = (out / "config.json").read_text()
    arguments = ("compress", encoder, out, "-r", "low-rank", "-b", "parameters=1/3 of linears", "-c", texts)
    refused = run(*arguments)
    assert refused.code == 1
    assert "--force" in refused.err
    assert (out / "config.json").read_text() == before
    assert run(*arguments, "--force").code == 0
    assert (out / "config.json").read_text() != before


@pytest.mark.parametrize("option", [("--exclude", "stsb-dev"), ("--recover-data", "texts.txt")])
def test_options_of_recovery_without_one_are_refused(option, run, encoder, tmp_path):
    result = run("compress", encoder, tmp_path / "out", "--recipe", "int8", *option)
    assert result.code == 1
    assert f"{option[0]} is of recovery" in " ".join(result.err.split())
    assert not (tmp_path / "out").exists()


def test_force_replaces_models_only_and_never_the_source(run, encoder, tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    result = run("compress", encoder, tmp_path, "-r", "int8", "--force")
    assert result.code == 1
    assert "holds no model" in result.err
    assert (tmp_path / "precious.txt").exists()
    itself = run("compress", encoder, encoder, "-r", "int8", "--force")
    assert itself.code == 1
    assert "holds the model that is read" in itself.err
    assert (encoder / "model.safetensors").exists()


def test_usage_errors_are_code_2(run, encoder):
    assert run("compress", encoder).code == 2
    assert run("compress", encoder, "out", "-r", "svd", "--seed", "x").code == 2


def test_ctrl_c_is_code_130(run, encoder, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(fewfold, "compress", interrupt)
    result = run("compress", encoder, tmp_path / "out", "-r", "svd", *BUDGET)
    assert result.code == 130
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_first(run, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(folders.os, "access", lambda place, mode: place != tmp_path)
    monkeypatch.setattr(fewfold, "compress", None)
    result = run("compress", encoder, tmp_path / "out", "--recipe", "svd", *BUDGET)
    assert result.code == 1
    assert "no permission" in result.err
