"""Figures in the pages are those of the records: whoever types one by hand, or forgets to draw anew, is told."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from fewfold.report.runs import read_runs

ROOT = Path(__file__).parent.parent.parent
TYPED = re.compile(r"^\|.*\b0\.\d\d\b", re.MULTILINE)  # in a table: shares as they are measured


@pytest.fixture
def program(monkeypatch):
    """Load a program of benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def test_tables_in_the_guides_are_drawn(program):
    summaries = program("summaries")
    pages = {page: page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")}
    drawn = [name for text in pages.values() for _, name, _ in summaries.BLOCK.findall(text)]
    assert sorted(drawn) == sorted(summaries.TABLES)
    for page, text in pages.items():
        assert summaries.filled(text) == text, f"{page}: run benchmarks/summaries.py"
    assert "0.64" in summaries.basis()


def test_the_page_of_claims_is_drawn(program):
    claims = program("claims")
    assert claims.PAGE.read_text(encoding="utf-8") == claims.page(), "run benchmarks/claims.py"


def test_no_shares_are_typed_into_tables_of_methods(program):
    block = program("summaries").BLOCK
    for page in (ROOT / "docs" / "methods").glob("*.md"):
        typed = TYPED.findall(block.sub("", page.read_text(encoding="utf-8")))
        assert [line for line in typed if not line.startswith("| `")] == [], page  # values of options are none


def test_every_record_of_a_run_is_whole():
    runs = read_runs([ROOT / "benchmarks" / "runs" / kind for kind in ("recover", "task-first")])
    assert len(runs) > 20
    for run in runs:
        assert run.seed is not None, run.name
        assert run.environment["torch"], run.name
        if run.recipe:
            budgets = [budget["asked"] for step in run.recipe for budget in step["budgets"]]
            assert ([run.budget] if run.budget else []) == budgets, run.name
            assert run.minutes is not None, run.name
            assert run.tokens is not None, run.name
