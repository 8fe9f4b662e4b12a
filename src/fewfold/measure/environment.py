"""What a measurement ran on: versions, processor, threads, date."""

from __future__ import annotations

import os
import platform
import warnings
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch


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


def bf16_is_emulated() -> bool:
    """Whether bfloat16 runs without instructions of its own here: correct, but several times slower than fp32.

    :return: True on an x86 processor without AVX512-BF16 and AMX, where there is no GPU.
    """
    if torch.cuda.is_available() or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    supported = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return not any(found is None or found() for found in supported)


def warn_of_slow_bf16(wanted: bool) -> None:
    """Say so where training is to run in bfloat16 on a processor that only emulates it."""
    if wanted and bf16_is_emulated():
        warnings.warn(
            f"bf16 on {cpu_name()}: this processor has no bfloat16 instructions, and emulating them makes training "
            "about three times slower than fp32; leave bf16 out here",
            stacklevel=3,
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
