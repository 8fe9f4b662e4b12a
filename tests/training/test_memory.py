"""Freed memory: kept inside of the block without faulting pages in again, given back at its end."""

import platform

import pytest
import torch

from fewfold.training import memory
from fewfold.training.memory import freed_memory_kept

resource = pytest.importorskip("resource")
LARGE = 10_000_000  # numbers of fp32: 40 MB, above what glibc itself ever keeps

glibc = pytest.mark.skipif(memory._glibc() is None, reason="of glibc that is not set up otherwise")


def faults(times):
    """Pages that the kernel has to bring in while tensors come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(LARGE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@glibc
def test_pages_stay():
    anew = faults(4)  # 40 MB are mapped each time, in small pages or huge ones
    assert anew > 40
    with freed_memory_kept():
        faults(2)
        kept_pages = faults(20)
        kept = resident()
    # a piece of what was freed may go to something else now and then: a quarter of what 20 new ones take is allowed
    assert kept_pages < 0.25 * 20 / 4 * anew
    assert resident() < kept - 0.8 * 4 * LARGE
    assert faults(4) > 0.2 * anew


@glibc
def test_given_back_after_an_error():
    kept = []

    def fails():
        with freed_memory_kept():
            faults(1)
            kept.append(resident())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert resident() < kept[0] - 0.8 * 4 * LARGE


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    assert memory._glibc() is None
    with freed_memory_kept():
        pass


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert memory._glibc() is None
    with freed_memory_kept():
        pass
