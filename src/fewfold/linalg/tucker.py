"""Tucker decompositions of stacks of matrices that share factors: HOSVD, then HOOI, from Gram matrices.

No unfolding is ever decomposed: every factor comes from a Gram matrix that is accumulated slice by slice (products in
fp32, sums in fp64). One function serves the whole family: matrices that share both factors (``size=None``, which is
the three-core tensor train), a bank of ``size`` cores that are mixed (Tucker), and several stacks of different shapes
that share one side.

De Lathauwer, De Moor, Vandewalle: On the best rank-1 and rank-(R1, …, RN) approximation of higher-order tensors
(SIAM J. Matrix Anal. Appl. 2000), algorithm 4.2 (HOOI); Vannieuwenhoven, Vandebril, Meerbergen: A new truncation
strategy for the higher-order singular value decomposition (SIAM J. Sci. Comput. 2012) for the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewfold.linalg.spectra import eigh_descending
from fewfold.progress import track

CHUNK = 2**24  # numbers of a stack that are looked at together
SHOWN_FROM = 2**23  # numbers of all stacks, from which progress is shown


@dataclass(frozen=True)
class Stack:
    """Matrices that share their factors: ``W_i ≈ left · (Σ_j mix_ij core_j) · rightᵀ``.

    :param slices: ``(rows, columns)`` each, fp32; views are fine, nothing is copied.
    :param left: name of the factor on the rows' side.
    :param right: name of the factor on the columns' side.
    :param size: cores in the bank; None keeps one core a slice and no mix.
    """

    slices: Sequence[Tensor]
    left: str
    right: str
    size: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        rows, columns = self.slices[0].shape
        return rows, columns


@dataclass(frozen=True)
class Decomposition:
    """Orthonormal factors and the cores that are left.

    :param factors: by name, ``(width, rank)``, columns orthonormal.
    :param cores: one a stack, ``(size or slices, left rank, right rank)``.
    :param mixes: one a stack, ``(slices, size)`` with orthonormal columns, or None.
    :param energy: squared norm of all slices.
    :param history: relative error after the start and after each sweep.
    """

    factors: dict[str, Tensor]
    cores: list[Tensor]
    mixes: list[Tensor | None]
    energy: float
    history: list[float]

    @property
    def error(self) -> float:
        """Relative error, ``‖W − Ŵ‖ / ‖W‖``: what the norm of the cores leaves (the factors are orthonormal)."""
        return self.history[-1]


def decompose(
    stacks: Sequence[Stack],
    ranks: Mapping[str, int],
    *,
    sweeps: int = 4,
    tolerance: float = 1e-4,
) -> Decomposition:
    """Decompose stacks whose slices share factors by name.

    :param ranks: of each factor by name, at most its width.
    :param sweeps: alternating sweeps after the start; 0 gives the (sequentially truncated) HOSVD.
    :param tolerance: a sweep that lowers the relative error by less ends them.
    :return: deterministic: equal input gives equal output.
    :raises ValueError: if widths, ranks or bank sizes do not fit.
    """
    widths = _widths(stacks)
    _check(stacks, ranks, widths)
    energy = sum(float(part.square().sum(dtype=torch.float64)) for stack in stacks for part in stack.slices)
    state = _State(stacks, dict(ranks), widths)
    state.start()
    history = [_relative_error(energy, state.cores_energy())]
    steps = range(sweeps)
    large = sum(part.numel() for stack in stacks for part in stack.slices) > SHOWN_FROM
    for _ in track(steps, "alternating sweeps") if large and sweeps else steps:
        state.sweep()
        history.append(_relative_error(energy, state.cores_energy()))
        if history[-2] - history[-1] < tolerance:
            break
    return Decomposition(state.factors, state.cores, state.mixes, energy, history)


def rebuild(decomposition: Decomposition, stack: Stack, number: int = 0) -> Tensor:
    """The slices ``(n, rows, columns)``, float64, that the decomposition of stack ``number`` stands for."""
    factors, mix = decomposition.factors, decomposition.mixes[number]
    cores = decomposition.cores[number].to(factors[stack.left].dtype)
    if mix is not None:
        cores = torch.tensordot(mix, cores, dims=1)
    return factors[stack.left] @ cores @ factors[stack.right].t()


def slice_gram(slices: Sequence[Tensor]) -> Tensor:
    """Inner products of all pairs of slices, ``(n, n)`` float64."""
    rows, columns = slices[0].shape
    gram = torch.zeros(len(slices), len(slices), dtype=torch.float64)
    step = max(1, CHUNK // (len(slices) * columns))
    for first in range(0, rows, step):
        chunk = torch.stack([part[first : first + step].reshape(-1) for part in slices])
        gram += (chunk @ chunk.t()).double()
    return gram


def side_gram(slices: Sequence[Tensor], side: str) -> Tensor:
    """``Σ W Wᵀ`` (``side="left"``) or ``Σ Wᵀ W`` (``"right"``), float64."""
    width = slices[0].shape[0 if side == "left" else 1]
    gram = torch.zeros(width, width, dtype=torch.float64)
    for part in slices:
        gram += (part @ part.t() if side == "left" else part.t() @ part).double()
    return gram


def mixed(mix: Tensor, slices: Sequence[Tensor]) -> Tensor:
    """``Σ_i mix_ij W_i`` for every j: ``(size, rows, columns)``."""
    rows, columns = slices[0].shape
    result = torch.empty(mix.shape[1], rows, columns, dtype=slices[0].dtype)
    step = max(1, CHUNK // (len(slices) * columns))
    transposed = mix.t().to(slices[0].dtype)
    for first in range(0, rows, step):
        chunk = torch.stack([part[first : first + step].reshape(-1) for part in slices])
        result[:, first : first + step] = (transposed @ chunk).view(mix.shape[1], -1, columns)
    return result


class _State:
    """Factors, mixes and cores while they alternate."""

    def __init__(self, stacks: Sequence[Stack], ranks: dict[str, int], widths: Mapping[str, int]) -> None:
        self.stacks, self.ranks = stacks, ranks
        self.factors: dict[str, Tensor] = {}
        self.mixes: list[Tensor | None] = [None] * len(stacks)
        self.cores: list[Tensor] = []
        self.names = sorted(widths, key=lambda name: (-widths[name], name))

    def start(self) -> None:
        """Truncate one mode after the other, each on what the ones before it left."""
        for number, stack in enumerate(self.stacks):
            if stack.size is not None:
                self.mixes[number] = _leading(slice_gram(stack.slices), stack.size)
        reduced = self._reduced()
        for name in self.names:
            self._update(name, reduced)
        self._set_cores(reduced)

    def sweep(self) -> None:
        """One round of HOOI: every mix, then every factor, each the best for the others."""
        for number, stack in enumerate(self.stacks):
            if stack.size is not None:
                left, right = self._factor(stack.left), self._factor(stack.right)
                small = [left.t() @ (part @ right) for part in stack.slices]
                self.mixes[number] = _leading(slice_gram(small), stack.size)
        reduced = self._reduced()
        for name in self.names:
            self._update(name, reduced)
        self._set_cores(reduced)

    def cores_energy(self) -> float:
        """Squared norm of all cores."""
        return sum(float(core.square().sum(dtype=torch.float64)) for core in self.cores)

    def _factor(self, name: str) -> Tensor:
        return self.factors[name].to(self.stacks[0].slices[0].dtype)

    def _reduced(self) -> list[Sequence[Tensor]]:
        """Per stack, its slices seen through its mix."""
        return [
            stack.slices if mix is None else list(mixed(mix, stack.slices))
            for stack, mix in zip(self.stacks, self.mixes, strict=True)
        ]

    def _update(self, name: str, reduced: Sequence[Sequence[Tensor]]) -> None:
        """The best factor of this name for the present other factors (for whole slices where there is none yet)."""
        gram: Tensor | None = None
        for stack, parts in zip(self.stacks, reduced, strict=True):
            for side, other in (("left", stack.right), ("right", stack.left)):
                if (stack.left if side == "left" else stack.right) != name:
                    continue
                seen = self._through(parts, side, other)
                part = side_gram(seen, side)
                gram = part if gram is None else gram + part
        assert gram is not None
        self.factors[name] = _leading(gram, self.ranks[name])

    def _through(self, parts: Sequence[Tensor], side: str, other: str) -> Sequence[Tensor]:
        if other not in self.factors:
            return parts
        factor = self._factor(other)
        return _Lazy(parts, lambda part: part @ factor if side == "left" else factor.t() @ part)

    def _set_cores(self, reduced: Sequence[Sequence[Tensor]]) -> None:
        self.cores = [
            torch.stack([self._factor(stack.left).t() @ (part @ self._factor(stack.right)) for part in parts])
            for stack, parts in zip(self.stacks, reduced, strict=True)
        ]


class _Lazy(Sequence[Tensor]):
    """A sequence whose items are computed when they are asked for, so that one at a time is in memory."""

    def __init__(self, items: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> None:
        self._items, self._function = items, function

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self._function(self._items[index])

    def __iter__(self) -> Iterator[Tensor]:
        return (self._function(item) for item in self._items)


def _leading(gram: Tensor, count: int) -> Tensor:
    """The eigenvectors of the ``count`` largest eigenvalues, ``(n, count)`` float64."""
    return eigh_descending(gram)[1][:, :count].contiguous()


def _relative_error(energy: float, kept: float) -> float:
    return (max(energy - kept, 0.0) / energy) ** 0.5 if energy > 0 else 0.0


def _widths(stacks: Sequence[Stack]) -> dict[str, int]:
    widths: dict[str, int] = {}
    if not stacks:
        raise ValueError("there is no stack to decompose")
    for stack in stacks:
        if not len(stack.slices):
            raise ValueError(f"the stack between {stack.left!r} and {stack.right!r} has 0 slices")
        for name, width in zip((stack.left, stack.right), stack.shape, strict=True):
            if widths.setdefault(name, width) != width:
                raise ValueError(f"factor {name!r} cannot be {widths[name]} and {width} wide at once")
        if stack.left == stack.right:
            raise ValueError(f"factor {stack.left!r} stands on both sides of one stack; name two")
    return widths


def _check(stacks: Sequence[Stack], ranks: Mapping[str, int], widths: Mapping[str, int]) -> None:
    for name, width in widths.items():
        if name not in ranks or not 1 <= ranks[name] <= width:
            raise ValueError(f"factor {name!r} is {width} wide; its rank must be 1…{width}, not {ranks.get(name)}")
    for stack in stacks:
        if stack.size is not None and not 1 <= stack.size <= len(stack.slices):
            raise ValueError(
                f"a bank for {len(stack.slices)} slices takes 1…{len(stack.slices)} cores, not {stack.size}"
            )
        other = next((tuple(part.shape) for part in stack.slices if tuple(part.shape) != stack.shape), None)
        if other is not None:
            raise ValueError(f"the slices of one stack have different shapes: {stack.shape} and {other}")
