"""The store that weights are carved from: the token table, its expansion, and what was carved for this step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.assembled import Assembled, must_be_called
from fewfold.errors import TargetError
from fewfold.methods.embedding_sharing.carve import carve, carving_dtype
from fewfold.methods.embedding_sharing.slots import Slot
from fewfold.methods.factors import bias_of, matrix_of, resized
from fewfold.seen import Seen
from fewfold.store import Store
from fewfold.stored import StoredDtype, StoredEmbedding, StoredLinear, make_embedding, make_linear


@dataclass(frozen=True, eq=False)
class Carved:
    """One weight, and what it was carved under.

    :param graph: whether gradients flow from it to the stored tensors.
    """

    key: Seen
    weight: Tensor
    graph: bool


def balanced_std(inputs: int, width: int) -> float:
    """Of a table of this width and of its expansion, so that carved weights have variance ``1 / (3 · inputs)``.

    That is what PyTorch's own layers begin with; of variance ``1 / inputs``, translation models learned half as fast. A
    carved number is a sum of ``width`` products: its variance is ``width · std⁴``. Both sides are equally large, as an
    optimizer like Adam moves both by equal steps.
    """
    return float((3 * width * inputs) ** -0.25)


class CarvingStore(Store):
    """Owns the table ``(rows, width)`` and its expansion ``(columns, width)``; called with a slot's name, it carves.

    A weight is carved at its first use and kept until a stored tensor, its dtype or device, autocast, or the grad mode
    changes. One that has a graph is also dropped as soon as a backward pass has reached it: the next forward pass
    carves anew, even where an optimizer writes in ways that cannot be seen. Until then any number of forward passes
    share it, and each may be run backward by itself.

    :param rows: tokens.
    :param vocab_rows: how many of them are carved; tokens that are added later are not.
    :param slots: by name.
    :param columns: of the expanded table; 0 carves the table itself.
    :param bias: whether the expansion has one.
    :param inputs_first: whether weights are ``(in, out)``: what evaluation keeps of them then lies in memory as
        ``(out, in)``.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        vocab_rows: int,
        slots: Mapping[str, Slot],
        columns: int,
        bias: bool = True,
        padding_idx: int | None = None,
        stored: StoredDtype | None = None,
        inputs_first: bool = False,
    ) -> None:
        super().__init__()
        for name, slot in slots.items():
            if slot.offset < 0 or slot.end > (columns or width) or slot.columns * vocab_rows < slot.numel:
                raise ValueError(f"slot {name} {slot} does not fit into {vocab_rows}×{columns or width}")
        if not 0 < vocab_rows <= rows:
            raise ValueError(f"vocab_rows={vocab_rows}: the table has {rows}")
        stored = stored or StoredDtype()
        self.slots, self.vocab_rows = dict(slots), vocab_rows
        self.inputs_first = inputs_first
        self.table: nn.Module = make_embedding(rows, width, padding_idx, stored)
        self.expansion: nn.Module | None = make_linear(width, columns, bias, stored) if columns else None
        self._carved: dict[str, Carved] = {}

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02, fan_in: Mapping[str, int] | None = None) -> None:
        """Fresh table and expansion, normal with standard deviation ``std``; the padding row and biases are 0.

        :param fan_in: as :meth:`fresh_projection` takes it.
        """
        table, projection = matrix_of(self.table), None if self.expansion is None else matrix_of(self.expansion)
        if table.is_meta:
            return
        table.normal_(std=std)
        padding = getattr(self.table, "padding_idx", None)
        if padding is not None:
            table[padding].zero_()
        if projection is None or self.expansion is None:
            return
        projection.copy_(self.fresh_projection(projection, std, fan_in))
        bias = bias_of(self.expansion)
        if bias is not None:
            bias.zero_()

    def fresh_projection(self, like: Tensor, std: float, fan_in: Mapping[str, int] | None = None) -> Tensor:
        """A fresh ``(columns, width)`` of the expansion for a table of standard deviation ``std``.

        :param fan_in: by slot: inputs of its weight, whose variance shall be ``1 / (3 · fan_in)`` (a carved number's is
            ``width · std² · var(P)``; None: P is as the table).
        """
        projection = torch.empty_like(like).normal_(std=std)
        for name, inputs in (fan_in or {}).items():
            slot = self.slots[name]
            projection[slot.offset : slot.end].normal_(std=1.0 / (std * math.sqrt(3 * like.shape[1] * inputs)))
        return projection

    def leaves(self) -> Iterator[nn.Module]:
        """The modules that weights are carved from."""
        yield self.table
        if self.expansion is not None:
            yield self.expansion

    def forward(self, name: str) -> Tensor:
        """The weight in the slot of this name, of the slot's shape."""
        key = self._key()
        if key is None:
            return self._carve(name, None)
        found = self._carved.get(name)
        if found is None or found.key != key:
            found = self._carved[name] = self._new(name, key)
        return found.weight

    def _new(self, name: str, key: Seen) -> Carved:
        if not torch.is_grad_enabled():
            weight = self._carve(name, None)
            if self.inputs_first and not self.training and weight.dim() == 2:
                weight = weight.t().contiguous().t()  # once, so that each product reads it in the faster order
            return Carved(key, weight, False)
        store, place = weakref.ref(self), [lambda: None]

        def spent() -> None:
            found = place[0]()
            owner = store()
            if owner is not None:
                owner._drop(name, found)

        weight = self._carve(name, spent)
        carved = Carved(key, weight, weight.requires_grad)
        place[0] = weakref.ref(carved)  # type: ignore[assignment]
        return carved

    def _drop(self, name: str, carved: Carved | None) -> None:
        """Let go of what a backward pass has reached, and of what was kept without a graph before."""
        if carved is not None and self._carved.get(name) is carved:
            del self._carved[name]
        for other in [other for other, kept in self._carved.items() if not kept.graph]:
            del self._carved[other]

    def _carve(self, name: str, spent: Any) -> Tensor:
        table = stored_matrix(self.table)
        if table.shape[0] != self.vocab_rows:
            table = table[: self.vocab_rows]
        if self.expansion is None:
            return carve(self.slots[name], table, spent=spent)
        return carve(self.slots[name], table, stored_matrix(self.expansion), bias_of(self.expansion), spent)

    def _key(self) -> Seen | None:
        """What changes with the carved weights; None where nothing may be kept: traces, adapters, hooks."""
        if torch.compiler.is_compiling() or any(_called(leaf) for leaf in self.leaves()):
            return None
        held = list(self._held())
        modes = [(tensor.device, tensor.requires_grad, carving_dtype(tensor)) for tensor in held]
        return Seen(held, modes, torch.is_grad_enabled(), torch.is_inference_mode_enabled())

    def _held(self) -> Iterator[Tensor]:
        for leaf in self.leaves():
            yield from leaf.parameters()
            yield from leaf.buffers()

    def forget(self) -> None:
        """Let go of every carved weight."""
        self._carved.clear()

    @torch.no_grad()
    def resize(self, rows: int, padding_idx: int | None) -> int | None:
        """Grow or shrink the table; the carved weights stay.

        :return: the padding row, None if it was cut off.
        :raises TargetError: if carved rows would be cut off.
        """
        if rows < self.vocab_rows:
            raise TargetError(
                f"the hidden weights are carved out of the first {self.vocab_rows} rows of the table: {rows} rows "
                "would change all of them. Keep the rows, or make the model plain first (fewfold.densify, materialize)"
            )
        self.table, padding_idx = resized(self.table, rows, padding_idx)
        self.forget()
        return padding_idx

    def resized_settings(self) -> dict[str, Any]:
        """The table's rows."""
        return {"rows": self.table.num_embeddings}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.forget()
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """As every module's; what was carved is forgotten."""
        self.forget()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_carved": {}}

    def extra_repr(self) -> str:
        """Sizes."""
        return f"vocab_rows={self.vocab_rows}, slots={len(self.slots)}"


def _called(leaf: nn.Module) -> bool:
    if isinstance(leaf, Assembled):
        return any(must_be_called(held) for held in leaf.leaves())
    return must_be_called(leaf, hooks=False)


def stored_matrix(leaf: nn.Module) -> Tensor:
    """A leaf's matrix, also where the leaf is compressed itself, or has hooks for its look-ups."""
    if isinstance(leaf, Assembled):
        return leaf.assembled_weight()
    if _called(leaf):
        return matrix_of(leaf)
    return leaf.matrix() if isinstance(leaf, StoredLinear | StoredEmbedding) else leaf.weight  # type: ignore[return-value]
