"""What a measurement ran on: versions, processor, threads, date."""

from __future__ import annotations

import os
import platform
import time
import warnings
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from fewfold.errors import FewfoldWarning

_GAIN_ROUNDS = 12


def environment() -> dict[str, str | int]:
    """Describe this machine and these packages, for the head of every result.

    :return: Versions of fewfold, torch, transformers and Python, the processor's name, its logical cores, the
        CPU threads torch uses, and the date in UTC (ISO 8601).
    """
    return {
        "fewfold": _version("fewfold"),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """Name the processor, as Linux tells it or as Python knows it.

    :return: The model's name, or the architecture where no name is known.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def bf16_gain() -> float:
    """How many times as fast this processor multiplies matrices in bfloat16 as in fp32.

    Measured once a process, in about 0.2 s, as instruction sets do not tell: AMX gains severalfold, AVX512-BF16 alone
    may take twice as long as fp32, emulation three times.

    :return: A ratio of the shortest of interleaved products, of the size of a small encoder's.
    """
    left, right = torch.randn(256, 384), torch.randn(384, 1536)
    pairs = {dtype: (left.to(dtype), right.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in pairs}
    with torch.no_grad():
        for _ in range(_GAIN_ROUNDS):
            for dtype, (rows, columns) in pairs.items():
                start = time.perf_counter()
                torch.mm(rows, columns)
                times[dtype].append(time.perf_counter() - start)
    whole, half = (min(times[dtype]) for dtype in (torch.float32, torch.bfloat16))
    return whole / half


def bf16_is_slow() -> bool:
    """Whether training in bfloat16 is correct here, but slower than in fp32. False where there is a GPU."""
    return not torch.cuda.is_available() and bf16_gain() < 1


def warn_of_slow_bf16(wanted: bool) -> None:
    """Say so where training is to run in bfloat16 on a processor that multiplies it more slowly than fp32."""
    if wanted and bf16_is_slow():
        warnings.warn(
            f"bf16 on {cpu_name()}: this processor multiplies matrices in bfloat16 at {bf16_gain():.1f} times the "
            "speed of fp32; leave bf16 out here",
            FewfoldWarning,
            stacklevel=3,
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
