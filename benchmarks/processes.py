"""Figures of processes of their own: what an allocator, a cache or a loaded library changes cannot be taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def in_a_process(*command: str, environment: Mapping[str, str] | None = None, limit: float | None = None) -> Any:
    """What a Python process prints last, out of JSON; its errors and progress go where ours do.

    :param command: a program's file and its arguments, or ``-c`` and code.
    :param environment: variables to add.
    :param limit: seconds until it is killed (``subprocess.TimeoutExpired``).
    """
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, check=True,
        text=True, timeout=limit,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])
