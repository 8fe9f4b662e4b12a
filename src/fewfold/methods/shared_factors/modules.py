"""The store of shared factors, with one core a slice or a bank of cores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.methods.slices.layout import Cut
from fewfold.methods.slices.modules import SlicedLinear, SliceStore, reads_rows, whole, write
from fewfold.methods.slices.products import Step, bias_below, product, product_and_one, product_plus
from fewfold.seen import Seen
from fewfold.stored import StoredDtype, StoredMatrix
from fewfold.surgery.targets import Target


class FactorStore(SliceStore):
    """Factors by name and banks of cores between two of them.

    :param factors: by name, ``(rank, width)``; kept as a matrix of that shape.
    :param banks: by name: ``left`` and ``right`` (names of factors on the rows' and the columns' side of a slice),
        ``slices``, and ``size`` (cores in the bank; None where every slice has its own and nothing is mixed). Cores
        are kept as ``(size · left rank, right rank)``, mixes as ``(slices, size)``.
    """

    def __init__(
        self, factors: Mapping[str, tuple[int, int]], banks: Mapping[str, Mapping[str, Any]], stored: StoredDtype
    ) -> None:
        super().__init__()
        self.banks = {name: dict(bank) for name, bank in banks.items()}
        self.factors = nn.ModuleDict(
            {name: StoredMatrix(width, rank, stored) for name, (rank, width) in factors.items()}
        )
        self.cores, self.mixes = nn.ModuleDict(), nn.ModuleDict()
        for name, bank in self.banks.items():
            left, right = factors[bank["left"]][0], factors[bank["right"]][0]
            size = bank["size"] or bank["slices"]
            self.cores[name] = StoredMatrix(right, size * left, stored)
            if bank["size"] is not None:
                self.mixes[name] = StoredMatrix(bank["size"], bank["slices"], mix_form(stored))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh tensors: slices with the variance of a fresh ``nn.Linear`` of as many inputs as slices have rows.

        The variance of a slice's entry is ``var(U) · var(Σ) · var(V) · d₁ · d₂`` and, in a bank,
        ``var(Σ) = var(P) · var(C) · l``.
        """
        if any(parameter.is_meta for parameter in self.parameters()):
            return
        for name, bank in self.banks.items():
            shape = [whole(self.factors[bank[side]]).shape for side in ("left", "right")]
            for side, (rank, _) in zip(("left", "right"), shape, strict=True):
                whole(self.factors[bank[side]]).normal_(std=1.0 / math.sqrt(rank))
            whole(self.cores[name]).normal_(std=math.sqrt(1.0 / (3 * shape[0][1])))
            if name in self.mixes:
                whole(self.mixes[name]).normal_(std=1.0 / math.sqrt(bank["size"]))

    def check_member(self, target: Target, bank: str, first: int, cut: Cut) -> None:
        """Its slices must be in the bank, and as large as the factors are wide."""
        if bank not in self.banks:
            raise ValueError(f"the store has no bank {bank!r}; it has {', '.join(self.banks)}")
        shape = self.banks[bank]
        widths = tuple(self.factors[shape[side]].in_features for side in ("left", "right"))
        if cut.shape(target) != widths:
            raise ValueError(f"its slices are {cut.shape(target)}, those of bank {bank} {widths}")
        if not 0 <= first <= shape["slices"] - cut.tiles:
            raise ValueError(f"slices {first}…{first + cut.tiles - 1} are not in bank {bank} of {shape['slices']}")

    def places(self, bank: str) -> list[tuple[nn.Module, str, nn.Module]]:
        """Both factors, the cores and the mix."""
        modules, shape = self._modules, self.banks[bank]
        wanted = [("factors", shape["left"]), ("factors", shape["right"]), ("cores", bank)]
        if shape["size"] is not None:
            wanted.append(("mixes", bank))
        return [(modules[owner], name, modules[owner]._modules[name]) for owner, name in wanted]  # type: ignore[misc,union-attr]

    def core(self, member: SlicedLinear) -> Tensor:
        """The member's cores, mixed: ``(tiles, reading rank, writing rank)``."""
        bank = self.banks[member.bank]
        cores = whole(self.cores[member.bank]).unflatten(0, (-1, self._rank(bank["left"])))
        chosen = slice(member.first, member.first + member.cut.tiles)
        if member.bank in self.mixes:
            mix = whole(self.mixes[member.bank])[chosen]
            own = (mix @ cores.flatten(1)).unflatten(1, cores.shape[1:])
        else:
            own = cores[chosen]
        return own if reads_rows(member.cut) else own.transpose(1, 2)

    def read(self, hidden_states: Tensor, member: SlicedLinear) -> Tensor:
        """``x · U``; of an input in blocks, block by block: ``(…, tiles · rank)``."""
        factor, tiles = self._reader(member), member.cut.tiles
        if member.cut.tiled != "in":
            return factor(hidden_states)
        return _joined(factor(_in_blocks(hidden_states, tiles)))

    def finish(self, read: Tensor, member: SlicedLinear) -> Tensor:
        """One product with all cores, then the writing factor; blocks of the input are summed in between."""
        writer = self._writer(member)
        cored = F.linear(read, self._flat_core(member).t())
        if member.cut.tiled != "out":
            return write(writer, cored, member.bias)
        return _plus(_joined(write(writer, _in_blocks(cored, member.cut.tiles))), member.bias)

    def prepare(self, member: SlicedLinear, form: str) -> tuple[Step, Step]:
        """Cores mixed and, folded, multiplied with the writing factor once."""
        tiles, tiled, bias = member.cut.tiles, member.cut.tiled, member.bias
        reader, writer = self._laid(self._reader_name(member)), whole(self._writer(member)).detach()
        if tiled == "in":
            core = self._flat_core(member).contiguous()
            read, cored, written = product(reader), product(core), product_plus(writer, bias)
            return lambda states: _joined(read(_in_blocks(states, tiles))), lambda states: written(cored(states))
        ones = member.reading.biased and reader.device.type == "cpu"
        read = product_and_one(reader) if ones else product(reader)
        if form == "folded":
            folded = self.folded(member)
            return read, product(bias_below(folded, bias)) if ones else product_plus(folded, bias)
        core = bias_below(self._flat_core(member), None) if ones else self._flat_core(member).contiguous()
        cored = product(core)
        if tiled is None:
            written = product_plus(writer, bias)
            return read, lambda states: written(cored(states))
        written = product(writer)
        return read, lambda states: _plus(_joined(written(_in_blocks(cored(states), tiles))), bias)

    def _laid(self, factor: str) -> Tensor:
        """A factor as ``(width, rank)``, laid out once for all members and kept while it does not change."""
        matrix = whole(self.factors[factor])
        seen, kept = Seen([matrix]), self._kept.get(factor)
        if kept is None or kept[0] != seen:
            kept = self._kept[factor] = seen, matrix.detach().t().contiguous()
        return kept[1]

    def folded(self, member: SlicedLinear) -> Tensor:
        """Cores times the writing factor, ``(reading rank, out)``."""
        folded = write(self._writer(member), self.core(member))  # (tiles, reading rank, width)
        return folded.transpose(0, 1).flatten(1)

    def slices(self, member: SlicedLinear) -> Tensor:
        """``U · Σ_i · V``, ``(tiles, rows, columns)``."""
        core = self.core(member)
        left, right = self._reader(member), self._writer(member)
        found = whole(left).t() @ write(right, core)
        return found if reads_rows(member.cut) else found.transpose(1, 2)

    def macs(self, member: SlicedLinear) -> tuple[int, int, int | None]:
        """Of ``x · U``, of the rest, and of the rest when folded."""
        reader, writer = self._reader_shape(member), self._writer_shape(member)
        tiles, tiled = member.cut.tiles, member.cut.tiled
        read = reader[0] * member.in_features
        cored = reader[0] * writer[0] * tiles
        written = writer[0] * member.out_features
        return read, cored + written, None if tiled == "in" else reader[0] * member.out_features

    def _flat_core(self, member: SlicedLinear) -> Tensor:
        """All cores of a member as one matrix: inputs in blocks below each other, outputs side by side."""
        core = self.core(member)
        return core.flatten(0, 1) if member.cut.tiled == "in" else core.transpose(0, 1).flatten(1)

    def _rank(self, factor: str) -> int:
        leaf: Any = self.factors[factor]
        return getattr(leaf, "base_layer", leaf).out_features

    def _reader_name(self, member: SlicedLinear) -> str:
        return self.banks[member.bank]["left" if reads_rows(member.cut) else "right"]

    def _writer_name(self, member: SlicedLinear) -> str:
        return self.banks[member.bank]["right" if reads_rows(member.cut) else "left"]

    def sides(self, member: SlicedLinear) -> tuple[nn.Module, nn.Module]:
        """The factors that the member's inputs and outputs meet."""
        return self._reader(member), self._writer(member)

    def _reader(self, member: SlicedLinear) -> nn.Module:
        return self.factors[self._reader_name(member)]

    def _writer(self, member: SlicedLinear) -> nn.Module:
        return self.factors[self._writer_name(member)]

    def _reader_shape(self, member: SlicedLinear) -> tuple[int, int]:
        return self._rank(self._reader_name(member)), member.in_features

    def _writer_shape(self, member: SlicedLinear) -> tuple[int, int]:
        return self._rank(self._writer_name(member)), member.out_features


def _in_blocks(states: Tensor, tiles: int) -> Tensor:
    """The last dimension as ``(tiles, width)``."""
    return states.reshape(*states.shape[:-1], tiles, states.shape[-1] // tiles)


def _joined(states: Tensor) -> Tensor:
    """The last two dimensions as one."""
    return states.reshape(*states.shape[:-2], states.shape[-2] * states.shape[-1])


def _plus(states: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias to a tensor that nobody else holds."""
    return states if bias is None else states.add_(bias)


def mix_form(stored: StoredDtype) -> StoredDtype:
    """How a mix is kept: as the rest, but never in less than int8 (it is small, and every slice hangs on a row)."""
    return StoredDtype("int8") if stored.is_integer else stored
