import subprocess
import sys

import pytest

from fewfold import CheckpointError
from fewfold.measure.memory import load_cost
from fewfold.models import RecurrentTranslationConfig, RecurrentTranslationModel, SlimLMConfig, SlimLMForCausalLM

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


@pytest.mark.full
def test_load_cost_is_of_the_whole_model_head_and_all(tmp_path):
    config = SlimLMConfig(vocab_size=50_000, hidden_size=256, input_codes={"positions": 8, "words": 256})
    SlimLMForCausalLM(config).save_pretrained(tmp_path)
    cost = load_cost(tmp_path)
    assert cost.resident_after_bytes - cost.resident_before_bytes > 0.9 * 50_000 * 256 * 4  # the head


@pytest.mark.full
def test_load_cost_of_a_family_that_no_auto_model_lists(tmp_path):
    config = RecurrentTranslationConfig(vocab_size=19, embedding_size=8, hidden_size=12)
    RecurrentTranslationModel(config).save_pretrained(tmp_path)
    assert load_cost(tmp_path).seconds > 0


def test_failures_are_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_cost(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no model"):
        load_cost(tmp_path)
