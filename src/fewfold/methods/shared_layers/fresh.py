"""What a norm's numbers are before any training."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from fewfold.methods.shared_layers.modules import NormStore


@torch.no_grad()
def begin_norm(store: NormStore, model: nn.Module, name: str) -> None:
    """Give a store the fresh weights and biases of a dense norm: ones, or zeros where it multiplies by ``1 + w``.

    What is fresh is what the model draws, else what the norm's own ``reset_parameters`` does; else the store stays.

    :param name: of the norm in the model.
    """
    norm: Any = copy.deepcopy(model.get_submodule(name))
    for key, value in norm.named_parameters():
        setattr(norm, key, nn.Parameter(torch.full_like(value, math.nan)))
    owner = _drawing(model, name)
    if owner is not None:
        owner._init_weights(norm)
    elif hasattr(norm, "reset_parameters"):
        norm.reset_parameters()
    for key, value in store.vectors.named_parameters():
        fresh = getattr(norm, key)
        if not value.is_meta and not fresh.is_meta and bool(fresh.isfinite().all()):
            value.copy_(fresh)


def _drawing(model: nn.Module, name: str) -> Any:
    """The innermost module around a norm that draws fresh weights."""
    while name:
        name = name.rpartition(".")[0]
        module = model.get_submodule(name)
        if hasattr(module, "_init_weights"):
            return module
    return None
