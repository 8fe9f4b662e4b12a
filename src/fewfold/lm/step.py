"""One window through a model that carries its state: the only place that knows how such a model is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def foretell(model: nn.Module, inputs: Tensor, labels: Tensor, state: Any, bf16: bool = False) -> tuple[Tensor, Any]:
    """Run a window.

    :param inputs: tokens, ``(streams, length)``.
    :param labels: the token after each, ``(streams, length)``; −100 where none is to be foretold.
    :param state: what the window before left behind, None at a text's start.
    :param bf16: autocast to bfloat16.
    :return: the mean loss a token in nats, and the state after the window, detached.
    """
    device = next(parameter.device for parameter in model.parameters())
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        output = model(input_ids=inputs.to(device), shift_labels=labels.to(device), state=state)
    return output.loss.float(), model.detach_state(output.state)  # type: ignore[operator]
