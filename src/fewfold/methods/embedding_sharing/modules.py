"""The modules of embedding sharing: a linear map that is carved, and the table that everything is carved from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.assembled import AssembledEmbedding, AssembledLinear, RunningForm
from fewfold.errors import TargetError
from fewfold.methods.embedding_sharing.store import CarvingStore, stored_matrix
from fewfold.methods.factors import matrix_of

Head = Literal["rows", "factored"]


class CarvedLinear(AssembledLinear):
    """``y = x · W + b`` with ``W: (in, out)`` out of a slot; it owns nothing but its bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool, store: CarvingStore, slot: str) -> None:
        super().__init__(in_features, out_features)
        expect_shape(store, slot, (in_features, out_features))
        self.slot = slot
        self._store: tuple[CarvingStore, ...] = (store,)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)

    @property
    def store(self) -> CarvingStore:
        """What the weight is carved from."""
        return self._store[0]

    def leaves(self) -> Iterator[nn.Module]:
        """The table and its expansion."""
        return self.store.leaves()

    @property
    def running_form(self) -> RunningForm:
        """There is one form only: the weight is carved, then multiplied with."""
        return "rebuilt"

    def chain_macs(self) -> int:
        """``in · out``; carving is reckoned by the forward pass, not by the token."""
        return self.dense_macs()

    def shared_weights(self) -> dict[str, tuple[Any, ...]]:
        """A key that is equal wherever the assembled weight is."""
        return {"weight": (id(self.store), self.slot)}

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        return F.linear(hidden_states, self.store(self.slot).t(), self.bias)

    def assembled_weight(self) -> Tensor:
        """The carved weight, ``(out, in)``."""
        return self.store(self.slot).t()


class CarvedTable(AssembledEmbedding):
    """Looks rows up in the store's table; with a factor, ``rows = norm(up(norm(table[ids])))``.

    :param factor: whether the store's rows are shorter than ``embedding_dim``.
    :param norms: whether rows are normalised before and after ``up``.
    :param head: what tied heads multiply by: the ``rows`` themselves, or the short rows after a map of their own
        (``factored``), ``logits = (h · downᵀ) · tableᵀ``.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        store: CarvingStore,
        padding_idx: int | None = None,
        scale: float = 1.0,
        factor: bool = False,
        norms: bool = True,
        head: Head = "rows",
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, scale)
        table: Any = store.table
        if table.num_embeddings != num_embeddings or (not factor and table.embedding_dim != embedding_dim):
            raise ValueError(f"the store's table is {table.num_embeddings}×{table.embedding_dim}")
        self._store: tuple[CarvingStore, ...] = (store,)
        width = table.embedding_dim
        self.before = nn.LayerNorm(width, eps=1e-5) if factor and norms else None
        self.up = nn.Linear(width, embedding_dim) if factor else None
        self.after = nn.LayerNorm(embedding_dim, eps=1e-5) if factor and norms else None
        self.down = nn.Linear(embedding_dim, width, bias=False) if factor and head == "factored" else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02) -> None:
        """Fresh maps of standard deviation ``std``, zero biases."""
        for linear in (self.up, self.down):
            if linear is not None and not linear.weight.is_meta:
                linear.weight.normal_(std=std)
                if linear.bias is not None:
                    linear.bias.zero_()

    @property
    def store(self) -> CarvingStore:
        """What owns the table."""
        return self._store[0]

    def leaves(self) -> Iterator[nn.Module]:
        """The table, and the maps to rows and from hidden states."""
        yield self.store.table
        yield from self.children()

    def chain_macs(self) -> int:
        """``width · dim`` a looked-up row; 0 without a factor."""
        return 0 if self.up is None else self.up.in_features * self.up.out_features

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of ``ids``; the padding row takes no gradient from here."""
        return self._widened(self.store.table(ids))

    def attend(self, hidden_states: Tensor) -> Tensor:
        """``(…, dim)`` to ``(…, vocab)``."""
        if self.down is None:
            return super().attend(hidden_states)
        return F.linear(self.down(hidden_states), stored_matrix(self.store.table))

    def assembled_weight(self) -> Tensor:
        """All rows, ``(vocab, dim)``."""
        return self._widened(stored_matrix(self.store.table))

    def head_weight(self) -> Tensor | None:
        """What tied heads multiply by, ``(vocab, dim)``, where it is not the rows."""
        return None if self.down is None else stored_matrix(self.store.table) @ matrix_of(self.down)

    def _widened(self, rows: Tensor) -> Tensor:
        for step in (self.before, self.up, self.after):
            rows = rows if step is None else step(rows)
        return rows

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        """New rows get the mean row; the carved weights stay as they are, so carved rows are never cut off."""
        self.padding_idx = self.store.resize(rows, self.padding_idx)
        self.num_embeddings, self._rebuilt = rows, None


def expect_shape(store: CarvingStore, slot: str, shape: tuple[int, ...]) -> None:
    """Refuse a slot that the store does not have, or of another shape.

    :raises ValueError: naming both shapes.
    """
    if slot not in store.slots:
        raise ValueError(f"the store has no slot {slot!r}; it has {', '.join(store.slots)}")
    if store.slots[slot].shape != tuple(shape):
        raise ValueError(f"slot {slot} is {store.slots[slot].shape}, the weight {tuple(shape)}")


def store_of(store: Any) -> CarvingStore:
    """``store``, which must be one to carve from.

    :raises TargetError: where it is none.
    """
    if not isinstance(store, CarvingStore):
        raise TargetError("a carved weight needs the store that it is carved from")
    return store
