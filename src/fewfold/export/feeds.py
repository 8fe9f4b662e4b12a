"""What an exported graph is fed with: names, dynamic axes, and examples of several sizes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.measure.inputs import clipped_length, dummy_inputs

SIZES = ((2, 9), (1, 5), (3, 16))  # batch and length: the first is traced, all are compared


def example(model: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Inputs of a model; the first sequence of several ends in padding, and segments alternate where there are any.

    :raises ValueError: if no inputs can be made from the model's config.
    """
    values = dummy_inputs(model, batch, min(length, clipped_length(model.config, length)))
    mask = values.get("attention_mask")
    if mask is not None and batch > 1:
        mask[0, -2:] = 0
    if "decoder_input_ids" in values:
        values["decoder_input_ids"] = values["decoder_input_ids"][:, :-1].contiguous()
    segments = getattr(model.config, "type_vocab_size", 0) or 0
    if mask is not None and segments > 1 and "token_type_ids" in inspect.signature(model.forward).parameters:
        values["token_type_ids"] = (torch.arange(mask.shape[1]) >= mask.shape[1] // 2).long().expand(batch, -1).clone()
    return values


def dynamic_axes(values: dict[str, Tensor]) -> dict[str, dict[int, str]]:
    """Names of the axes that may have any size: batch, and lengths of texts."""
    axes = {}
    for name, value in values.items():
        axes[name] = {0: "batch"}
        if value.dim() == 2:
            axes[name][1] = "decoder_length" if name.startswith("decoder") else "length"
    return axes


class FirstOutput(nn.Module):
    """A model with positional inputs and one output: logits, else the last hidden states."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        """The one output."""
        return first_output(self.model(**dict(zip(self.names, values, strict=True))))[1]


def first_output(result: Any) -> tuple[str, Tensor]:
    """Name and value of what a model gives: logits, else the last hidden states.

    :raises ValueError: if it gives neither.
    """
    for name in ("logits", "last_hidden_state"):
        value = getattr(result, name, None)
        if value is not None:
            return name, value
    raise ValueError(f"{type(result).__name__} has neither logits nor last_hidden_state")
