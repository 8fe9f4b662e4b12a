"""One layer of ShareBERT: attention and feed-forward whose weights come out of a store, biases and norms its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from fewfold.linalg.narrow import NarrowLinear, narrow_linear
from fewfold.methods.embedding_sharing.store import CarvingStore
from fewfold.models.sharebert.configuration import ShareBertConfig


class CarvedMap(nn.Module):
    """``x · W + b``: ``W`` ``(in, out)`` is carved, ``b`` is its own."""

    def __init__(self, store: CarvingStore, slot: str) -> None:
        super().__init__()
        self._store, self.slot = (store,), slot
        self.bias = nn.Parameter(torch.zeros(store.slots[slot].shape[1]))

    @property
    def store(self) -> CarvingStore:
        """What the weight is carved from."""
        return self._store[0]

    def carve_from(self, store: CarvingStore) -> None:
        """Take the weight out of another store from now on, from the slot of the same name."""
        self._store = (store,)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        return narrow_linear(hidden_states, self.store(self.slot).t(), self.bias)

    def extra_repr(self) -> str:
        """The slot's name and shape."""
        return f"{self.slot}, {self.store.slots[self.slot].shape}"


def make_map(config: ShareBertConfig, store: CarvingStore | None, slot: str) -> nn.Module:
    """A carved map, or the plain one that it becomes in a materialized model."""
    if store is not None:
        return CarvedMap(store, slot)
    rows, columns = config.slots()[slot].shape
    return NarrowLinear(rows, columns)


class ShareBertAttention(nn.Module):
    """Self-attention; scores are divided by head size to ``attention_scale_power``."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module

    def __init__(self, config: ShareBertConfig, store: CarvingStore | None, layer: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.scale = (config.hidden_size // self.heads) ** -config.attention_scale_power
        self.dropout = config.attention_probs_dropout_prob
        for role in ("query", "key", "value", "attention_output"):
            name = "output" if role == "attention_output" else role
            self.add_module(name, make_map(config, store, config.slot(layer, role)))

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``(batch, length, hidden)`` to the same, and the probabilities ``(batch, heads, length, length)`` if asked.

        :param mask: false where nothing is attended to, broadcast to ``(batch, heads, length, length)``; who may attend
            to nothing at all gets zeros.
        """
        query, key, value = (self._split(one(hidden_states)) for one in (self.query, self.key, self.value))
        dropout, probabilities = self.dropout if self.training else 0.0, None
        if output_attentions:
            scores = query @ key.transpose(-1, -2) * self.scale
            if mask is None:
                probabilities = scores.softmax(-1)
            else:  # finite, gradients too, where nothing may be attended to: zeros, as fused attention gives
                lowest = torch.finfo(scores.dtype).min
                probabilities = scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0.0)
            probabilities = F.dropout(probabilities, dropout)
            context = probabilities @ value
        else:
            context = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=self.scale)
        return self.output(context.transpose(1, 2).flatten(2)), probabilities

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ShareBertLayer(GradientCheckpointingLayer):
    """Attention and feed-forward with residuals, normalised before or after."""

    def __init__(self, config: ShareBertConfig, store: CarvingStore | None, layer: int) -> None:
        super().__init__()
        self.pre = config.norm_position == "pre"
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ShareBertAttention(config, store, layer)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = make_map(config, store, config.slot(layer, "intermediate"))
        self.output = make_map(config, store, config.slot(layer, "output"))
        self.activation, self.dropout = ACT2FN[config.hidden_act], nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, Any]:
        """``(batch, length, hidden)`` to the same, and the attention probabilities if asked."""
        if self.pre:
            attended, probabilities = self.attention(self.attention_norm(hidden_states), mask, output_attentions)
            hidden_states = hidden_states + self.dropout(attended)
            fed = self._feed_forward(self.output_norm(hidden_states))
            return hidden_states + self.dropout(fed), probabilities
        attended, probabilities = self.attention(hidden_states, mask, output_attentions)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        fed = self._feed_forward(hidden_states)
        return self.output_norm(hidden_states + self.dropout(fed)), probabilities

    def _feed_forward(self, hidden_states: Tensor) -> Tensor:
        return self.output(self.activation(self.intermediate(hidden_states)))
