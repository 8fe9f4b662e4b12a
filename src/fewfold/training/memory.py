"""Keeping freed memory while a processor trains: every step asks for the same sizes again."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

TRIM, MMAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
KEPT = 2**31 - 1  # bytes: as much as mallopt takes
USUAL = 2**25  # where glibc's own threshold ends up when it adapts


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep what tensors free, inside of the block; it is given back at its end.

    By default large tensors come from fresh pages of the kernel each time, and a tensor of tens of MB is freed within
    microseconds of its use: faulting its pages in again takes up to a quarter of a training step. Only glibc is told,
    and only where ``MALLOC_MMAP_THRESHOLD_`` and ``MALLOC_TRIM_THRESHOLD_`` are not set.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(MMAP, KEPT)
    library.mallopt(TRIM, KEPT)
    try:
        yield
    finally:
        library.mallopt(MMAP, USUAL)
        library.mallopt(TRIM, 2 * USUAL)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc and its user has not set it up."""
    chosen = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
    if chosen or platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
