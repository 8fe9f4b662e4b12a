import subprocess
import sys

import pytest

from fewfold.measure.memory import load_cost

GROWTH = """
import torch
from fewfold.measure.memory import peak_resident_bytes, resident_bytes
torch.ones(4).sum()
before = resident_bytes()
block = torch.ones(64 * 2**20 // 4)
print(resident_bytes() - before, peak_resident_bytes() - before)
"""


@pytest.mark.full
def test_resident_memory_grows_with_what_is_touched():
    # In a process of its own: elsewhere another test's memory may be given back at the same time.
    grown, peak = map(int, subprocess.check_output([sys.executable, "-c", GROWTH], text=True).split())
    assert 0.9 * 64 * 2**20 < grown < 1.1 * 64 * 2**20
    assert peak >= 0.9 * 64 * 2**20


@pytest.mark.full
def test_load_cost_of_a_saved_model(tiny_bert, tmp_path):
    tiny_bert.save_pretrained(tmp_path)
    cost = load_cost(tmp_path)
    assert 0 < cost.seconds < 60
    assert 0 < cost.resident_before_bytes <= cost.resident_after_bytes <= cost.peak_bytes


def test_failures_are_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_cost(tmp_path / "none")
