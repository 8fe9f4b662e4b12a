"""The module that stands for one target, and the base of the stores that it is assembled from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.assembled import AssembledLinear, must_be_called
from fewfold.errors import TargetError
from fewfold.methods.factors import matrix_of
from fewfold.methods.slices.layout import Cut, join_slices
from fewfold.methods.slices.prepared import Prepared, can_prepare
from fewfold.methods.slices.products import Step
from fewfold.methods.slices.reading import Reading
from fewfold.seen import Seen
from fewfold.store import Store
from fewfold.stored import StoredMatrix
from fewfold.surgery.targets import Target


class SliceStore(Store):
    """Owns the tensors that the slices of a group are assembled from."""

    def __init__(self) -> None:
        super().__init__()
        self._readings: dict[tuple[Any, ...], Reading] = {}
        self._kept: dict[str, tuple[Seen, Tensor]] = {}  # layouts that members have in common

    def forget(self) -> None:
        """Let go of what was kept for members that keep their steps."""
        self._kept.clear()

    def train(self, mode: bool = True) -> Any:
        """As every module's; what was kept is forgotten."""
        self.forget()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": {}}

    def join(self, member: SlicedLinear, family: str) -> Reading:
        """The reading that a new member shares with the rest of its family."""
        key = (family, member.bank, member.cut.rows, member.cut.tiled == "in", member.in_features)
        reading = self._readings.setdefault(key, Reading())
        reading.join(member.name, member.bias is not None)
        return reading

    def check_member(self, target: Target, bank: str, first: int, cut: Cut) -> None:
        """Refuse a record that does not fit this store.

        :raises ValueError: saying what does not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} holds no banks")

    def places(self, bank: str) -> list[tuple[nn.Module, str, nn.Module]]:
        """The leaves that hold the tensors of a bank's slices, with the module that each hangs on and its name."""
        raise NotImplementedError(f"{type(self).__name__} holds no banks")

    def read(self, hidden_states: Tensor, member: SlicedLinear) -> Tensor:
        """``(…, in)`` to what all slices with this input begin with."""
        raise NotImplementedError(f"{type(self).__name__} does not read")

    def finish(self, read: Tensor, member: SlicedLinear) -> Tensor:
        """From what was read to ``(…, out)``, bias included."""
        raise NotImplementedError(f"{type(self).__name__} does not write")

    def prepare(self, member: SlicedLinear, form: str) -> tuple[Step, Step]:
        """Reading and finishing with everything done that can be done once, for as long as no tensor changes."""
        raise NotImplementedError(f"{type(self).__name__} prepares nothing")

    def slices(self, member: SlicedLinear) -> Tensor:
        """The member's slices ``(tiles, rows, columns)``."""
        raise NotImplementedError(f"{type(self).__name__} assembles no slices")

    def macs(self, member: SlicedLinear) -> tuple[int, int, int | None]:
        """Multiply-accumulates a token: of the reading, of what follows, and of what follows when folded."""
        raise NotImplementedError(f"{type(self).__name__} counts nothing")

    def forward(self, hidden_states: Tensor | None, member: SlicedLinear) -> Tensor:
        """``(…, in)`` to ``(…, out)`` through the stored tensors; without input, the member's slices."""
        if hidden_states is None:
            return self.slices(member)
        read = member.reading.take(member.name, hidden_states, lambda states: self.read(states, member))
        return self.finish(read, member)


class SlicedLinear(AssembledLinear):
    """A linear map whose weight is made of slices of a bank; it owns nothing but its bias.

    :param name: the target's name.
    :param bank: of ``store``.
    :param first: the number of its first slice.
    :param cut: how its weight falls into slices.
    :param family: a name that it shares with the modules that read the same input.
    """

    def __init__(
        self,
        name: str,
        in_features: int,
        out_features: int,
        bias: bool,
        store: SliceStore,
        bank: str,
        first: int,
        cut: Cut,
        family: str,
    ) -> None:
        super().__init__(in_features, out_features)
        self.name, self.bank, self.first, self.cut = name, bank, first, cut
        self._store: tuple[SliceStore, ...] = (store,)
        self._prepared: Prepared | None = None
        self._counted: tuple[int, tuple[int, int, int | None]] | None = None
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)
        self.reading = store.join(self, family)

    @property
    def store(self) -> SliceStore:
        """What owns its tensors."""
        return self._store[0]

    def leaves(self) -> Iterator[nn.Module]:
        """The store's children that its weight is assembled from."""
        for _, _, leaf in self.store.places(self.bank):
            yield leaf

    def chain_macs(self) -> int:
        """Multiply-accumulates a token; a reading that several modules share is divided between them."""
        shared, rest, folded = self._costs()
        return shared + (folded if self.form in ("auto", "folded") and folded is not None else rest)

    def _costs(self) -> tuple[int, int, int | None]:
        """Its part of the reading, what follows it, and what follows it folded (None: no cheaper)."""
        members = len(self.reading.members)
        counted = self._counted
        if counted is None or counted[0] != members:
            read, rest, folded = self.store.macs(self)
            cheaper = folded if folded is not None and folded <= rest else None
            counted = self._counted = (members, (-(-read // members), rest, cheaper))
        return counted[1]

    @property
    def running_form(self) -> Literal["chained", "folded", "rebuilt"]:
        """As set, else the form with the fewest multiply-accumulates; folded only where it can be kept."""
        if self.form == "chained" or any(must_be_called(leaf) for leaf in self.leaves()):
            return "chained"
        if self.form == "rebuilt" or (self.form == "auto" and self.chain_macs() >= self.dense_macs()):
            return "rebuilt"
        if self._costs()[2] is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return "chained"
        return "folded"

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        prepared = self._prepared
        if torch.compiler.is_compiling() or prepared is None or not prepared.holds(self):
            prepared = self._prepare()
        if prepared is not None:
            if prepared.read is None:
                return prepared.finish(hidden_states)
            return prepared.finish(self.reading.take(self.name, hidden_states, prepared.read, True))
        if self.running_form == "rebuilt":
            return F.linear(hidden_states, self.rebuilt_weight(), self.bias)
        return self.store(hidden_states, self)

    def _prepare(self) -> Prepared | None:
        """Do once what can be kept; None where nothing can."""
        if not can_prepare(self):
            if self._prepared is not None:  # assigning in a trace would be a side effect of the graph
                self._prepared = None
            return None
        form = self.running_form
        if form == "rebuilt":
            weight = self.assembled_weight()
            prepared = Prepared(self, None, lambda states: F.linear(states, weight, self.bias))
        else:
            prepared = Prepared(self, *self.store.prepare(self, form))
        self._prepared = prepared
        return prepared  # not what is kept: another thread's eval() may have forgotten it

    def chained(self, hidden_states: Tensor) -> Tensor:
        """Through the stored tensors."""
        return self.store(hidden_states, self)

    def assembled_weight(self) -> Tensor:
        """``(out, in)``."""
        return join_slices(self.store(None, self), self.cut)

    def resize(self, rows: int) -> None:
        """Refused: the factors also serve other targets."""
        raise TargetError(
            f"{self.name} is assembled from factors that it shares with others and cannot change its number of rows: "
            "densify the model, resize it, compress again"
        )

    def _forget(self) -> None:
        """Also the steps, and what the store keeps for them."""
        super()._forget()
        self._prepared = None
        self.store.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_prepared": None}

    def extra_repr(self) -> str:
        """Sizes, store and form."""
        place = f"store={self.store.name}, bank={self.bank}, slices={self.first}…{self.first + self.cut.tiles - 1}"
        return f"{super().extra_repr()}, {place}"


def whole(leaf: nn.Module) -> Tensor:
    """A leaf's matrix, got by calling it."""
    return leaf() if _is_ours(leaf) else matrix_of(leaf)


def write(leaf: nn.Module, hidden_states: Tensor, bias: Tensor | None = None) -> Tensor:
    """``hidden_states @ matrix + bias``: from the leaf's outputs back to its inputs."""
    if _is_ours(leaf):
        return leaf(hidden_states, True, bias)
    return F.linear(hidden_states, matrix_of(leaf).t(), bias)


def _is_ours(leaf: nn.Module) -> bool:
    return type(leaf) is StoredMatrix and not hasattr(leaf.weight, "__tensor_flatten__")


def reads_rows(cut: Cut) -> bool:
    """Whether a slice's rows are its inputs."""
    return cut.rows == "in"
