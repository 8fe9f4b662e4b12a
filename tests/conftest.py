"""What every test relies on: no network, no real cache, one thread, fixed seeds."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
_CACHE = tempfile.TemporaryDirectory(prefix="fewfold-test-cache-")  # removed when the tests end
os.environ["FEWFOLD_CACHE"] = _CACHE.name
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
