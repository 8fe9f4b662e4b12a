import pytest
import torch

from fewfold.measure.memory import load_cost, peak_resident_bytes, resident_bytes


def test_resident_memory_grows_with_what_is_touched():
    before = resident_bytes()
    block = torch.ones(64 * 2**20 // 4)
    grown = resident_bytes() - before
    assert 0.9 * 64 * 2**20 < grown < 1.5 * 64 * 2**20
    assert peak_resident_bytes() >= 64 * 2**20
    del block


def test_load_cost_of_a_saved_model(tiny_bert, tmp_path):
    tiny_bert.save_pretrained(tmp_path)
    cost = load_cost(tmp_path)
    assert 0 < cost.seconds < 60
    assert 0 < cost.resident_before_bytes <= cost.resident_after_bytes <= cost.peak_bytes


def test_failures_are_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_cost(tmp_path / "none")
