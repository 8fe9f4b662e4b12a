import warnings

import pytest
import torch

from fewfold.measure.environment import bf16_is_emulated, environment, warn_of_slow_bf16


@pytest.mark.parametrize(
    ("machine", "gpu", "bf16", "amx", "emulated"),
    [
        ("x86_64", False, False, False, True), ("x86_64", False, True, False, False),
        ("x86_64", False, False, True, False), ("x86_64", True, False, False, False),
        ("arm64", False, False, False, False),
    ],
)  # fmt: skip
def test_emulated_bf16_is_told(machine, gpu, bf16, amx, emulated, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert bf16_is_emulated() is emulated
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_bf16(False)
        if not emulated:
            warn_of_slow_bf16(True)
    if emulated:
        with pytest.warns(UserWarning, match="leave bf16 out"):
            warn_of_slow_bf16(True)


def test_environment_names_what_a_result_needs():
    told = environment()
    assert told["torch"] == torch.__version__
    assert told["threads"] == torch.get_num_threads()
