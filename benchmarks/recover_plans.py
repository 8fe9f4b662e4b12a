"""What recovery is tried on: students by name, each a recipe, a budget and how many layers the dense model keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Plan:
    """What is done to a dense model.

    :param recipe: None: nothing is compressed.
    :param layers: the model is cut to so many first (None: to none).
    """

    recipe: Any = None
    budget: str | None = None
    layers: int | None = None

    @property
    def counted(self) -> str:
        """What its budget counts, for claims: numbers or bytes."""
        return "numbers" if (self.budget or "").startswith("parameters") else "bytes"

    def __call__(self, bench: Bench) -> Any:
        """The student, from a copy of the dense model."""
        return self.on(bench.fresh(), calibration_texts(TEXT), bench.tokenizer, TEXT)

    def on(self, model: Any, texts: Sequence[str], tokenizer: Any, name: str) -> Any:
        """The student, made of a model in place and calibrated on texts of a name."""
        if self.layers is not None:
            cut(model, self.layers)
        if self.recipe is None:
            return model
        return fewfold.compress(
            model, self.recipe, budget=None if self.budget is None else Budget.parse(self.budget), calibration=texts,
            tokenizer=tokenizer, calibration_name=name,
        )  # fmt: skip


def plans() -> dict[str, Plan]:
    """Every student by name; the last part of a name says what it is compared with."""
    found: dict[str, Plan] = {}
    for ratio in RATIOS:
        numbers, size = f"parameters=1/{ratio} of linears", f"bytes=1/{ratio} of linears"
        found[f"low rank, 1/{ratio}"] = Plan(LowRank(), numbers)
        found[f"shared factors, 1/{ratio}"] = Plan(SharedFactors(), numbers)
        dtype = SHARED_DTYPES[ratio]
        shared = SharedLayers(map="all", stored_dtype=dtype)  # type: ignore[arg-type]
        words = "" if dtype == "fp32" else f", {dtype}"
        found[f"one block and differences{words}, 1/{ratio}"] = Plan(shared, numbers if not words else size)
        found[f"codes, 1/{ratio}"] = Plan(SubvectorCodes(), size)
    found["low rank, int3, 1/48"] = Plan(LowRank(stored_dtype="int3"), "bytes=1/48 of linears")
    for kept in (3, 2):  # of six, in as many bytes: fewer layers, fuller ones
        recipe, size = LowRank(stored_dtype="int3"), f"bytes=1/{48 * kept // 6} of linears"
        found[f"low rank, int3, on {kept} layers, 1/48"] = Plan(recipe, size, kept)
    for layers in (3, 2, 1):
        found[f"cut to {layers} layer{'s' if layers > 1 else ''}"] = Plan(layers=layers)
    found["cut to 3 layers in int4"] = Plan(Dense(targets="all", stored_dtype="int4"), layers=3)
    found["cut to 1 layer in int3"] = Plan(Dense(targets="all", stored_dtype="int3"), layers=1)
    for times in WHOLE:
        found[f"codes-default, whole model {times}×"] = Plan("codes-default", f"bytes={BYTES / times / 1e6:.3f}MB")
    found["codes-default, whole model as small as int4"] = Plan("codes-default", f"bytes={INT4_BYTES / 1e6:.3f}MB")
    found["low-rank-codes, whole model 32×"] = Plan("low-rank-codes", f"bytes={BYTES / 32 / 1e6:.3f}MB")
    found["int4, whole model"] = Plan(Dense(targets="all", stored_dtype="int4"))
    found["int3, whole model"] = Plan(Dense(targets="all", stored_dtype="int3"))
    return found


def cut(model: Any, layers: int) -> Any:
    """Keep so many layers, evenly spaced, the last one among them."""
    body = getattr(model, model.base_model_prefix, model)
    blocks = body.encoder.layer
    kept = [round((place + 1) * len(blocks) / layers) - 1 for place in range(layers)]
    body.encoder.layer = torch.nn.ModuleList(blocks[place] for place in kept)
    model.config.num_hidden_layers = layers
    return model
