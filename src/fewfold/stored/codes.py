"""A matrix kept as codes: small integers that point into codebooks of sub-vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewfold.linalg.chosen_rows import ChosenRows
from fewfold.linalg.gather_sum import GatherSum, gather_sum, partial_products
from fewfold.seen import Seen
from fewfold.stored.coded_rows import resize_codes
from fewfold.stored.coded_state import RANK, CodedState
from fewfold.stored.dtypes import StoredDtype
from fewfold.stored.modules import StoredMatrix
from fewfold.stored.stages import StageSpec, coded_bytes


class CodedMatrix(CodedState):
    """``diag(scales) · Σ stages``, ``(rows, columns)``; every row of a stage is a chain of sub-vectors.

    ``codes_S`` are ``(covered rows, positions)`` integers, codebooks leaves of ``(positions · words, width)``, or
    ``(words, width)`` where all positions share one. ``rank`` ``(rows,)`` is the order of importance, only there
    where a stage covers a part of the rows: row ``i`` finds its codes at index ``rank[i]`` then. On disk every array of
    integers is one stream of bits. ``attend`` keeps its look-ups as int32 from its first call on.

    :param scales: whether every row has a factor, kept as fp16.
    :param codebooks: by stage, a leaf that a store owns, or None: the matrix has its own.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        stages: Sequence[StageSpec],
        scales: bool = False,
        stored: StoredDtype | None = None,
        codebooks: Sequence[nn.Module | None] | None = None,
    ) -> None:
        super().__init__()
        if not stages:
            raise ValueError("a coded matrix needs at least one stage")
        borrowed = tuple(codebooks or [None] * len(stages))
        if len(borrowed) != len(stages):
            raise ValueError(f"{len(stages)} stages, but {len(borrowed)} codebooks; give one or None for each")
        self.rows, self.columns, self.stages = rows, columns, tuple(stages)
        self.stored = stored or StoredDtype()
        self._borrowed = borrowed  # in a tuple: their owner registers them
        self._sums: tuple[Seen, dict[Any, Any]] | None = None
        self.codebooks = nn.ModuleDict()
        for index, stage in enumerate(self.stages):
            leaf = borrowed[index]
            if leaf is None:
                self.codebooks[str(index)] = StoredMatrix(stage.width, stage.codebook_rows(columns), self.stored)
            shape = (stage.covered(rows), stage.positions(columns))
            self.register_buffer(f"codes_{index}", torch.zeros(shape, dtype=stage.code_dtype))
        partial = any(stage.rows is not None for stage in self.stages)
        self.register_buffer(RANK, torch.arange(rows, dtype=torch.int32) if partial else None)
        self.register_parameter("scales", nn.Parameter(torch.ones(rows)) if scales else None)

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.02, seed: int = 0) -> None:
        """Fresh codebooks of rows with standard deviation ``std``, and codes at random, every word used equally often.

        Torch's global generator draws the codebooks only.
        """
        codes = [self.codes(index) for index in range(len(self.stages))]
        if any(tensor.is_meta for tensor in codes):
            return
        generator = torch.Generator().manual_seed(seed)
        for index, (stage, own) in enumerate(zip(self.stages, codes, strict=True)):
            for position in range(own.shape[1]):
                own[:, position] = torch.randperm(own.shape[0], generator=generator) % stage.words
            if self._borrowed[index] is None:
                self._book(index).normal_(std=std / len(self.stages) ** 0.5)
        if self.scales is not None:
            self.scales.fill_(1.0)
        self._sums = None

    def leaves(self) -> Iterator[nn.Module]:
        """The codebooks' leaves, also those that a store owns."""
        own = self._modules["codebooks"]
        for index, leaf in enumerate(self._borrowed):
            yield own[str(index)] if leaf is None else leaf  # type: ignore[index]

    def forward(self, input: Tensor | None = None) -> Tensor:
        """Ids to rows, inputs to products with all rows, nothing to the matrix; called, so that hooks fire."""
        if input is None:
            return self.matrix()
        return self.attend(input) if input.is_floating_point() else self.look_up(input)

    def matrix(self, scaled: bool = True) -> Tensor:
        """The dense ``(rows, columns)``, with or without the rows' factors."""
        total: Tensor | None = None
        for index, stage in enumerate(self.stages):
            part = self._all_words(index)
            if stage.rows is not None:
                part = F.embedding(self._place(stage), F.pad(part, (0, 0, 0, 1)))
            total = part if total is None else total + part
        assert total is not None
        return total if self.scales is None or not scaled else total * self.scales[:, None]

    def unscaled(self) -> Tensor:
        """The dense matrix without the rows' factors; where its words reach beyond the last column, so does it."""
        if len(self.stages) > 1 or self.stages[0].rows is not None:
            return self.matrix(scaled=False)
        return F.embedding(self._numbered(0, self.codes(0)), self._book(0)).flatten(-2)

    def look_up(self, ids: Tensor) -> Tensor:
        """Ids of any shape to ``(…, columns)``: only their codes are read."""
        total: Tensor | None = None
        for index, stage in enumerate(self.stages):
            codes = self.codes(index)
            if not len(codes):
                continue
            if stage.rows is None:
                part = self.words(index, F.embedding(ids, codes))
            else:
                place = F.embedding(ids, self.order()[:, None])[..., 0].long()
                found = F.embedding(place.clamp(max=len(codes) - 1), codes)
                part = self.words(index, found) * (place < len(codes))[..., None]
            total = part if total is None else total + part
        if total is None:
            total = self._book(0).new_zeros(*ids.shape, self.columns)
        return total if self.scales is None else total * F.embedding(ids, self.scales[:, None])

    def attend(self, hidden_states: Tensor) -> Tensor:
        """``(…, columns)`` to ``(…, rows)``: the product with the transposed matrix, by partial dot products.

        bf16 and fp16 are summed in fp32. The result is a view whose last dimension is not the densest.
        """
        lead, dtype = hidden_states.shape[:-1], hidden_states.dtype
        states = hidden_states.reshape(-1, self.columns)
        states = states.float() if dtype in (torch.float16, torch.bfloat16) else states
        groups, tracing = self._groups(), torch.compiler.is_compiling()
        sums = [] if tracing else self._planned(groups)
        total: Tensor | None = None
        for number, group in enumerate(groups):
            stage = self.stages[group[0]]
            if stage.covered(self.rows) == 0:
                continue
            found = [partial_products(states, self.cube(i, states.dtype), self.positions(i)) for i in group]
            products = found[0] if len(found) == 1 else torch.cat(found)
            part = gather_sum(self._indices(group), products) if tracing else sums[number](products)
            if stage.rows is not None:
                part = F.embedding(self._place(stage), F.pad(part, (0, 0, 0, 1)))
            total = part if total is None else total + part
        if total is None:
            total = states.new_zeros(self.rows, states.shape[0])
        if self.scales is not None:
            total = total * self.scales.to(total.dtype)[:, None]
        return total.to(dtype).t().reshape(*lead, self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of partial products, one input."""
        return sum(stage.words * stage.width * self.positions(index) for index, stage in enumerate(self.stages))

    @property
    def gathers(self) -> int:
        """Look-ups that are summed, one input."""
        return sum(stage.covered(self.rows) * self.positions(index) for index, stage in enumerate(self.stages))

    @property
    def bytes(self) -> int:
        """Bytes on disk, without borrowed codebooks, in the present dtype of the numbers."""
        own = [*self.codebooks.parameters(), *([] if self.scales is None else [self.scales])]
        size = own[0].element_size() if own else 4
        borrowed = [leaf is not None for leaf in self._borrowed]
        return coded_bytes(self.rows, self.columns, self.stages, self.scales is not None, self.stored, size, borrowed)

    def resize_(self, rows: int) -> None:
        """Cut rows off, or add some whose codes differ from those of all others; kept rows stay bit-equal.

        New rows stand as near to the mean row as the words allow, or are drawn where words are used equally often, as
        those of slim tables are. They are the least important; stages that cover only some rows keep those of them that
        stay.
        """
        resize_codes(self, rows)
        self._sums = None

    def _leaf(self, index: int) -> nn.Module:
        leaf = self._borrowed[index]
        return self.codebooks[str(index)] if leaf is None else leaf

    def _book(self, index: int) -> Tensor:
        """A stage's words, one below the other, got by calling their leaf."""
        leaf = self._leaf(index)
        if type(leaf) is StoredMatrix and not hasattr(leaf.weight, "__tensor_flatten__"):
            return leaf()
        from fewfold.methods.factors import matrix_of

        return matrix_of(leaf)

    def cube(self, index: int, dtype: torch.dtype) -> Tensor:
        """``(positions or 1, words, width)``."""
        return self._book(index).unflatten(0, (-1, self.stages[index].words)).to(dtype)

    def _numbered(self, index: int, codes: Tensor) -> Tensor:
        """Codes as numbers of words among those of all positions: int64, in a traced graph half as long."""
        kind = torch.int32 if torch.compiler.is_exporting() else torch.int64
        stage, codes = self.stages[index], codes.to(kind)
        if stage.shared:
            return codes
        return codes + torch.arange(codes.shape[-1], dtype=kind, device=codes.device) * stage.words

    def words(self, index: int, codes: Tensor) -> Tensor:
        """``(…, positions)`` codes to ``(…, columns)``."""
        return self._looked_up(index, codes, self._book(index))

    def _looked_up(self, index: int, codes: Tensor, book: Tensor) -> Tensor:
        return F.embedding(self._numbered(index, codes), book).flatten(-2)[..., : self.columns]

    def _all_words(self, index: int) -> Tensor:
        """The words of a stage's codes, ``(covered rows, columns)``."""
        book = self._book(index)
        learns = book.requires_grad and torch.is_grad_enabled() and book.device.type == "cpu"
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if not learns or traced or type(book) not in (Tensor, nn.Parameter):
            return self._looked_up(index, self.codes(index), book)
        chosen: ChosenRows = self._plan(
            index, lambda: ChosenRows(self._numbered(index, self.codes(index)), book.shape[0])
        )
        return chosen(book).flatten(-2)[..., : self.columns]

    def _place(self, stage: StageSpec) -> Tensor:
        """Where each row stands among a stage's codes; rows outside of it stand right behind the last."""
        return self.order().long().clamp(max=stage.covered(self.rows))

    def _groups(self) -> list[list[int]]:
        """Stages that are summed at once: those that cover every row together, each other one alone."""
        full = [index for index, stage in enumerate(self.stages) if stage.rows is None]
        return [*([full] if full else []), *([i] for i in range(len(self.stages)) if i not in full)]

    def _indices(self, group: list[int]) -> Tensor:
        """``(covered rows, positions of all stages in the group)`` int64 numbers of partial products."""
        parts, first = [], 0
        for index in group:
            count = self.positions(index)
            codes = self.codes(index).long()
            offsets = torch.arange(count, device=codes.device) * self.stages[index].words
            parts.append(codes + offsets + first)
            first += count * self.stages[index].words
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def book(self, index: int) -> Tensor:
        """A stage's words, ``(positions · words, width)``, or ``(words, width)`` where positions share them."""
        return self._book(index)

    def plan(self) -> GatherSum:
        """Which partial products every row sums, for matrices whose stages all cover every row."""
        groups = self._groups()
        if len(groups) != 1:
            raise ValueError("stages that cover only some rows are summed by themselves: there is no single plan")
        return self._planned(groups)[0]

    def _planned(self, groups: list[list[int]]) -> list[GatherSum]:
        """What is summed."""
        sizes = [sum(self.positions(i) * self.stages[i].words for i in group) for group in groups]
        return self._plan(  # type: ignore[no-any-return]
            "sums", lambda: [GatherSum(self._indices(group), size) for group, size in zip(groups, sizes, strict=True)]
        )

    def _plan(self, name: Any, make: Callable[[], Any]) -> Any:
        """What follows from the codes alone, kept for as long as none of them changes."""
        key = Seen(self._buffers[f"codes_{index}"] for index in range(len(self.stages)))
        kept = self._sums  # looked at once: another thread may forget it at any time
        if kept is None or kept[0] != key:
            kept = self._sums = (key, {})
        if name not in kept[1]:
            kept[1][name] = make()
        return kept[1][name]
