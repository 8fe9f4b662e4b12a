"""Convolutions and recurrent layers as targets, and their dense modules again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fewfold.surgery.targets import Target

_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def describe_operator(name: str, module: nn.Module) -> Target | None:
    """The target that an ``nn.Conv1d``, ``nn.Conv2d``, ``nn.LSTM`` or ``nn.GRU`` is; subclasses are none.

    Depthwise convolutions are none either: they hold next to nothing. An LSTM with projections is refused.
    """
    kind, refusal = type(module), None
    shapes = {key: tuple(value.shape) for key, value in module._parameters.items() if value is not None}
    shapes = {key: shape for key, shape in shapes.items() if len(shape) > 1}
    if kind in (nn.Conv1d, nn.Conv2d):
        conv: Any = module
        if conv.groups == conv.in_channels > 1:
            return None
        arguments = {key: getattr(conv, key) for key in _CONV} | {"bias": conv.bias is not None}
        bias = conv.bias is not None
    elif kind in (nn.LSTM, nn.GRU):
        cell: Any = module
        arguments, bias = {key: getattr(cell, key) for key in _RECURRENT}, cell.bias
        refusal = "its outputs are projected (proj_size)" if cell.proj_size else None
    else:
        return None
    rows = next(iter(shapes.values()))[0]
    columns = sum(math.prod(shape) // rows for shape in shapes.values())
    return Target(
        name, name, "conv" if kind in (nn.Conv1d, nn.Conv2d) else "recurrent", rows, columns, bias=bias,
        refusal=refusal, operator=kind.__name__, arguments=_jsonable(arguments), shapes=shapes,
    )  # fmt: skip


def _jsonable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as they come back from config.json."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}


def tensor_of(module: nn.Module) -> Tensor:
    """A tensor that says a module's dtype and device: its weight, or the first parameter."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) else next(module.parameters())


def relink(module: nn.Module) -> nn.Module:
    """After a recurrent module's parameters were changed from outside: what it holds beside them."""
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
    return module
