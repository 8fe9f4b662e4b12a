"""What a measurement ran on: versions, processor, threads, date."""

from __future__ import annotations

import os
import platform
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


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
