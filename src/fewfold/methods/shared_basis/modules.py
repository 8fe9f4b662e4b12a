"""The store of one basis, and the linear maps that read or write through it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.assembled import AssembledLinear
from fewfold.linalg.shared_basis import Side
from fewfold.methods.factors import bias_of, matrix_of, resized_linear
from fewfold.methods.slices.modules import whole, write
from fewfold.methods.slices.reading import Reading
from fewfold.store import Store
from fewfold.stored import StoredDtype, StoredMatrix, make_linear


class BasisStore(Store):
    """Owns a basis ``(rank, width)``.

    :param side: of the weights on which it lies: ``in`` or ``out``.
    """

    def __init__(self, width: int, rank: int, side: Side, stored: StoredDtype) -> None:
        super().__init__()
        self.width, self.rank, self.side = width, rank, side
        self.basis = StoredMatrix(width, rank, stored)
        self._readings: dict[str, Reading] = {}
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A fresh basis that keeps the variance of what is read, or writes with that of what it is given."""
        if not whole(self.basis).is_meta:
            whole(self.basis).normal_(std=math.sqrt(1.0 / (self.width if self.side == "in" else self.rank)))

    def join(self, member: str, family: str) -> Reading:
        """The reading that a new member shares with the others of its family."""
        reading = self._readings.setdefault(family, Reading())
        reading.join(member)
        return reading

    def forward(self, states: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """``(…, width)`` to ``(…, rank)``; on the outputs' side back, bias added; without states the basis itself."""
        if states is None:
            return whole(self.basis)
        return self.basis(states) if self.side == "in" else write(self.basis, states, bias)


class BasisLinear(AssembledLinear):
    """A linear map with coefficients of its own and a basis of ``store``."""

    coefficients: nn.Linear

    def __init__(self, name: str, in_features: int, out_features: int, store: BasisStore) -> None:
        super().__init__(in_features, out_features)
        self.name = name
        self._store: tuple[BasisStore, ...] = (store,)

    @property
    def store(self) -> BasisStore:
        """What owns its basis."""
        return self._store[0]

    def leaves(self) -> Iterator[nn.Module]:
        """The basis and the coefficients."""
        yield self.store.basis
        yield self.coefficients

    def extra_repr(self) -> str:
        """Sizes, store and form."""
        return f"{super().extra_repr()}, store={self.store.name}, rank={self.store.rank}"


class BasisReader(BasisLinear):
    """``y = coefficients(B x)``: the basis reads; ``coefficients: rank → out`` holds the bias.

    :param family: a name that it shares with the members that read the same input.
    """

    def __init__(
        self, name: str, in_features: int, out_features: int, bias: bool, store: BasisStore, stored: StoredDtype,
        family: str,
    ) -> None:  # fmt: skip
        super().__init__(name, in_features, out_features, store)
        self.coefficients = make_linear(store.rank, out_features, bias, stored)
        self.reading = store.join(name, family)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh coefficients: with the fresh basis a weight with the variance of a fresh ``nn.Linear``."""
        if not matrix_of(self.coefficients).is_meta:
            matrix_of(self.coefficients).normal_(std=math.sqrt(1.0 / (3 * self.store.rank)))
            if self.bias is not None:
                self.bias.zero_()

    @property
    def bias(self) -> nn.Parameter | None:  # type: ignore[override]
        """The bias, kept by the coefficients."""
        return bias_of(self.coefficients)

    def chain_macs(self) -> int:
        """``rank · (in + out)``; a reading that several members share is divided between them."""
        read = -(-self.store.rank * self.in_features // len(self.reading.members))
        return read + self.store.rank * self.out_features

    def chained(self, hidden_states: Tensor) -> Tensor:
        """Through the basis, once for all that read the same, then the coefficients."""
        return self.coefficients(self.reading.take(self.name, hidden_states, self.store))

    def assembled_weight(self) -> Tensor:
        """``coefficients.weight @ basis``, ``(out, in)``."""
        return matrix_of(self.coefficients) @ self.store()

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        """New outputs get the mean row of the coefficients; kept ones stay equal."""
        self.coefficients = resized_linear(self.coefficients, rows)
        self.out_features = rows


class BasisWriter(BasisLinear):
    """``y = Bᵀ coefficients(x) + bias``: the basis writes; ``coefficients: in → rank``."""

    def __init__(
        self, name: str, in_features: int, out_features: int, bias: bool, store: BasisStore, stored: StoredDtype
    ) -> None:
        super().__init__(name, in_features, out_features, store)
        self.coefficients = make_linear(in_features, store.rank, False, stored)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh coefficients: with the fresh basis a weight with the variance of a fresh ``nn.Linear``."""
        if not matrix_of(self.coefficients).is_meta:
            matrix_of(self.coefficients).normal_(std=math.sqrt(1.0 / (3 * self.in_features)))
            if self.bias is not None:
                self.bias.zero_()

    def chain_macs(self) -> int:
        """``rank · (in + out)``."""
        return self.store.rank * (self.in_features + self.out_features)

    def chained(self, hidden_states: Tensor) -> Tensor:
        """Through the coefficients, then the basis."""
        return self.store(self.coefficients(hidden_states), self.bias)

    def assembled_weight(self) -> Tensor:
        """``basisᵀ @ coefficients.weight``, ``(out, in)``."""
        return self.store().t() @ matrix_of(self.coefficients)


def make_basis_linear(target: Any, store: BasisStore, stored: StoredDtype, family: str) -> BasisLinear:
    """The empty module for a target, on the side where its store's basis lies."""
    if store.side == "in":
        return BasisReader(target.name, target.columns, target.rows, target.bias, store, stored, family)
    return BasisWriter(target.name, target.columns, target.rows, target.bias, store, stored)
