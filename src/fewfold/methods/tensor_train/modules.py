"""The store of tensor trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.linalg.tensor_train import train_ranks
from fewfold.methods.shared_factors.modules import mix_form
from fewfold.methods.slices.layout import Cut
from fewfold.methods.slices.modules import SlicedLinear, SliceStore, reads_rows, whole
from fewfold.methods.slices.products import Step
from fewfold.stored import StoredDtype, StoredMatrix
from fewfold.surgery.targets import Target


class TrainStore(SliceStore):
    """One bank of trains: heads ``(heads, i₁·j₁·r₁)``, an optional mix, shared cores ``(r, i·j·r')``.

    :param bank: its name.
    :param rows: factors of a slice's rows.
    :param columns: factors of its columns.
    """

    def __init__(
        self,
        bank: str,
        rows: Sequence[int],
        columns: Sequence[int],
        rank: int,
        slices: int,
        size: int | None,
        stored: StoredDtype,
    ) -> None:
        super().__init__()
        self.bank, self.rows, self.columns, self.count = bank, list(rows), list(columns), slices
        self.ranks = [*train_ranks(rows, columns, rank, slices), 1]
        self.heads = StoredMatrix(self.rows[0] * self.columns[0] * self.ranks[0], size or slices, stored)
        self.mix = None if size is None else StoredMatrix(size, slices, mix_form(stored))
        self.cores = nn.ModuleList(
            StoredMatrix(self.rows[m] * self.columns[m] * self.ranks[m], self.ranks[m - 1], stored)
            for m in range(1, len(self.rows))
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh tensors: slices with the variance of a fresh ``nn.Linear`` of as many inputs as slices have rows."""
        if any(parameter.is_meta for parameter in self.parameters()):
            return
        for rank, core in zip(self.ranks, self.cores, strict=False):
            whole(core).normal_(std=1.0 / math.sqrt(rank))
        whole(self.heads).normal_(std=math.sqrt(1.0 / (3 * prod(self.rows))))
        if self.mix is not None:
            whole(self.mix).normal_(std=1.0 / math.sqrt(self.mix.in_features))

    def check_member(self, target: Target, bank: str, first: int, cut: Cut) -> None:
        """Its slices must be in the bank and of its shape."""
        shape = (prod(self.rows), prod(self.columns))
        if bank != self.bank or cut.shape(target) != shape:
            raise ValueError(f"its slices are {cut.shape(target)} in bank {bank!r}; this is {self.bank!r} of {shape}")
        if not 0 <= first <= self.count - cut.tiles:
            raise ValueError(f"slices {first}…{first + cut.tiles - 1} are not in a bank of {self.count}")

    def places(self, bank: str) -> list[tuple[nn.Module, str, nn.Module]]:
        """Everything: trains share all cores."""
        found: list[tuple[nn.Module, str, nn.Module]] = [(self, "heads", self.heads)]
        found += [(self.cores, str(place), core) for place, core in enumerate(self.cores)]
        return found if self.mix is None else [*found, (self, "mix", self.mix)]

    def own_heads(self, member: SlicedLinear) -> Tensor:
        """The member's first cores, ``(tiles, i₁, j₁, r₁)``."""
        heads = whole(self.heads)
        chosen = slice(member.first, member.first + member.cut.tiles)
        own = heads[chosen] if self.mix is None else whole(self.mix)[chosen] @ heads
        return own.unflatten(1, (self.rows[0], self.columns[0], self.ranks[0]))

    def _sides(self, member: SlicedLinear) -> tuple[list[int], list[int]]:
        """Factors of a slice's inputs and of its outputs."""
        return (self.rows, self.columns) if reads_rows(member.cut) else (self.columns, self.rows)

    def _core(self, place: int, member: SlicedLinear) -> Tensor:
        """A shared core as ``(in · r', r · out)``."""
        core = whole(self.cores[place - 1]).unflatten(1, (self.rows[place], self.columns[place], self.ranks[place]))
        if not reads_rows(member.cut):
            core = core.transpose(1, 2)
        return core.permute(1, 3, 0, 2).flatten(2, 3).flatten(0, 1)

    def read(self, hidden_states: Tensor, member: SlicedLinear) -> Tensor:
        """Through all shared cores: ``(…, rest of the outputs, tiles · n₁ · r₁)``."""
        inputs, outputs = self._sides(member)
        tiles = member.cut.tiles if member.cut.tiled == "in" else 1
        lead = hidden_states.shape[:-1]
        done = 1
        states = hidden_states.reshape(-1, prod(inputs[:-1]), inputs[-1], done).transpose(2, 3)
        for place in range(len(inputs) - 1, 0, -1):  # states: (·, inputs before, outputs done, input · rank)
            states = states @ self._core(place, member)
            states = states.unflatten(-1, (self.ranks[place - 1], outputs[place]))
            states = states.permute(0, 1, 3, 4, 2)  # (·, before, rank, output, done)
            done *= outputs[place]
            states = states.reshape(states.shape[0], prod(inputs[: place - 1]), inputs[place - 1], -1, done)
            states = states.permute(0, 1, 4, 2, 3).flatten(3)
        states = states.reshape(-1, tiles, done, states.shape[-1]).transpose(1, 2).flatten(2)
        return states.reshape(*lead, done, -1)

    def finish(self, read: Tensor, member: SlicedLinear) -> Tensor:
        """One product with all first cores of the member."""
        return self._finish(read, member, self._flat_heads(member))

    def prepare(self, member: SlicedLinear, form: str) -> tuple[Step, Step]:
        """First cores mixed once."""
        heads = self._flat_heads(member)
        return lambda states: self.read(states, member), lambda read: self._finish(read, member, heads)

    def _finish(self, read: Tensor, member: SlicedLinear, heads: Tensor) -> Tensor:
        cored = F.linear(read, heads)
        _, outputs = self._sides(member)
        tiles = member.cut.tiles if member.cut.tiled == "out" else 1
        cored = cored.unflatten(-1, (tiles, outputs[0])).movedim(-3, -1).flatten(-3)
        return cored if member.bias is None else cored + member.bias

    def _flat_heads(self, member: SlicedLinear) -> Tensor:
        """``(out · tiles or out, tiles · in · rank or in · rank)``."""
        heads = self.own_heads(member)
        if not reads_rows(member.cut):
            heads = heads.transpose(1, 2)
        heads = heads.permute(0, 2, 1, 3).flatten(2)  # (tiles, out, in · rank)
        if member.cut.tiled == "in":
            return heads.transpose(0, 1).flatten(1)
        return heads.flatten(0, 1)

    def slices(self, member: SlicedLinear) -> Tensor:
        """All cores multiplied, ``(tiles, rows, columns)``."""
        states = self.own_heads(member)
        for place in range(1, len(self.rows)):
            core = whole(self.cores[place - 1]).unflatten(1, (self.rows[place], self.columns[place], self.ranks[place]))
            states = torch.einsum("tijr,rklq->tikjlq", states, core).flatten(3, 4).flatten(1, 2)
        return states[..., 0]

    def macs(self, member: SlicedLinear) -> tuple[int, int, int | None]:
        """Of the shared cores, and of the first ones."""
        inputs, outputs = self._sides(member)
        tiles, done, read = member.cut.tiles, 1, 0
        for place in range(len(inputs) - 1, 0, -1):
            ranks = self.ranks[place] * self.ranks[place - 1]
            read += prod(inputs[:place]) * done * inputs[place] * outputs[place] * ranks
            done *= outputs[place]
        head = done * inputs[0] * self.ranks[0] * outputs[0] * tiles
        return read * (tiles if member.cut.tiled == "in" else 1), head, None
