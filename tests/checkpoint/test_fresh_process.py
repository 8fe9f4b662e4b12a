"""Checkpoints in processes of their own: with fewfold they load equal, without it they fail loudly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import METHODS, STORED, pairwise, saved, serves
from tiny_models import MODELS, auto_class, outputs

import fewfold

pytestmark = pytest.mark.checkpoint
TESTS = Path(__file__).parents[1]
# every family once, methods and dtypes in turn
SERVED = {name: [method for method in METHODS if serves(name, method)] for name in MODELS}
CASES = [
    (name, SERVED[name][number % len(SERVED[name])], STORED[number % len(STORED)]) for number, name in enumerate(MODELS)
]

LOAD = """
import sys, torch, fewfold
from tiny_models import auto_class, outputs
results = {}
for line in sys.stdin.read().splitlines():
    name, folder = line.split("|")
    results[name] = outputs(auto_class(name).from_pretrained(folder), name)
torch.save(results, sys.argv[1])
"""

PLAIN = """
import sys, torch
from tiny_models import auto_class, outputs
results = {}
for line in sys.stdin.read().splitlines():
    name, folder = line.split("|")
    try:
        results[name] = outputs(auto_class(name).from_pretrained(folder), name)
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
assert not any(module.startswith("fewfold") for module in sys.modules)
torch.save(results, sys.argv[1])
"""


def run(code, folders, result):
    """Run code in a fresh interpreter and read the results that it saved."""
    source = str(Path(fewfold.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(result)],
        input="\n".join(f"{name}|{folder}" for name, folder in folders.items()),
        capture_output=True, text=True, check=False, timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((source, str(TESTS)))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(result)


def test_the_cases_cover_every_method_and_dtype():
    assert {method for _, method, _ in CASES} == set(METHODS)
    assert {stored for _, _, stored in CASES} == set(STORED)
    assert len(pairwise(tuple(METHODS), STORED)) == len(METHODS) * len(STORED)


def test_compressed_models_load_equal_in_a_fresh_process(tmp_path):
    results = run(LOAD, {case[0]: saved(*case)[0] for case in CASES}, tmp_path / "results.pt")
    for case in CASES:
        torch.testing.assert_close(results[case[0]], saved(*case)[1], rtol=0, atol=1e-6)


@pytest.mark.full
def test_without_fewfold_compressed_models_fail_and_densified_ones_load(tmp_path):
    results = run(PLAIN, {case[0]: saved(*case)[0] for case in CASES}, tmp_path / "compressed.pt")
    for name, result in results.items():
        assert isinstance(result, str), f"{name} loaded without fewfold: random weights"
        assert "size mismatch" in result.lower() or "mismatch" in result.lower(), result
    folders = {}
    expected = {}
    for case in CASES:
        model = fewfold.densify(auto_class(case[0]).from_pretrained(saved(*case)[0]))
        folders[case[0]] = tmp_path / case[0]
        model.save_pretrained(folders[case[0]])
        expected[case[0]] = outputs(model, case[0])
    for name, result in run(PLAIN, folders, tmp_path / "densified.pt").items():
        assert isinstance(result, torch.Tensor), f"{name}: {result}"
        torch.testing.assert_close(result, expected[name], rtol=0, atol=1e-6)
