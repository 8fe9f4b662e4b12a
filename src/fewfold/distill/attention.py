"""Look at queries, keys and values while a model runs on its fast attention kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fewfold.errors import DistillError

NAME = "fewfold_recorded"


@dataclass(frozen=True)
class Heads:
    """What one attention layer saw, each ``(batch, heads, length, head width)``; keys and values may have fewer heads.

    :param scaling: what scores are multiplied with.
    :param bias: position bias that is added to scores, broadcastable to them, or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    bias: Tensor | None = None

    def scores(self) -> Tensor:
        """Scaled scores before mask and softmax, ``(batch, heads, queries, keys)``."""
        key = self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], dim=1)
        scores = self.query @ key.transpose(-1, -2) * self.scaling
        return scores if self.bias is None else scores + self.bias

    def value_relations(self) -> Tensor:
        """``V Vᵀ / √(head width)``, ``(batch, heads, length, length)``, before the softmax."""
        return self.value @ self.value.transpose(-1, -2) * self.value.shape[-1] ** -0.5


class _Tape:
    def __init__(self, layers: Collection[int]) -> None:
        self.layers, self.calls = set(layers), 0
        self.heads: dict[int, Heads] = {}

    def add(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, bias: Tensor | None) -> None:
        self.calls += 1
        if self.calls in self.layers:
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            self.heads[self.calls] = Heads(query, key, value, scaling, bias)


_tape: ContextVar[_Tape | None] = ContextVar("fewfold_attention_tape", default=None)


def _recorded(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    tape = _tape.get()
    if tape is not None:
        tape.add(query, key, value, kwargs.get("scaling"), kwargs.get("position_bias"))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


@contextmanager
def recording(model: Any, layers: Collection[int]) -> Iterator[dict[int, Heads]]:
    """Record attention layers of ``model`` while the block runs it once.

    :param layers: numbers of the layers in the order that they run in, the first is 1.
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
    tape = _Tape(layers)
    # the stacks of an encoder–decoder may have configs of their own
    configs = {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    token = _tape.set(tape)
    for config in configs.values():
        config._attn_implementation = NAME
    try:
        yield tape.heads
    finally:
        for config, name in before:
            config._attn_implementation = name
        _tape.reset(token)
    missing = set(layers) - set(tape.heads)
    if missing:
        raise DistillError(f"{type(model).__name__} has {tape.calls} attention layers and no layer {min(missing)}")
