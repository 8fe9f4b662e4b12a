"""The module that stands for one target, and the base of the stores that it is assembled from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.assembled import AssembledLinear, must_be_called
from fewfold.errors import TargetError
from fewfold.methods.factors import matrix_of
from fewfold.methods.slices.layout import Cut, Side
from fewfold.methods.slices.reading import Reading
from fewfold.store import Store
from fewfold.stored import StoredMatrix
from fewfold.surgery.targets import Target


class SliceStore(Store):
    """Owns the tensors that the slices of a group are assembled from."""

    def __init__(self) -> None:
        super().__init__()
        self._readings: dict[tuple[Any, ...], Reading] = {}

    def join(self, member: SlicedLinear, family: str) -> Reading:
        """The reading that a new member shares with the rest of its family."""
        key = (family, member.bank, member.cut.rows, member.cut.tiled == "in", member.in_features)
        reading = self._readings.setdefault(key, Reading())
        reading.join(member.name)
        return reading

    def check_member(self, target: Target, bank: str, first: int, cut: Cut) -> None:
        """Refuse a record that does not fit this store.

        :raises ValueError: saying what does not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} holds no banks")

    def leaves(self, bank: str) -> list[nn.Module]:
        """The children that hold the tensors of a bank's slices."""
        raise NotImplementedError(f"{type(self).__name__} holds no banks")

    def read(self, hidden_states: Tensor, member: SlicedLinear) -> Tensor:
        """``(…, in)`` to what all slices with this input begin with."""
        raise NotImplementedError(f"{type(self).__name__} does not read")

    def finish(self, read: Tensor, member: SlicedLinear) -> Tensor:
        """From what was read to ``(…, out)``, bias included."""
        raise NotImplementedError(f"{type(self).__name__} does not write")

    def fold(self, member: SlicedLinear) -> Tensor | None:
        """The map from what was read to the output as one matrix ``(out, read)``; None where it saves nothing."""
        return None

    def slices(self, member: SlicedLinear) -> Tensor:
        """The member's slices ``(tiles, rows, columns)``."""
        raise NotImplementedError(f"{type(self).__name__} assembles no slices")

    def macs(self, member: SlicedLinear) -> tuple[int, int, int | None]:
        """Multiply-accumulates a token: of the reading, of what follows, and of what follows when folded."""
        raise NotImplementedError(f"{type(self).__name__} counts nothing")

    def forward(self, hidden_states: Tensor | None, member: SlicedLinear, form: str = "chained") -> Tensor:
        """``(…, in)`` to ``(…, out)`` through the stored tensors; without input, the member's slices."""
        if hidden_states is None:
            return self.slices(member)
        read = member.reading.take(member.name, hidden_states, lambda states: self.read(states, member))
        if form == "folded":
            return F.linear(read, member.kept("folded", lambda: self.fold(member)), member.bias)
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
        self._kept: dict[str, tuple[Any, Tensor]] = {}
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.reading = store.join(self, family)

    @property
    def store(self) -> SliceStore:
        """What owns its tensors."""
        return self._store[0]

    def leaves(self) -> Iterator[nn.Module]:
        """The store's children that its weight is assembled from."""
        yield from self.store.leaves(self.bank)

    def kept(self, what: str, make: Callable[[], Tensor | None]) -> Tensor:
        """``make()``, kept between calls while no gradient is asked for and no stored tensor changes."""
        key = self.assembly_key()
        if key is None:
            self._kept.clear()
            made = make()
            assert made is not None
            return made
        held = self._kept.get(what)
        if held is None or held[0] != key:
            made = make()
            assert made is not None
            held = self._kept[what] = (key, made)
        return held[1]

    def chain_macs(self) -> int:
        """The cheapest chain; a reading that several modules share is divided between them."""
        read, rest, folded = self.store.macs(self)
        shared = -(-read // max(1, len(self.reading.members)))
        return shared + (rest if folded is None or not self._may_fold() else min(rest, folded))

    def _may_fold(self) -> bool:
        return self.form in ("auto", "folded") and not torch.is_grad_enabled()

    @property
    def running_form(self) -> Literal["chained", "folded", "rebuilt"]:
        """As set, else the form with the fewest multiply-accumulates; folded only where it can be kept."""
        if self.form == "chained" or any(must_be_called(leaf) for leaf in self.leaves()):
            return "chained"
        if self.form == "rebuilt":
            return "rebuilt"
        _, rest, folded = self.store.macs(self)
        can_fold = folded is not None and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if self.form == "folded":
            return "folded" if can_fold else "chained"
        if self.chain_macs() >= self.dense_macs():
            return "rebuilt"
        return "folded" if can_fold and folded is not None and folded <= rest else "chained"

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        form = self.running_form
        if form == "rebuilt":
            return F.linear(hidden_states, self.rebuilt_weight(), self.bias)
        return self.store(hidden_states, self, form)

    def chained(self, hidden_states: Tensor) -> Tensor:
        """Through the stored tensors."""
        return self.store(hidden_states, self)

    def assembled_weight(self) -> Tensor:
        """``(out, in)``."""
        slices = self.store(None, self)
        blocks = slices if self.cut.rows == "out" else slices.transpose(1, 2)
        if self.cut.tiles == 1:
            return blocks[0]
        return torch.cat(list(blocks), dim=1 if self.cut.tiled == "in" else 0)

    def resize(self, rows: int) -> None:
        """Refused: the factors also serve other targets."""
        raise TargetError(
            f"{self.name} is assembled from factors that it shares with others and cannot change its number of rows: "
            "densify the model, resize it, compress again"
        )

    def train(self, mode: bool = True) -> Any:
        """As every module's; what was kept is forgotten."""
        self._kept.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": {}}

    def extra_repr(self) -> str:
        """Sizes, store and form."""
        place = f"store={self.store.name}, bank={self.bank}, slices={self.first}…{self.first + self.cut.tiles - 1}"
        return f"{super().extra_repr()}, {place}"


def whole(leaf: nn.Module) -> Tensor:
    """A leaf's matrix, got by calling it."""
    return leaf() if _is_ours(leaf) else matrix_of(leaf)


def write(leaf: nn.Module, hidden_states: Tensor) -> Tensor:
    """``hidden_states @ matrix``: from the leaf's outputs back to its inputs."""
    return leaf(hidden_states, True) if _is_ours(leaf) else hidden_states @ matrix_of(leaf)


def _is_ours(leaf: nn.Module) -> bool:
    return type(leaf) is StoredMatrix and not hasattr(leaf.weight, "__tensor_flatten__")


def reads_rows(cut: Cut) -> bool:
    """Whether a slice's rows are its inputs."""
    side: Side = cut.rows
    return side == "in"
