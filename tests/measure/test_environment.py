import time
import warnings

import pytest
import torch

from fewfold.measure import environment as measured
from fewfold.measure.environment import bf16_gain, bf16_is_slow, environment, warn_of_slow_bf16


@pytest.mark.parametrize(
    ("gpu", "gain", "slow"), [(False, 0.5, True), (False, 1.0, False), (False, 4.0, False), (True, 0.5, False)]
)
def test_slow_bf16_is_told(gpu, gain, slow, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(measured, "bf16_gain", lambda: gain)
    assert bf16_is_slow() is slow
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_bf16(False)
        if not slow:
            warn_of_slow_bf16(True)
    if slow:
        with pytest.warns(UserWarning, match=r"at 0\.5 times the speed of fp32; leave bf16 out"):
            warn_of_slow_bf16(True)


def test_gain_is_fp32_seconds_over_bf16_seconds(monkeypatch):
    clock = [0.0]
    seconds = {torch.float32: 2.0, torch.bfloat16: 5.0}

    def product(left, right):
        clock[0] += seconds[left.dtype]

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert bf16_gain.__wrapped__() == 2.0 / 5.0


def test_environment_names_what_a_result_needs():
    told = environment()
    assert told["torch"] == torch.__version__
    assert told["threads"] == torch.get_num_threads()
