import pytest
import torch
from torch import nn

from fewfold.measure import latency as module
from fewfold.measure.latency import latency


class Clock:
    """A clock that only forwards move: what is tested does not depend on how busy the machine is."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class Takes(nn.Module):
    """A model whose forwards take the given seconds, one after the other."""

    def __init__(self, name, seconds, clock, log):
        super().__init__()
        self.name, self.seconds, self.clock, self.log = name, iter(seconds), clock, log
        self.inner = nn.Dropout()

    def forward(self, x):
        assert torch.is_inference_mode_enabled()
        assert not self.inner.training
        self.log.append((self.name, torch.get_num_threads()))
        self.clock.now += next(self.seconds)


def test_rounds_are_interleaved_and_state_comes_back(monkeypatch):
    clock, log, before = Clock(), [], torch.get_num_threads()
    monkeypatch.setattr(module, "time", clock)
    # The first round warms up; the last is one in which something else slows the whole machine four times.
    models = {
        "slow": Takes("slow", [9.0, 0.020, 0.022, 0.024, 0.088], clock, log),
        "fast": Takes("fast", [9.0, 0.005, 0.005, 0.006, 0.022], clock, log),
    }
    models["fast"].eval()
    models["fast"].inner.train()
    inputs = {name: {"x": torch.zeros(1)} for name in models}
    timings = latency(models, repeats=4, warmup=1, threads=1, inputs=inputs)
    assert log == [("slow", 1), ("fast", 1)] * 5
    assert list(timings) == ["slow", "fast"]
    slow, fast = timings["slow"], timings["fast"]
    assert (slow.median, fast.median) == (pytest.approx(23), pytest.approx(5.5))
    assert (slow.low, slow.high) == (pytest.approx(20.6), pytest.approx(24 + 0.7 * 64))
    assert (fast.rounds, fast.threads) == (4, 1)
    assert slow.speedup == {"slow": pytest.approx(1), "fast": pytest.approx(0.25)}
    assert fast.speedup == {"slow": pytest.approx(4), "fast": pytest.approx(1)}
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
