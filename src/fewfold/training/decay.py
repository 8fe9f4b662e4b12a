"""Which parameters weight decay leaves out."""

from __future__ import annotations

from torch import nn

from fewfold.store import Store


def shared_vectors(model: nn.Module) -> set[str]:
    """Names of the norms and biases that stores own: no name or type of theirs says that they are such."""
    return {
        f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        if isinstance(module, Store)
        for key, parameter in module.named_parameters()
        if parameter.dim() <= 1
    }
