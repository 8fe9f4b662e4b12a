import time

import pytest
import torch
from torch import nn

from fewfold.measure.latency import latency


class Sleeps(nn.Module):
    def __init__(self, seconds, log):
        super().__init__()
        self.seconds, self.log = seconds, log
        self.inner = nn.Dropout()

    def forward(self, x):
        assert torch.is_inference_mode_enabled()
        assert not self.inner.training
        self.log.append((self.seconds, torch.get_num_threads()))
        time.sleep(self.seconds)


def test_rounds_are_interleaved_and_state_comes_back():
    log, before = [], torch.get_num_threads()
    models = {"slow": Sleeps(0.02, log), "fast": Sleeps(0.005, log)}
    models["fast"].eval()
    models["fast"].inner.train()
    inputs = {name: {"x": torch.zeros(1)} for name in models}
    timings = latency(models, repeats=4, warmup=1, threads=1, inputs=inputs)
    assert log == [(0.02, 1), (0.005, 1)] * 5
    assert list(timings) == ["slow", "fast"]
    slow, fast = timings["slow"], timings["fast"]
    assert 20 <= slow.low <= slow.median <= slow.high
    assert fast.median >= 5
    assert fast.rounds == 4
    assert fast.threads == 1
    assert slow.speedup["slow"] == 1
    assert fast.speedup["slow"] == pytest.approx(slow.median / fast.median, rel=0.5)
    assert fast.speedup["slow"] > 1 > slow.speedup["fast"]
    assert torch.get_num_threads() == before
    assert models["slow"].training
    assert not models["fast"].training
    assert models["fast"].inner.training


def test_settings_come_back_after_an_error():
    before, model = torch.get_num_threads(), nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        latency({"a": model}, threads=1, inputs={"a": {"input": torch.zeros(1, 5)}})
    assert torch.get_num_threads() == before
    assert model.training


def test_dummies_and_bad_calls(tiny_bert):
    assert latency({"bert": tiny_bert}, batch=2, length=8, repeats=2, warmup=0)["bert"].median > 0
    with pytest.raises(ValueError, match="at least one model"):
        latency({})
