"""Recurrent layers whose matrices are linear children, so that every method of this library can replace them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.assembled import Assembled, must_be_called
from fewfold.methods.factors import matrix_of
from fewfold.stored.modules import StoredLinear

LayerState = tuple[Tensor, ...]  # (h, c) of an LSTM, (h,) of a GRU, each (batch, width)
REBUILT_FROM = 64  # tokens of a call from which assembled matrices are rebuilt for the fused kernel


class RecurrentLayer(nn.Module):
    """One layer: ``input_map`` ``(gates · hidden, in)``, ``hidden_map`` ``(gates · hidden, out)``, ``projection``.

    Gates stand in torch's order: input, forget, cell, output (LSTM, forget gates open at the start), or reset,
    update, new (GRU). Plain and rebuilt matrices run in torch's fused kernels; a matrix that must be called
    (adapters, hooks, factors) runs step by step, with equal results.
    """

    called_each_step = ("hidden_map", "projection")  # what calibration has to know: these read a step at a time
    gates: int
    kernel: Any
    cell_kernel: Any

    def __init__(self, input_size: int, hidden_size: int, projection_size: int | None, weight_dropout: float) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.weight_dropout = input_size, hidden_size, weight_dropout
        self.output_size = hidden_size if projection_size is None else projection_size
        self.input_map = nn.Linear(input_size, self.gates * hidden_size)
        self.hidden_map = nn.Linear(self._fed_back(), self.gates * hidden_size, bias=self._hidden_bias())
        self.projection = None if projection_size is None else nn.Linear(hidden_size, projection_size, bias=False)
        self.reset_parameters()

    def _fed_back(self) -> int:
        """Width of what a step hands to the next one."""
        return self.output_size

    def _hidden_bias(self) -> bool:
        return False

    def reset_parameters(self) -> None:
        """Draw all that is not replaced anew."""
        for linear in (self.input_map, self.hidden_map, self.projection):
            if isinstance(linear, nn.Linear):
                self.draw(linear)

    def draw(self, linear: nn.Linear) -> None:
        """Fresh numbers for a map: uniform within ±1/√hidden, as of torch's own recurrent layers; biases 0."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        nn.init.uniform_(linear.weight, -bound, bound)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)

    def fresh_state(self, batch: int, like: Tensor) -> LayerState:
        """Zeros."""
        raise NotImplementedError

    def forward(
        self, inputs: Tensor, state: LayerState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """``(batch, length, in)`` to ``(batch, length, out)`` and the state after the last step.

        :param mask: ``(batch, length)``, False where a step leaves the state as it is (padding), or None.
        """
        if state is None:
            state = self.fresh_state(inputs.shape[0], inputs)
        dropping = self.training and self.weight_dropout > 0
        tokens = inputs.shape[0] * inputs.shape[1]
        weights = [self._weight(linear, tokens) for linear in (self.input_map, self.hidden_map)]
        if dropping:
            found = weights[1] if weights[1] is not None else matrix_of_any(self.hidden_map)
            weights[1] = F.dropout(found, self.weight_dropout)
        if mask is None and weights[0] is not None and weights[1] is not None and self._projects_plainly():
            return self._fused(inputs, state, weights[0], weights[1])
        return self._stepwise(inputs, state, mask, weights[1] if dropping else None)

    def _weight(self, linear: nn.Module, tokens: int) -> Tensor | None:
        """A matrix for the fused kernel, or None where the module has to be called."""
        if must_be_called(linear):
            return None
        if isinstance(linear, Assembled):
            if linear.form == "auto" and tokens >= REBUILT_FROM:
                return None if any(must_be_called(leaf) for leaf in linear.leaves()) else linear.rebuilt_weight()
            return linear.rebuilt_weight() if linear.running_form == "rebuilt" else None
        return linear.matrix() if isinstance(linear, StoredLinear) else linear.weight  # type: ignore[return-value]

    def _projects_plainly(self) -> bool:
        return self.projection is None or self._weight(self.projection, REBUILT_FROM) is not None

    def _biases(self, like: Tensor) -> list[Tensor]:
        first: Any = getattr(self.input_map, "bias", None)
        second: Any = getattr(self.hidden_map, "bias", None)
        rows = self.gates * self.hidden_size
        return [like.new_zeros(rows) if bias is None else bias for bias in (first, second)]

    def _fused(self, inputs: Tensor, state: LayerState, first: Tensor, second: Tensor) -> tuple[Tensor, LayerState]:
        raise NotImplementedError

    def _step(self, gates: Tensor, state: LayerState, weight: Tensor | None) -> tuple[Tensor, LayerState]:
        """One step: what goes up, and the new state.

        :param gates: ``(batch, gates · hidden)``, the input's share.
        :param weight: the recurrent matrix with dropout, or None to call ``hidden_map``.
        """
        raise NotImplementedError

    def _recur(self, hidden: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return self.hidden_map(hidden)
        bias: Any = getattr(self.hidden_map, "bias", None)
        return F.linear(hidden, weight, bias)

    def _stepwise(
        self, inputs: Tensor, state: LayerState, mask: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        gates, outputs = self.input_map(inputs), []
        for step in range(inputs.shape[1]):
            output, fresh = self._step(gates[:, step], state, weight)
            if mask is not None:
                kept = mask[:, step, None]
                fresh = tuple(torch.where(kept, new, old) for new, old in zip(fresh, state, strict=True))
            state = fresh
            outputs.append(output)
        return torch.stack(outputs, 1), state


class LSTMLayer(RecurrentLayer):
    """``c = σ(f)·c + σ(i)·tanh(g)``, ``h = σ(o)·tanh(c)``, projected where there is a projection."""

    gates = 4

    def draw(self, linear: nn.Linear) -> None:
        """As the base; forget gates start open (bias 1)."""
        super().draw(linear)
        bias = linear.bias
        if linear is self.input_map and not bias.is_meta and not getattr(bias, "_is_hf_initialized", False):
            with torch.no_grad():
                bias[self.hidden_size : 2 * self.hidden_size] = 1.0

    def fresh_state(self, batch: int, like: Tensor) -> LayerState:
        """``h`` ``(batch, out)`` and ``c`` ``(batch, hidden)``, zeros."""
        return like.new_zeros(batch, self.output_size), like.new_zeros(batch, self.hidden_size)

    def _fused(self, inputs: Tensor, state: LayerState, first: Tensor, second: Tensor) -> tuple[Tensor, LayerState]:
        if inputs.shape[1] == 1 and self.projection is None:
            biases: Any = (getattr(self.input_map, "bias", None), getattr(self.hidden_map, "bias", None))
            if inputs.device.type != "cpu":  # other devices take both biases or neither
                biases = self._biases(inputs)
            hidden, cell = torch.lstm_cell(inputs[:, 0], state, first, second, *biases)
            return hidden[:, None], (hidden, cell)
        weights = [first, second, *self._biases(inputs)]
        if self.projection is not None:
            found = self._weight(self.projection, REBUILT_FROM)
            assert found is not None
            weights.append(found)
        start = tuple(part[None].contiguous() for part in state)
        output, hidden, cell = torch.lstm(inputs, start, weights, True, 1, 0.0, self.training, False, True)
        return output, (hidden[0], cell[0])

    def _step(self, gates: Tensor, state: LayerState, weight: Tensor | None) -> tuple[Tensor, LayerState]:
        hidden, cell = state
        entry, forget, new, out = (gates + self._recur(hidden, weight)).chunk(4, -1)
        cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
        hidden = out.sigmoid() * cell.tanh()
        if self.projection is not None:
            hidden = self.projection(hidden)
        return hidden, (hidden, cell)


class GRULayer(RecurrentLayer):
    """``n = tanh(x_n + σ(r)·h_n)``, ``h = (1 − σ(z))·n + σ(z)·h``; a projection reads ``h`` and is not fed back."""

    gates = 3

    def _fed_back(self) -> int:
        return self.hidden_size

    def _hidden_bias(self) -> bool:
        return True

    def fresh_state(self, batch: int, like: Tensor) -> LayerState:
        """``h`` ``(batch, hidden)``, zeros."""
        return (like.new_zeros(batch, self.hidden_size),)

    def _projects_plainly(self) -> bool:
        return True  # it is applied to all steps at once, by calling it

    def _fused(self, inputs: Tensor, state: LayerState, first: Tensor, second: Tensor) -> tuple[Tensor, LayerState]:
        weights = [first, second, *self._biases(inputs)]
        if inputs.shape[1] == 1:
            last = torch.gru_cell(inputs[:, 0], state[0], *weights)
            output = last[:, None]
        else:
            start = state[0][None].contiguous()
            output, final = torch.gru(inputs, start, weights, True, 1, 0.0, self.training, False, True)
            last = final[0]
        return (output if self.projection is None else self.projection(output)), (last,)

    def _step(self, gates: Tensor, state: LayerState, weight: Tensor | None) -> tuple[Tensor, LayerState]:
        reset_x, update_x, new_x = gates.chunk(3, -1)
        reset_h, update_h, new_h = self._recur(state[0], weight).chunk(3, -1)
        update = (update_x + update_h).sigmoid()
        new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
        hidden = (1 - update) * new + update * state[0]
        return (hidden if self.projection is None else self.projection(hidden)), (hidden,)


def matrix_of_any(linear: nn.Module) -> Tensor:
    """A linear map's matrix ``(out, in)``, however it is kept."""
    return linear.assembled_weight() if isinstance(linear, Assembled) else matrix_of(linear)


CELLS: dict[str, type[RecurrentLayer]] = {"lstm": LSTMLayer, "gru": GRULayer}
