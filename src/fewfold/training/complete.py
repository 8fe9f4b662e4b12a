"""Checkpoints that were written to their end: a file that comes last marks them."""

from __future__ import annotations

import shutil
from pathlib import Path


def newest(folder: Path, mark: str) -> Path | None:
    """The last complete checkpoint.

    :param mark: name of the file that comes last.
    """
    found = [path for path in folder.glob("checkpoint-*") if (path / mark).is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def drop_incomplete(folder: Path, mark: str) -> None:
    """Remove what a kill cut short: where old checkpoints make room for new ones, it would count as one of them."""
    for path in folder.glob("checkpoint-*"):
        if not (path / mark).is_file():
            shutil.rmtree(path, ignore_errors=True)
