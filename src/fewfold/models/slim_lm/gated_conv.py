"""Gated convolutions over words: no recurrence, and a state of constant size all the same."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.models.slim_lm.cells import LayerState


class GatedConvLayer(nn.Module):
    """``h = x + (x * W + b) ⊗ σ(x * V + c)``, causal (Dauphin et al. 2017, equation 1, with a residual connection).

    ``conv`` holds W and V, one behind the other; its state is the last ``kernel_size - 1`` inputs, so that a text can
    be read in pieces as by a recurrent layer. The residual is left out where widths differ.
    """

    def __init__(self, input_size: int, hidden_size: int, kernel_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size, self.kernel_size = input_size, hidden_size, kernel_size
        self.conv = nn.Conv1d(input_size, 2 * hidden_size, kernel_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolution anew, unless it is replaced."""
        if isinstance(self.conv, nn.Conv1d):
            self.draw(self.conv)

    def draw(self, conv: nn.Conv1d) -> None:
        """Normal numbers of variance 1 / inputs of an output, biases 0."""
        nn.init.normal_(conv.weight, std=1 / math.sqrt(self.input_size * self.kernel_size))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)

    def fresh_state(self, batch: int, like: Tensor) -> LayerState:
        """Zeros, ``(batch, kernel size - 1, in)``."""
        return (like.new_zeros(batch, self.kernel_size - 1, self.input_size),)

    def forward(
        self, inputs: Tensor, state: LayerState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """``(batch, length, in)`` to ``(batch, length, out)`` and the state after the last step.

        :param mask: ``(batch, length)``, False where a step leaves the state as it is (padding), or None.
        """
        (before,) = self.fresh_state(inputs.shape[0], inputs) if state is None else state
        if mask is None:
            read = torch.cat([before, inputs], dim=1)
            return self._gated(read, inputs), (read[:, inputs.shape[1] :],)
        order = (~mask).long().argsort(dim=1, stable=True)  # real steps first, so that no window spans padding
        moved = inputs.gather(1, order[..., None].expand_as(inputs))
        read = torch.cat([before, moved], dim=1)
        outputs = self._gated(read, moved)
        back = order.argsort(dim=1)[..., None].expand_as(outputs)
        last = mask.sum(1, keepdim=True) + torch.arange(self.kernel_size - 1, device=mask.device)
        return outputs.gather(1, back), (read.gather(1, last[..., None].expand(-1, -1, self.input_size)),)

    def _gated(self, read: Tensor, inputs: Tensor) -> Tensor:
        found: Any = self.conv(read.transpose(1, 2))
        gated = nn.functional.glu(found, dim=1).transpose(1, 2)
        return inputs + gated if self.input_size == self.output_size else gated
