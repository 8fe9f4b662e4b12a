"""Resident memory, and what it takes to load a saved model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from fewfold.errors import CheckpointError


@dataclass(frozen=True)
class LoadCost:
    """What loading a model took in a process of its own.

    :param seconds: Wall time of `from_pretrained`, imports not included.
    :param resident_after_bytes: Resident memory once the model is loaded and read, interpreter and imports included.
    :param peak_bytes: The most resident memory until then, interpreter and imports included.
    :param resident_before_bytes: Resident memory after the imports; take it off to see the model alone.
    """

    seconds: float
    resident_after_bytes: int
    peak_bytes: int
    resident_before_bytes: int


def resident_bytes() -> int:
    """Read the resident memory of this process: psutil's figure, or Linux's own where psutil is missing.

    :return: Number of bytes.
    :raises RuntimeError: If neither psutil nor `/proc` is there.
    """
    try:
        import psutil
    except ModuleNotFoundError:
        status = _status_bytes("VmRSS")
        if status is None:
            raise RuntimeError("resident memory cannot be read here: pip install psutil") from None
        return status
    return psutil.Process().memory_info().rss


def peak_resident_bytes() -> int:
    """Read the most resident memory that this process has had so far.

    :return: Number of bytes.
    """
    status = _status_bytes("VmHWM")
    if status is not None:
        return status
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def load_cost(folder: str | PathLike[str]) -> LoadCost:
    """Load a saved model in a fresh process, in the class that it was saved from, and measure that.

    The process imports fewfold first. Weights are mapped from the file where the system can, and such pages count as
    resident once they are touched: memory is told after every stored number was read.

    :param folder: The folder that `save_pretrained` wrote.
    :return: Seconds and bytes.
    :raises FileNotFoundError: If the folder does not exist.
    :raises CheckpointError: If loading fails; the message ends with the process's own error.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: not a folder")
    search_path = os.pathsep.join(entry for entry in sys.path if entry)
    run = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": search_path},
    )
    if run.returncode != 0:
        raise CheckpointError(f"{path}: loading failed in a fresh process\n{run.stderr.strip()[-2000:]}")
    return LoadCost(**json.loads(run.stdout.strip().splitlines()[-1]))


def _status_bytes(field: str) -> int | None:
    """Read one size from Linux's status of this process; None where there is no such file or field."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


_LOAD = """
import json, sys, time
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from fewfold.checkpoint.save import saved_class
from fewfold.measure.memory import peak_resident_bytes, resident_bytes
# Classes are imported lazily: without this, seconds would count the imports too.
kind = saved_class(sys.argv[1])
if kind is AutoModel:
    config = AutoConfig.from_pretrained(sys.argv[1])
    MODEL_MAPPING[type(config)] if type(config) in MODEL_MAPPING else None
before = resident_bytes()
start = time.perf_counter()
model = kind.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
for tensor in (*model.parameters(), *model.buffers()):
    tensor.count_nonzero()
sys.stdout.write(json.dumps(dict(
    seconds=seconds, resident_after_bytes=resident_bytes(), peak_bytes=peak_resident_bytes(),
    resident_before_bytes=before)))
"""
