"""Fused projections: which rows of one matrix are q, k and v, and a module that runs parts side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FUSED_NAMES = {
    "c_attn": ("q", "k", "v"),
    "qkv_proj": ("q", "k", "v"),
    "gate_up_proj": ("gate", "up"),
    "in_proj": ("q", "k", "v"),
}


@dataclass(frozen=True)
class Part:
    """Rows ``start … stop`` of a fused matrix in ``(out, in)`` orientation."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class FusedParts:
    """The parts of one fused matrix, in order and without gaps."""

    parts: tuple[Part, ...]

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)


def _sizes(names: tuple[str, ...], rows: int, config: Any) -> list[int] | None:
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None) or heads
    if names == ("q", "k", "v") and heads and groups and groups != heads:
        width = rows // (heads + 2 * groups)
        sizes = [heads * width, groups * width, groups * width]
        return sizes if sum(sizes) == rows else None
    return [rows // len(names)] * len(names) if rows % len(names) == 0 else None


def fused_parts(module_name: str, rows: int, model: nn.Module) -> FusedParts | None:
    """The parts of the module of this name, or None if it is not fused.

    :param rows: output features of the whole projection.
    """
    names = FUSED_NAMES.get(module_name.rpartition(".")[2])
    config = getattr(model, "config", None)
    if names is None:
        return None
    if names == ("q", "k", "v") and "crossattention" in module_name:
        names = ("k", "v")
    sizes = _sizes(names, rows, config)
    if sizes is None:
        return None
    parts, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        parts.append(Part(name, start, start + size))
        start += size
    return FusedParts(tuple(parts))


class FusedLinear(nn.Module):
    """Runs the parts of a fused projection side by side and joins their outputs.

    Each part is a module of its own, ``(…, in)`` to ``(…, part)``: assembled, or a dense ``nn.Linear`` where only
    some parts are replaced.
    """

    weight: Tensor

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        first: Any = next(iter(parts.values()))
        self.register_buffer("weight", first.weight.new_empty(self.out_features, 0))
        self.original: tuple[nn.Module, ...] = ()

    @property
    def out_features(self) -> int:
        """Rows of all parts together."""
        return sum(part.out_features for part in self.parts.values())  # type: ignore[misc]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        return torch.cat([part(hidden_states) for part in self.parts.values()], dim=-1)
