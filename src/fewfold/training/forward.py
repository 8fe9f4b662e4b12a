"""A model whose own forward is back after a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_PATCHED = ("forward", "_original_forward")


@contextmanager
def forward_restored(model: nn.Module) -> Iterator[None]:
    """Take back what accelerate puts in place of `forward`, which would go on to compute in bfloat16."""
    own = {name: vars(model)[name] for name in _PATCHED if name in vars(model)}
    try:
        yield
    finally:
        for name in _PATCHED:
            model.__dict__.pop(name, None)
        model.__dict__.update(own)
