"""Blocks that several layers run through, and the modules of a layer that point at them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import layer_norm

from fewfold.assembled import Assembled, AssembledLinear, must_be_called
from fewfold.errors import TargetError
from fewfold.methods.factors import matrix_of
from fewfold.store import Store
from fewfold.stored import StoredDtype, StoredMatrix, make_linear


class Vectors(nn.Module):
    """A vector of weights and one of biases, either of which may be missing; called, it gives both.

    :param weights: numbers of the first.
    :param biases: numbers of the second.
    """

    def __init__(self, weights: int, biases: int) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(weights)) if weights else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(biases)) if biases else None)

    def forward(self) -> tuple[Tensor | None, Tensor | None]:
        """Weights and biases."""
        return self._parameters["weight"], self._parameters["bias"]


class BlockStore(Store):
    """One matrix ``(out, in)`` that serves several layers, and their bias where that is shared too."""

    def __init__(self, rows: int, columns: int, bias: bool, stored: StoredDtype) -> None:
        super().__init__()
        self.matrix = StoredMatrix(columns, rows, stored)
        self.shift = Vectors(0, rows) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A fresh matrix with the variance of a fresh ``nn.Linear``, ``1 / (3 · in)``; no bias."""
        weight = self.matrix.weight
        if weight is not None and not weight.is_meta:
            weight.normal_(std=math.sqrt(1.0 / (3 * weight.shape[1])))
            if self.shift is not None:
                self.shift.bias.zero_()  # type: ignore[union-attr, operator]

    def shared_bias(self) -> Tensor | None:
        """The bias, got by calling its leaf."""
        return None if self.shift is None else self.shift()[1]

    def forward(self, hidden_states: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """``(…, in)`` to ``(…, out)``; without input, the matrix.

        :param bias: the layer's own, where none is shared.
        """
        leaf, shared = self.matrix, self.shared_bias()
        bias = bias if shared is None else shared
        ours = type(leaf) is StoredMatrix and not hasattr(leaf.weight, "__tensor_flatten__")
        if hidden_states is None:
            return leaf() if ours else matrix_of(leaf)
        if ours:
            return leaf(hidden_states, False, bias)
        out = leaf(hidden_states)
        return out if bias is None else out + bias


class NormStore(Store):
    """The weights, and biases if there are any, of a norm that serves several layers."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.vectors = Vectors(width, width if bias else 0)

    def forward(self) -> dict[str, Tensor]:
        """Weights and biases by the names that they have in a norm."""
        weight, bias = self.vectors()
        found = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return found  # type: ignore[return-value]


class SharedLinear(AssembledLinear):
    """``y = block(x) + up(down(x)) + bias``: a layer's use of a block, and what it has of its own.

    It runs chained unless set otherwise: rebuilt, every layer would hold a dense weight again.

    :param name: the target's name.
    :param bias: whether the layer keeps a bias of its own.
    :param rank: of the layer's own difference (0: none).
    :param stored: the kept form of the difference.
    """

    down: nn.Module | None
    up: nn.Module | None

    def __init__(
        self,
        name: str,
        in_features: int,
        out_features: int,
        bias: bool,
        store: BlockStore,
        rank: int = 0,
        stored: StoredDtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.name, self.rank = name, rank
        self._store: tuple[BlockStore, ...] = (store,)
        self._own_bias(bias)
        self.down = self.up = None
        if rank:
            self.down = make_linear(in_features, rank, False, stored or StoredDtype())
            self.up = make_linear(rank, out_features, False, stored or StoredDtype())
        self.reset_parameters()

    def _own_bias(self, bias: bool) -> None:
        self.register_parameter("bias", nn.Parameter(torch.zeros(self.out_features)) if bias else None)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A fresh difference is nothing: layers begin to differ as they are trained."""
        if self.down is not None and self.up is not None and not matrix_of(self.down).is_meta:
            matrix_of(self.down).normal_(std=math.sqrt(1.0 / self.in_features))
            matrix_of(self.up).zero_()

    @property
    def store(self) -> BlockStore:
        """What owns the block."""
        return self._store[0]

    def leaves(self) -> Iterator[nn.Module]:
        """The block, and the factors of the difference."""
        yield self.store.matrix
        if self.down is not None and self.up is not None:
            yield self.down
            yield self.up

    def chain_macs(self) -> int:
        """``in · out`` of the block, and ``rank · (in + out)`` of the difference."""
        return self.dense_macs() + self.rank * (self.in_features + self.out_features)

    @property
    def running_form(self) -> Literal["chained", "rebuilt"]:
        """Chained unless set to rebuilt; a block without difference is the dense weight itself."""
        if self.form != "rebuilt" or not self.rank or any(must_be_called(leaf) for leaf in self.leaves()):
            return "chained"
        return "rebuilt"

    def chained(self, hidden_states: Tensor) -> Tensor:
        """Through the block, then the difference."""
        out = self.store(hidden_states, None if self.store.shift is not None else self.bias)
        return out if self.down is None or self.up is None else out + self.up(self.down(hidden_states))

    def assembled_weight(self) -> Tensor:
        """``block + up · down``, ``(out, in)``."""
        block = self.store(None)
        return block if self.down is None or self.up is None else block + matrix_of(self.up) @ matrix_of(self.down)

    def resize(self, rows: int) -> None:
        """Refused: the block also serves other layers."""
        raise TargetError(
            f"{self.name} runs through a block that other layers share and cannot change its number of rows: unshare "
            "the model, resize it, compress again"
        )

    def extra_repr(self) -> str:
        """Sizes, difference and store."""
        return f"{super().extra_repr()}, rank={self.rank}, store={self.store.name}"


class SharedAffine(SharedLinear):
    """A :class:`SharedLinear` whose bias the store owns as well."""

    def _own_bias(self, bias: bool) -> None:
        """It has none."""

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The store's bias: a view, so that nobody takes it for the layer's own Parameter."""
        bias = self.store.shared_bias()
        return None if bias is None else bias.view(-1)


class SharedNorm(Assembled):
    """A norm whose weights a store owns; it computes what the norm it stands for computes.

    :param name: the target's name.
    """

    def __init__(self, name: str, width: int, store: NormStore) -> None:
        super().__init__(width)
        self.name, self.in_features, self.out_features = name, width, width
        self._store: tuple[NormStore, ...] = (store,)

    @property
    def store(self) -> NormStore:
        """What owns its weights."""
        return self._store[0]

    @property
    def bias(self) -> Tensor | None:
        """The store's bias, a view."""
        bias = self.store().get("bias")
        return None if bias is None else bias.view(-1)

    def leaves(self) -> Iterator[nn.Module]:
        """The vectors."""
        yield self.store.vectors

    def chain_macs(self) -> int:
        """0: norms are not counted."""
        return 0

    def dense_macs(self) -> int:
        """0: norms are not counted."""
        return 0

    @property
    def running_form(self) -> Literal["chained"]:
        """There is one form only."""
        return "chained"

    def assembled_weight(self) -> Tensor:
        """``(width, 1)``."""
        return self.store()["weight"][:, None]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As the original norm's, with the store's weights."""
        norm, own = self.original[0], self.store()
        if type(norm) is nn.LayerNorm:  # by far the most frequent, and swapping weights costs more than the norm
            return layer_norm(hidden_states, norm.normalized_shape, own["weight"], own.get("bias"), norm.eps)
        return functional_call(norm, own, (hidden_states,))
