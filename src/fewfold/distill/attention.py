"""Look at queries, keys and values while a model runs on its fast attention kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fewfold.errors import DistillError

NAME = "fewfold_recorded"


@dataclass(frozen=True)
class Heads:
    """What one attention layer saw, each ``(batch, heads, length, head width)``; keys and values may have fewer heads.

    :param scaling: what scores are multiplied with.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float

    def scores(self) -> Tensor:
        """Scaled scores before mask and softmax, ``(batch, heads, queries, keys)``."""
        key = self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], dim=1)
        return self.query @ key.transpose(-1, -2) * self.scaling

    def value_relations(self) -> Tensor:
        """``V Vᵀ / √(head width)``, ``(batch, heads, length, length)``, before the softmax."""
        return self.value @ self.value.transpose(-1, -2) * self.value.shape[-1] ** -0.5


class _Tape:
    def __init__(self, layers: Collection[int]) -> None:
        self.layers, self.calls = set(layers), 0
        self.heads: dict[int, Heads] = {}

    def add(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> None:
        self.calls += 1
        if self.calls in self.layers:
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            self.heads[self.calls] = Heads(query, key, value, scaling)


_tape: ContextVar[_Tape | None] = ContextVar("fewfold_attention_tape", default=None)


def _recorded(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    tape = _tape.get()
    if tape is not None:
        tape.add(query, key, value, kwargs.get("scaling"))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


@contextmanager
def recording(model: Any, layers: Collection[int]) -> Iterator[dict[int, Heads]]:
    """Record attention layers of ``model`` while the block runs it once.

    :param layers: numbers of the layers, the first is 1.
    :return: what they saw, by number, filled once the model has run.
    :raises DistillError: if the model's attention cannot be looked at.
    """
    if not layers:
        yield {}
        return
    if not getattr(model, "_supports_sdpa", False):
        raise DistillError(
            f"{type(model).__name__} does not run on scaled_dot_product_attention, so its attention cannot be "
            "recorded; leave the attention loss out"
        )
    ALL_ATTENTION_FUNCTIONS.register(NAME, _recorded)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    before, tape = model.config._attn_implementation, _Tape(layers)
    token = _tape.set(tape)
    model.config._attn_implementation = NAME
    try:
        yield tape.heads
    finally:
        model.config._attn_implementation = before
        _tape.reset(token)
    missing = set(layers) - set(tape.heads)
    if missing:
        raise DistillError(f"{type(model).__name__} has {tape.calls} attention layers and no layer {min(missing)}")
