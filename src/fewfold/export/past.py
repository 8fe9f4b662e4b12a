"""Decoders with past keys and values: one graph that reads a text at once, in pieces, or token by token."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from fewfold.errors import ModelError
from fewfold.export.feeds import example

PAST_KEY = "past_key_values.0.key"
TEXTS = ("input_ids", "attention_mask", "position_ids")
TRACED = (2, 5, 3)  # batch, tokens of the past, tokens
PIECES = (0, 4, 5, 6)  # where the compared texts are cut: several tokens, one, one, the rest


class WithPast(nn.Module):
    """A decoder whose past keys and values are inputs and outputs of their own.

    Inputs are ids, a mask over past and present tokens, positions, and a key and a value a layer, each
    ``(batch, heads, past length, head dim)``; outputs are logits and the longer keys and values.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        """Logits, then a key and a value a layer."""
        cache = DynamicCache()
        cache.layers = [_filled(*past[place : place + 2]) for place in range(0, len(past), 2)]
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        return (
            result.logits,
            *(part for layer in result.past_key_values.layers for part in (layer.keys, layer.values)),
        )


def _filled(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.keys, layer.values, layer.dtype, layer.device = keys, values, keys.dtype, keys.device
    layer.is_initialized = True
    return layer


def past_example(model: Any, batch: int, past: int, length: int) -> dict[str, Tensor]:
    """Inputs by name; all keys and values are those of ``past`` tokens before.

    :raises ModelError: if the model has no cache of keys and values that grows, or takes no positions.
    """
    if model.config.is_encoder_decoder or "position_ids" not in inspect.signature(model.forward).parameters:
        raise _refused(model)
    text = example(model, batch, past + length)
    ids, mask = text["input_ids"], text["attention_mask"]
    with torch.no_grad():
        cache = getattr(model(input_ids=ids, attention_mask=mask, use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", None)
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        raise _refused(model)
    positions = torch.arange(past + length).expand(batch, -1)
    values = {"input_ids": ids[:, past:], "attention_mask": mask, "position_ids": positions[:, past:]}
    for number, layer in enumerate(layers):
        values[f"past_key_values.{number}.key"] = layer.keys[:, :, :past]
        values[f"past_key_values.{number}.value"] = layer.values[:, :, :past]
    return {name: value.contiguous().clone() for name, value in values.items()}


def _refused(model: Any) -> ModelError:
    return ModelError(
        f"{type(model).__name__} is no decoder that keeps the keys and values of every token and takes position_ids: "
        "export it without past keys and values"
    )


def past_shapes(names: list[str]) -> dict[str, Any]:
    """Names of the axes that may have any size, by the arguments of :class:`WithPast`."""
    text, whole, kept = {0: "batch", 1: "length"}, {0: "batch", 1: "total_length"}, {0: "batch", 2: "past_length"}
    past = tuple(kept for name in names if name not in TEXTS)
    return {"input_ids": text, "attention_mask": whole, "position_ids": text, "past": past}


def output_names(names: list[str]) -> list[str]:
    """``logits`` and ``present.N.key`` and ``.value``."""
    return ["logits", *(name.replace("past_key_values", "present") for name in names if name not in TEXTS)]


def compare_past(model: Any, session: Any, batch: int, length: int) -> tuple[float, float]:
    """Read texts in pieces in ONNX Runtime, each with the past of those before, and at once in torch.

    :return: the largest absolute difference of logits, and the largest absolute logit.
    """
    values = past_example(model, batch, 0, length)
    with torch.inference_mode():
        expected = model(**{name: values[name] for name in TEXTS}, use_cache=False).logits.float().numpy()
    past = {name: value.numpy() for name, value in values.items() if name not in TEXTS}
    found = []
    cuts = [*(cut for cut in PIECES if cut < length), length]
    for start, stop in pairwise(cuts):
        feed = {name: values[name][:, start:stop].numpy() for name in TEXTS}
        feed["attention_mask"] = values["attention_mask"][:, :stop].numpy()
        logits, *present = session.run(None, {**feed, **past})
        past = dict(zip(past, present, strict=True))
        found.append(logits)
    return float(np.abs(np.concatenate(found, 1) - expected).max()), float(np.abs(expected).max())
