"""What the README and the examples show works as written."""

import importlib.util
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _python(arguments, folder):
    result = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.full
@pytest.mark.timeout(1800)  # it fits a whole model
def test_python_blocks_run_in_order(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    assert "whole model:" in _python(["-c", "\n".join(blocks)], tmp_path)
    assert (tmp_path / "small" / "model.safetensors").is_file()


@pytest.mark.full
@pytest.mark.timeout(1800)  # one of them fits a whole model
@pytest.mark.parametrize("script", sorted((REPOSITORY / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(script, tmp_path):
    assert _python([str(script)], tmp_path)


GROUPS = {"lm", "translation", "caption"}  # commands that have commands


def test_commands_of_the_readme_exist(run):
    lines = " ".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ").splitlines()
    used = [line.split("#")[0].split() for line in lines if line.strip().startswith("fewfold ")]
    assert {words[1] for words in used} >= {"compress", "inspect", "measure", "densify", "recipes"}
    for words in used:
        command = [words[1]] if words[1] not in GROUPS else words[1:3]
        shown = run(*command, "--help").out
        assert all(word in shown for word in words if word.startswith("--"))


def test_what_a_command_reads_was_written_before():
    text = " ".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    written = set()
    for words in (line.split("#")[0].split() for line in text.splitlines() if line.strip().startswith("fewfold ")):
        outputs = {after for word, after in pairwise(words) if word == "--out"}
        assert {word for word in words if word.endswith(".json")} <= written | outputs, words
        written |= outputs


def test_the_headline_is_what_was_measured():
    spec = importlib.util.spec_from_file_location("headline", REPOSITORY / "benchmarks" / "headline.py")
    headline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(headline)
    assert headline.filled(README, json.loads(headline.RESULT.read_text(encoding="utf-8"))) == README


def test_the_demo_table_is_filled():
    table = README.partition("<!-- demo-table -->")[2].partition("<!-- /demo-table -->")[0]
    assert "| weights on disk, MB |" in table
    assert (REPOSITORY / re.search(r"\]\((docs/.*?\.png)\)", table)[1]).is_file()
