"""The integers of a coded matrix: whole numbers at work, streams of bits on disk, checked on the way back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.errors import CheckpointError, FewfoldWarning
from fewfold.stored.kept import Kept
from fewfold.stored.stages import StageSpec, integer_bits, pack_integers, packed_integers_length, unpack_integers

RANK = "rank"


class CodedState(Kept, nn.Module):
    """Buffers ``codes_S`` and ``rank`` in both forms, and the fp16 form of ``scales``.

    ``distinct`` says that no two rows should have equal codes: loading such a matrix warns, once, of those that do.
    """

    rows: int
    columns: int
    stages: tuple[StageSpec, ...]
    rank: Tensor | None
    scales: nn.Parameter | None
    is_packed = False
    distinct = False
    _sums: Any = None

    def positions(self, index: int) -> int:
        """Sub-vectors of a row in one stage."""
        return self.stages[index].positions(self.columns)

    def codes(self, index: int) -> Tensor:
        """A stage's ``(covered rows, positions)`` codes in their working dtype."""
        codes: Any = self._buffers[f"codes_{index}"]
        if not self.is_packed:
            return codes
        stage = self.stages[index]
        shape = (stage.covered(self.rows), self.positions(index))
        return unpack_integers(codes, stage.bits, shape).to(stage.code_dtype)

    def order(self) -> Tensor:
        """The rows' places in the order of importance, int32."""
        assert self.rank is not None
        return unpack_integers(self.rank, integer_bits(self.rows), (self.rows,)) if self.is_packed else self.rank

    @torch.no_grad()
    def set_codes_(self, codes: Sequence[Tensor], rank: Tensor | None = None) -> None:
        """Take codes (and the order of importance) that a fit chose.

        :raises ValueError: naming what has another shape, points outside of its pool or is missing.
        """
        values = {f"codes_{index}": tensor for index, tensor in enumerate(codes)}
        if rank is not None:
            values[RANK] = rank
        if set(values) != {name for name, _, _ in self._integers()}:
            raise ValueError(
                f"{len(self.stages)} stages take as many codes, and a rank where one covers only some rows"
            )
        for name, shape, count in self._integers():
            if tuple(values[name].shape) != shape:
                raise ValueError(f"{name} has shape {tuple(values[name].shape)}; it must be {shape}")
            problem = _problem(name, values[name], count)
            if problem:
                raise ValueError(problem)
        self.unpack_()
        for name, value in values.items():
            held: Any = self._buffers[name]
            self._buffers[name] = value.to(held, copy=True).contiguous()
        self._sums = None

    @torch.no_grad()
    def take_(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the ``codes_S``, ``rank`` and ``scales`` that a fit chose, where there are any."""
        codes = [tensors[name] for name, _, _ in self._integers() if name != RANK and name in tensors]
        if codes:
            self.set_codes_(codes, tensors.get(RANK))
        if self.scales is not None and "scales" in tensors:
            self.scales.copy_(tensors["scales"])
        self.round_()

    def pack_(self) -> None:
        """Hold the streams of bits; whatever computes unpacks them first."""
        if not self.is_packed:
            for name, _, count in self._integers():
                values: Any = self._buffers[name]
                self._buffers[name] = pack_integers(values, integer_bits(count))
            self.is_packed, self._sums = True, None

    def unpack_(self, name: str = "") -> None:
        """Hold whole numbers.

        :raises CheckpointError: naming the tensor that points outside of its pool.
        """
        if self.is_packed:
            fresh = {own: self._unpacked(own, f"{name}.{own}" if name else own) for own, _, _ in self._integers()}
            self._buffers.update(fresh)
            self.is_packed, self._sums = False, None

    def settle_(self, dtype: torch.dtype) -> None:
        """Streams of bits are bytes again, scales of the products' dtype."""
        if self.is_packed:
            for name, _, _ in self._integers():
                values: Any = self._buffers[name]
                self._buffers[name] = values.to(torch.uint8)
        if self.scales is not None and self.scales.dtype != dtype:
            self.scales.data = self.scales.data.to(dtype)

    def round_(self) -> None:
        """Put the scales on the grid of fp16."""
        if self.scales is not None and not self.scales.is_meta:
            with torch.no_grad():
                self.scales.copy_(self.scales.to(torch.float16))

    def _integers(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Name, working shape and number of values of every array of integers."""
        for index, stage in enumerate(self.stages):
            yield f"codes_{index}", (stage.covered(self.rows), self.positions(index)), stage.words
        if any(stage.rows is not None for stage in self.stages):
            yield RANK, (self.rows,), self.rows

    def _dtype(self, name: str) -> torch.dtype:
        return torch.int32 if name == RANK else self.stages[int(name.removeprefix("codes_"))].code_dtype

    def _unpacked(self, name: str, full_name: str, packed: Tensor | None = None) -> Tensor:
        """Whole numbers of a stream, checked."""
        shape, count = next((shape, count) for own, shape, count in self._integers() if own == name)
        stream: Any = self._buffers[name] if packed is None else packed
        length = packed_integers_length(_size(shape), integer_bits(count))
        if stream.dtype != torch.uint8 or tuple(stream.shape) != (length,):
            raise CheckpointError(
                f"{full_name} is {stream.dtype} {tuple(stream.shape)}; codes of {shape} at {integer_bits(count)} bits "
                f"are ({length},) bytes: weight file and config.json do not belong together"
            )
        values = unpack_integers(stream, integer_bits(count), shape)
        problem = _problem(full_name, values, count)
        if problem:
            raise CheckpointError(f"{problem}; the checkpoint is damaged, copy or download it again")
        equal = _equal_rows(values) if self.distinct and name != RANK else 0
        if equal:
            self.distinct = False
            warnings.warn(
                f"{full_name}: {equal} of {len(values)} rows have the codes of an earlier row and will always equal "
                "it; codes that are drawn today all differ, so train the model anew where these words matter",
                FewfoldWarning,
                stacklevel=2,
            )
        return values.to(self._dtype(name))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._sums = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sums": None}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.is_packed:
            for name, _, count in self._integers():
                destination[prefix + name] = pack_integers(destination[prefix + name], integer_bits(count))
        scales = destination.get(prefix + "scales")
        if scales is not None and not scales.is_meta:
            destination[prefix + "scales"] = scales.to(torch.float16)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, _, _ in self._integers():
            packed = state_dict.get(prefix + name)
            if packed is not None:
                values = self._unpacked(name, prefix + name, packed)
                state_dict[prefix + name] = packed if self.is_packed else values
        self._sums = None
        super()._load_from_state_dict(state_dict, prefix, *args)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _equal_rows(values: Tensor) -> int:
    """How many of ``(rows, positions)`` codes repeat an earlier row, found by a 64-bit sum of each."""
    if values.is_meta:
        return 0
    factors = torch.randint(2**62, values.shape[1:], generator=torch.Generator().manual_seed(0)).to(values.device)
    sums = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    for own, factor in zip(values.T, factors, strict=True):
        sums += own.long() * factor
    return len(values) - len(sums.unique())


def _problem(name: str, values: Tensor, count: int) -> str | None:
    """What is wrong with codes below ``count``, or with an order of so many rows."""
    if values.is_meta or not values.numel():
        return None
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        pool = f"rows 0…{count - 1}" if name.endswith(RANK) else f"{count} words"
        return f"{name} holds {low if low < 0 else high}, a code outside the pool of {pool}"
    if name.endswith(RANK) and int(torch.bincount(values.flatten().long(), minlength=count).max()) > 1:
        return f"{name} gives one place to several rows; an order of importance names each place once"
    return None
