"""A tiny sentence encoder on disk, with tokenizer and sentence-transformers files, and a way to run commands."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast
from typer.testing import CliRunner

from fewfold_cli.main import app

NOUNS, VERBS, SIZES = ["cat", "dog", "house", "tree"], ["sees", "likes", "runs", "sleeps"], ["small", "big", "old"]
WORDS = ["the", "a", "under", "over", *NOUNS, *VERBS, *SIZES]
TEXTS = [f"the {size} {noun} {verb} under a {other}"
         for size in SIZES for noun in NOUNS for verb in VERBS for other in NOUNS]  # fmt: skip


def write_encoder(folder: Path) -> Path:
    """Save a random BERT of two layers as sentence-transformers does."""
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"[1:]]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(vocab={word: place for place, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# The original card\n")
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("dense") / "tiny-encoder")


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n\n")
    return file


@pytest.fixture
def run():
    """Run a command in this process: exit code, stdout and stderr."""

    def _run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)

    return _run


@pytest.fixture(scope="session")
def small(encoder, texts, tmp_path_factory):
    """The encoder, compressed by the command."""
    out = tmp_path_factory.mktemp("small") / "small"
    arguments = ["compress", encoder, out, "--recipe", "low-rank-int8", "--budget", "parameters=1/2 of linears"]
    result = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--calibration", texts, "--json"]])
    assert result.exit_code == 0, result.output
    return SimpleNamespace(folder=out, json=json.loads(result.stdout))


@pytest.fixture(scope="session")
def measured(small, encoder, tmp_path_factory):
    """What `measure --json` prints of the compressed encoder and the dense one, in a file."""
    file = tmp_path_factory.mktemp("measured") / "costs.json"
    arguments = ["measure", small.folder, "--against", encoder, "--batch", 1, "--batch", 2, "--length", 8]
    arguments += ["--repeats", 3, "--threads", 1, "--json"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    file.write_text(result.stdout)
    return SimpleNamespace(file=file, json=json.loads(result.stdout))
