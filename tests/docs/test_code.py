"""Code in the documents runs on tiny models, page by page in order; what is too large to run is at least sound."""

import ast
import json
import re
from pathlib import Path

import docs_models
import pytest

import fewfold

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "benchmarks")
# Pages whose blocks need published sizes, hours or data; their code is parsed and its names are looked up.
READ_ONLY = {
    "distillation.md", "language_models.md", "tasks.md", "translation.md", "embedding_autoencoder.md",
    "embedding_sharing.md", "shared_factors.md", "shared_layers.md", "slim_lm.md",
    "subvector_codes.md",
}  # fmt: skip
SLOW = {"export.md"}


def _blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def _pages(language):
    return [path for path in PAGES if _blocks(path, language)]


def _name(path):
    return str(path.relative_to(DOCS))


RUN = [
    pytest.param(path, marks=pytest.mark.full if path.name in SLOW else (), id=_name(path))
    for path in _pages("python")
    if path.name not in READ_ONLY
]


@pytest.mark.parametrize("page", RUN)
def test_blocks_run_in_order(page, tmp_path, monkeypatch, capsys):
    names = {"fewfold": fewfold, **docs_models.write(tmp_path)}
    monkeypatch.chdir(tmp_path)
    if page.name == "export.md":
        pytest.importorskip("onnxscript")
    for block in _blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
    if page.name == "index.md" and page.parent == DOCS:
        assert "whole model:" in capsys.readouterr().out
        assert (tmp_path / "small" / "model.safetensors").is_file()
    if page.name == "budget.md":
        reached, limit = (fewfold.summary(names["model"]).budgets[0][key] for key in ("reached", "limit"))
        assert reached <= limit
        assert "1KB" in capsys.readouterr().out


@pytest.mark.parametrize("page", _pages("python"), ids=_name)
def test_blocks_parse_and_their_names_exist(page):
    for block in _blocks(page, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "fewfold":
                module = __import__(node.module, fromlist=[alias.name for alias in node.names])
                assert all(hasattr(module, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fewfold":
                assert hasattr(fewfold, node.attr), node.attr


@pytest.mark.parametrize("page", _pages("(?:bash|sh)"), ids=_name)
def test_commands_exist_with_their_options(page):
    from typer.testing import CliRunner

    from fewfold_cli.main import app

    lines = " ".join(_blocks(page, "(?:bash|sh)")).replace("\\\n", " ").splitlines()
    for line in lines:
        words = line.split("#")[0].split()
        if words[:1] != ["fewfold"]:
            continue
        command = [word for word in words[1:3] if re.fullmatch(r"[a-z]+", word)]
        groups = {group.name for group in app.registered_groups}
        shown = CliRunner().invoke(app, [*command[: 2 if words[1] in groups else 1], "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, line
        assert all(word in shown.stdout for word in words if word.startswith("--")), line


RESULTS = DOCS.parent / "benchmarks" / "results"
SAID = [  # page, words around a number there, the result and row that it is drawn from
    ("methods/index.md", "{:.2f} of the neighbours at 1/2 of the numbers", "shared_layers_quality", "low rank, 1/2"),
    ("methods/index.md", "1/2 of the numbers, {:.2f} at 1/4", "low_rank_quality", "low rank (default), 1/4"),
    ("methods/index.md", "poor ({:.2f} at 1/4)", "shared_factors_quality", "shared factors, 1/4"),
    ("methods/index.md", "{:.2f} at 1/8 of the bytes", "codes_linears", "codes (codes-default), 8×"),
    ("methods/index.md", "{:.2f} at 1/15", "codes_linears", "codes (codes-default), 15×"),
    ("methods/index.md", "{:.2f} at int8", "low_rank_quality", "dense linears, int8"),
    ("methods/index.md", "{:.2f} at int4", "codes_linears", "int4, groups of 32"),
    ("methods/index.md", "{:.2f} of the neighbours by it", "codes_model", "low-rank-codes, 3MB"),
    ("methods/index.md", "and {:.2f} by `codes-default`", "codes_model", "codes-default, 3MB"),
    ("methods/index.md", "in 2 MB {:.2f} and", "codes_model", "low-rank-codes, 2MB"),
    ("methods/index.md", "and {:.2f}. From 4 MB", "codes_model", "codes-default, 2MB"),
    ("methods/index.md", "{:.2f}:", "codes_linears", "word-table average, no encoder"),
    *[
        ("methods/shared_layers.md", words, "shared_layers_quality", f"3 blocks, {start}, aligned and rotated{after}")
        for after, all_words in {
            ", 10 minutes": ("weighted mean to {:.2f}", "ours to {:.2f}", "evenly spaced layers to {:.2f}"),
            "": ("they are at {:.2f}", ", {:.2f} and", "and {:.2f}."),
        }.items()
        for words, start in zip(all_words, ("weighted", "anchored", "stepwise"), strict=True)
    ],
    *[
        ("methods/shared_layers.md", words, "shared_layers_quality", row)
        for words, row in {
            "before and after: {:.2f},": "1 block, anchored, aligned and rotated",
            ", then {:.2f} (": "1 block, anchored, aligned and rotated, 10 minutes",
            "keeps {:.2f} of the neighbours": "1 block and differences, int8, 1/6, 10 minutes",
            "one strict block {:.2f}": "1 block, anchored, aligned and rotated, 10 minutes",
        }.items()
    ],
]  # fmt: skip


@pytest.mark.parametrize(("page", "words", "result", "row"), SAID)
def test_numbers_in_the_text_are_those_that_were_measured(page, words, result, row):
    rows = json.loads((RESULTS / f"{result}.json").read_text(encoding="utf-8"))["rows"]
    near = next(one["neighbour_overlap"] for one in rows if one["name"] == row)
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    assert words.format(near) in text, near


@pytest.mark.parametrize(
    "task", ["masked LM, SST-2", "LSTM LM, WikiText-2", "translation, Multi30k", "captioning, flickr8k-1k"]
)
def test_kept_quality_in_the_text_is_what_was_measured(task):
    measured = json.loads((RESULTS / "embedding_sharing_tasks.json").read_text(encoding="utf-8"))["rows"]
    cells = {cell["kind"]: cell for cell in measured if cell["task"] == task}
    kept = {kind: float(cell["row"][6]) for kind, cell in cells.items() if kind != "dense"}
    share = cells["veps"]["cell"]["hidden"] / cells["dense"]["cell"]["hidden"]
    text = (DOCS / "methods/embedding_sharing.md").read_text(encoding="utf-8")
    assert f"| {100 * share:.0f} % | {kept['veps']:.2f} | {kept['shared']:.2f} |" in text
    if "veps-distilled" in kept:
        assert f"gains:\n{kept['veps-distilled']:.2f} of its accuracy" in text
        assert kept["veps-int8"] == pytest.approx(kept["veps"], abs=0.003)


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        ("fresh numbers of deviation 0.02, as published", "fresh numbers of deviation 0.02 (published)"),
        ("biases drawn with variance 1, as published", "biases normal, variance 1 (published)"),
        ("a head of its own with 2.1M numbers, as published", "head of its own (published)"),
        ("own slots for each layer, 13,650 numbers", "own slots for each layer"),
        ("scores over the root of the head's width", "scores over the root of the head size"),
        ("a head's bias from 0, as published", "head's bias from 0 (published)"),
        ("all that is published at once", "as published in all"),
    ],
)
def test_choices_in_the_text_are_what_was_measured(words, choice):
    rows = json.loads((RESULTS / "embedding_sharing_choices.json").read_text(encoding="utf-8"))["rows"]
    row = next(one["row"] for one in rows if one["choice"] == choice)
    text = (DOCS / "methods/embedding_sharing.md").read_text(encoding="utf-8")
    assert f"| {words} | {row[4]} |" in text, row[4]
    assert (abs(float(row[4]) - 1) <= 0.015) == (row[6] == "undecided")


@pytest.mark.parametrize(
    ("words", "row"),
    [
        ("dense", "dense"),
        ("slim input and output, 1/10 of their numbers, random codes", "slim 1/10"),
        ("the same by neighbours", "slim 1/10, by neighbours"),
        ("by neighbours, 16 sub-vectors a word", "slim 1/10, by neighbours, 16 a word"),
        ("a dense model so narrow that it has those bytes", "dense, bytes of slim 1/10"),
        ("the narrow one, its tables begun at the same vectors", "dense, bytes of slim 1/10, begun at neighbours"),
        ("dense, its tables begun at them", "dense, begun at neighbours"),
        ("slim input alone, 1/50, random codes", "slim input 1/50"),
        ("slim input alone, 1/50, by neighbours", "slim input 1/50, by neighbours"),
        ("slim input and output, 1/50, random codes", "slim 1/50"),
        ("both by neighbours, 1/50", "slim 1/50, by neighbours"),
        ("a dense model so narrow that it has these bytes", "dense, bytes of slim 1/50"),
        (
            "the dense model, coded into the bytes of slim 1/10, in a minute or two",
            "dense, coded to the bytes of slim 1/10",
        ),
        ("the dense model, coded into the bytes of slim 1/50", "dense, coded to the bytes of slim 1/50"),
    ],
)
def test_perplexities_in_the_text_are_what_was_measured(words, row):
    measured = json.loads((RESULTS / "slim_lm_words.json").read_text(encoding="utf-8"))["corpora"]["wikitext-2"]["rows"]
    text = (DOCS / "methods/slim_lm.md").read_text(encoding="utf-8")
    assert f"| {words} | {measured[row]['bytes'] / 1e6:.1f} | {measured[row]['test']:.1f} |" in text
    assert f"| Kneser-Ney 5-gram |  | {measured['Kneser-Ney 5-gram']['test']:.0f} |" in text


def test_bleu_in_the_text_is_what_was_measured():
    rows = json.loads((RESULTS / "translation.json").read_text(encoding="utf-8"))["rows"]
    text = (DOCS / "methods/slim_lm.md").read_text(encoding="utf-8")
    for kind in ("lstm", "transformer"):
        found = [rows.get(f"{kind}, {made}") for made in ("dense", "slim, by neighbours", "slim")]
        cells = " ".join(" |" if runs is None else f"{runs[0]['greedy']['value']:.1f} |" for runs in found)
        assert f"| {'LSTM' if kind == 'lstm' else kind} | {cells}" in text


@pytest.mark.parametrize(
    ("words", "row"),
    [
        ("low rank, which it is at `group=1`", "low rank"),
        ("pairs of layers, as published", "pairs, as published"),
        ("pairs, ours (default)", "pairs (default)"),
        ("three layers", "three layers"),
        ("six layers", "six layers"),
    ],
)
def test_shared_bases_in_the_text_are_what_was_measured(words, row):
    measured = json.loads((RESULTS / "shared_basis_quality.json").read_text(encoding="utf-8"))["rows"]
    near = {one["name"]: one["neighbour_overlap"] for one in measured}
    text = (DOCS / "methods/shared_basis.md").read_text(encoding="utf-8")
    assert f"| {words} | {near[f'{row}, 1/2']:.2f} | {near[f'{row}, 1/4']:.2f} |" in text


def test_every_method_has_a_page_with_what_a_page_owes():
    from fewfold.methods.registry import METHODS

    told = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "methods").glob("*.md")}
    together = {"tucker": "shared_factors", "tensor_train": "shared_factors"}
    for name, method in METHODS.items():
        text = told[together.get(name, name)]
        assert method.config.__name__ in text, name
        assert "```python" in text, name
        assert "benchmarks/" in text, name
    index = told["index"]
    assert all(f"({page}.md)" in index for page in told if page != "index")
