"""What every test relies on: no network, no real cache, one thread, fixed seeds."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FEWFOLD_CACHE"] = tempfile.mkdtemp(prefix="fewfold-test-cache-")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="fewfold-test-modules-")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers

atexit.register(shutil.rmtree, os.environ["FEWFOLD_CACHE"], ignore_errors=True)
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
