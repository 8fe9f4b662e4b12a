"""What recovery is tried on: students by name, each a function from the dense model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import Bench

import fewfold
from fewfold import Budget, Dense, LowRank, SharedFactors, SharedLayers, SubvectorCodes
from fewfold.tasks.data import calibration_texts

TEXT = "mixed-512"
RATIOS, WHOLE = (4, 7, 48), (8, 16, 32)
BYTES, INT4_BYTES = 90_852_864, 14_068_464  # of the dense model, and of all its matrices in int4
# one block is a sixth of the linears' numbers already: below that, a smaller dtype pays for the differences
SHARED_DTYPES = {4: "fp32", 7: "int8", 48: "int3"}

Make = Callable[[Bench], Any]


def plans() -> dict[str, Make]:
    """Every student by name; the last part of a name says what it is compared with."""
    found: dict[str, Make] = {}
    for ratio in RATIOS:
        numbers, size = f"parameters=1/{ratio} of linears", f"bytes=1/{ratio} of linears"
        found[f"low rank, 1/{ratio}"] = _compress(LowRank(), numbers)
        found[f"shared factors, 1/{ratio}"] = _compress(SharedFactors(), numbers)
        dtype = SHARED_DTYPES[ratio]
        shared = SharedLayers(map="all", stored_dtype=dtype)  # type: ignore[arg-type]
        words = "" if dtype == "fp32" else f", {dtype}"
        found[f"one block and differences{words}, 1/{ratio}"] = _compress(shared, numbers if not words else size)
        found[f"codes, 1/{ratio}"] = _compress(SubvectorCodes(), size)
    found["low rank, int3, 1/48"] = _compress(LowRank(stored_dtype="int3"), "bytes=1/48 of linears")
    for layers in (3, 2, 1):
        found[f"cut to {layers} layer{'s' if layers > 1 else ''}"] = partial(_cut, layers)
    found["cut to 3 layers in int4"] = _compress(Dense(targets="all", stored_dtype="int4"), None, 3)
    found["cut to 1 layer in int3"] = _compress(Dense(targets="all", stored_dtype="int3"), None, 1)
    for times in WHOLE:
        found[f"codes-default, whole model {times}×"] = _compress("codes-default", f"bytes={BYTES / times / 1e6:.3f}MB")
    found["codes-default, whole model as small as int4"] = _compress("codes-default", f"bytes={INT4_BYTES / 1e6:.3f}MB")
    found["low-rank-codes, whole model 32×"] = _compress("low-rank-codes", f"bytes={BYTES / 32 / 1e6:.3f}MB")
    found["int4, whole model"] = _compress(Dense(targets="all", stored_dtype="int4"), None)
    found["int3, whole model"] = _compress(Dense(targets="all", stored_dtype="int3"), None)
    return found


def _compress(config: Any, budget: str | None, layers: int | None = None) -> Make:
    def make(bench: Bench) -> Any:
        model = bench.fresh() if layers is None else cut(bench.fresh(), layers)
        return fewfold.compress(
            model, config, budget=None if budget is None else Budget.parse(budget),
            calibration=calibration_texts(TEXT), tokenizer=bench.tokenizer, calibration_name=TEXT,
        )  # fmt: skip

    return make


def _cut(layers: int, bench: Bench) -> Any:
    return cut(bench.fresh(), layers)


def cut(model: Any, layers: int) -> Any:
    """Keep so many layers, evenly spaced, the last one among them."""
    blocks = model.encoder.layer
    kept = [round((place + 1) * len(blocks) / layers) - 1 for place in range(layers)]
    model.encoder.layer = torch.nn.ModuleList(blocks[place] for place in kept)
    model.config.num_hidden_layers = layers
    return model
