"""Fused projections: which rows of one matrix are q, k and v, and a module that runs parts side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


# q, k and v of each head lie together; other classes that happen to use the name are not cut.
_PER_HEAD = {"GPTNeoXAttention", "GPTNeoXJapaneseAttention", "BloomAttention", "PersimmonAttention"}
_FALCON = {"FalconAttention", "FalconFlashAttention2"}
_FALCON_SETTINGS = {"num_heads", "num_kv_heads", "new_decoder_architecture", "multi_query"}


@dataclass(frozen=True)
class Part:
    """Rows ``start … stop`` of every block of a fused matrix in ``(out, in)`` orientation.

    :param blocks: how many equal blocks of rows the matrix has: 1 where each part lies in one piece, else one for
        each head or group of heads.
    """

    name: str
    start: int
    stop: int
    blocks: int = 1

    @property
    def rows(self) -> int:
        """Rows of the part, all blocks together."""
        return self.blocks * (self.stop - self.start)

    def take(self, fused: Tensor, dim: int = 0) -> Tensor:
        """The part's rows of a fused tensor, ``dim`` being the one that is fused; a view where there is one block."""
        dim %= fused.dim()
        if self.blocks == 1:
            return fused.narrow(dim, self.start, self.stop - self.start)
        blocks = fused.unflatten(dim, (self.blocks, -1))
        return blocks.narrow(dim + 1, self.start, self.stop - self.start).flatten(dim, dim + 1)


def join(pieces: Sequence[Tensor], blocks: int, dim: int = 0) -> Tensor:
    """The fused tensor again, of the parts that ``Part.take`` cuts, in order."""
    if blocks == 1:
        return torch.cat(list(pieces), dim)
    dim %= pieces[0].dim()
    return torch.cat([piece.unflatten(dim, (blocks, -1)) for piece in pieces], dim + 1).flatten(dim, dim + 1)


@dataclass(frozen=True)
class FusedParts:
    """The parts of one fused matrix, in order and without gaps."""

    parts: tuple[Part, ...]

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    @property
    def blocks(self) -> int:
        """Blocks of the matrix, the same for every part."""
        return self.parts[0].blocks


def _sizes(names: tuple[str, ...], rows: int, config: Any) -> list[int] | None:
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None) or heads
    if names == ("q", "k", "v") and heads and groups and groups != heads:
        width = rows // (heads + 2 * groups)
        sizes = [heads * width, groups * width, groups * width]
        return sizes if sum(sizes) == rows else None
    return [rows // len(names)] * len(names) if rows % len(names) == 0 else None


def _interleaved(attention: nn.Module, rows: int) -> tuple[int, list[int]] | None:
    """Blocks of ``query_key_value``, and rows of q, k and v in each; None for a class whose order is not known."""
    kind, own = type(attention), vars(attention)
    width = own.get("head_dim", own.get("head_size"))
    if not width or not kind.__module__.startswith("transformers."):
        return None
    if kind.__name__ in _PER_HEAD:
        return rows // (3 * width), [width] * 3
    if kind.__name__ not in _FALCON or not own.keys() >= _FALCON_SETTINGS:
        return None
    heads, groups = own["num_heads"], own["num_kv_heads"]
    if own["new_decoder_architecture"]:
        return (groups, [heads // groups * width, width, width]) if heads % groups == 0 else None
    return (1, [heads * width, width, width]) if own["multi_query"] else (heads, [width] * 3)


def _order_of_its_own(attention: nn.Module, rows: int) -> tuple[tuple[str, ...], int, list[int]] | None:
    """Names, blocks and rows in each block of projections with a common name and another order."""
    kind, own = type(attention), vars(attention)
    if not kind.__module__.startswith("transformers."):
        return None
    if kind.__name__ == "CodeGenAttention" and rows % 12 == 0:  # always cut for four devices
        return ("q", "v", "k"), 4, [rows // 12] * 3
    if kind.__name__ == "GPTBigCodeAttention" and own.get("head_dim") and not own.get("is_cross_attention"):
        width = own["head_dim"]
        if own.get("multi_query"):
            return ("q", "k", "v"), 1, [rows - 2 * width, width, width]
        return ("q", "k", "v"), rows // (3 * width), [width] * 3
    return None


def fused_parts(module_name: str, rows: int, model: nn.Module) -> FusedParts | None:
    """The parts of the module of this name, or None if it is not fused (or not in an order that is known).

    :param rows: output features of the whole projection.
    """
    parent, _, last = module_name.rpartition(".")
    names: tuple[str, ...]
    if last == "query_key_value":
        names, layout = ("q", "k", "v"), _interleaved(model.get_submodule(parent), rows)
        blocks, sizes = layout or (1, None)
    elif last in FUSED_NAMES and (known := _order_of_its_own(model.get_submodule(parent), rows)):
        names, blocks, sizes = known
    elif last in FUSED_NAMES:
        names, blocks = FUSED_NAMES[last], 1
        if names == ("q", "k", "v") and "crossattention" in module_name:
            names = ("k", "v")
        sizes = _sizes(names, rows, getattr(model, "config", None))
    else:
        return None
    if sizes is None or blocks * sum(sizes) != rows:
        return None
    parts, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        parts.append(Part(name, start, start + size, blocks))
        start += size
    return FusedParts(tuple(parts))


class FusedLinear(nn.Module):
    """Runs the parts of a fused projection side by side and joins their outputs.

    Each part is a module of its own, ``(…, in)`` to ``(…, part)``: assembled, or a dense ``nn.Linear`` where only
    some parts are replaced.

    :param blocks: how many blocks of rows the parts are interleaved in.
    """

    weight: Tensor

    def __init__(self, parts: dict[str, nn.Module], blocks: int = 1) -> None:
        super().__init__()
        self.blocks = blocks
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
        return join([part(hidden_states) for part in self.parts.values()], self.blocks, dim=-1)
