"""What is pushed to a hub comes back as the same model: weights, structure and card."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import hub
from huggingface_hub import ModelCard
from tiny_models import MODELS

import fewfold

SCRIPT = """
import sys
import fewfold
from huggingface_hub import HfApi
if sys.argv[2] == "model":
    fewfold.load(sys.argv[1]).push_to_hub("me/small", token="hf_none")
else:
    HfApi().create_repo("me/small", token="hf_none", exist_ok=True)
    HfApi().upload_folder(folder_path=sys.argv[1], repo_id="me/small", token="hf_none")
"""


@pytest.mark.full
@pytest.mark.parametrize("way", ["model", "folder"])
def test_what_was_pushed_loads_and_computes_the_same(way, tmp_path):
    model = MODELS["bert"].build().eval()
    small = fewfold.compress(model, fewfold.LowRank(rank=3, stored_dtype="int8"))
    fewfold.save(small, tmp_path / "small")
    kept = fewfold.load(tmp_path / "small").eval()
    with hub() as (address, files):
        surroundings = {
            **os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "small"), way],
            env=surroundings, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    back = Path(tmp_path / "back")
    back.mkdir()
    for name, content in files.items():
        (back / name).write_bytes(content)
    assert {"config.json", "model.safetensors", "README.md"} <= files.keys()
    again = fewfold.load(back).eval()
    tokens = torch.tensor([[2, 5, 9, 11]])
    with torch.no_grad():
        assert torch.equal(again(tokens).last_hidden_state, kept(tokens).last_hidden_state)
    assert fewfold.summary(again).parameters == fewfold.summary(kept).parameters
    if way == "folder":
        assert "fewfold" in ModelCard.load(back / "README.md").data.tags
