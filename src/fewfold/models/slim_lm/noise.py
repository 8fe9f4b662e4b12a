"""Losses that look at few words of a large vocabulary: sampled softmax and noise-contrastive estimation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def noise_loss(states: Tensor, labels: Tensor, head: nn.Module, options: Any) -> Tensor:
    """Sum over tokens."""
    raise NotImplementedError
