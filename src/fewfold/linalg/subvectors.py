"""Fit a matrix with codes into codebooks of sub-vectors, for the least error that real inputs see.

The error is ``Σ_i f_i (x_i − x'_i)ᵀ C (x_i − x'_i)`` over the rows ``x_i`` of the matrix, with row weights ``f`` and a
metric ``C``: the second moment of a linear map's inputs, or what gradients say of a table's columns. Without a metric
this is product quantization by k-means (Jégou et al., TPAMI 2011), residual where there are several stages. With one,
every code is then chosen anew given all others, in turns with the least-squares codebooks for these codes (cf. AQLM,
Egiazarian et al., ICML 2024). To start by handing errors on from column to column, as GPTQ does, was tried and is worse
where inputs differ much in energy: it leaves words far from the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewfold.linalg.finite import is_finite
from fewfold.linalg.kmeans import kmeans, nearest, priority_sample
from fewfold.linalg.spectra import damped
from fewfold.progress import track
from fewfold.stored.stages import StageSpec

COLUMN_POWER = (
    0.5  # columns weigh in the first codebook with their share of the metric to this power: a few may rule it
)
CHUNK_ROWS = 4096  # that are decoded at a time
MOST_POINTS = 2**22  # sub-vectors that one codebook is found from: whole rows are drawn where there are more
CG_STEPS = 20  # of conjugate gradients for codebooks: a thousand unknowns, and a good start
CG_TOLERANCE = 1e-6  # of the squared residual
LEAST_DAMPING = 1e-4  # below it, a metric in fp32 cannot be told from a singular one
LEAST_SCALE = 2.0**-24  # the smallest positive number of fp16
GROUP_COLUMNS = 64  # columns between two updates of all others

Cluster = Callable[..., Tensor]


@dataclass
class Coded:
    """``diag(scales) · Σ stages``.

    :param codes: by stage, ``(covered rows, positions)`` integers; a partial stage's rows are in order of importance.
    :param books: by stage, ``(books, words, width)`` fp32, one book or one for each position.
    :param partial: by stage, whether it covers the first rows of ``order`` only.
    :param scales: ``(rows,)`` fp32, or None.
    :param order: rows by falling importance, where a stage is partial.
    """

    codes: list[Tensor]
    books: list[Tensor]
    partial: list[bool]
    scales: Tensor | None = None
    order: Tensor | None = None

    def rows(self, which: Tensor, columns: int) -> Tensor:
        """Some rows of the matrix that the codes stand for, ``(len(which), columns)`` fp32."""
        total = torch.zeros(len(which), columns)
        for codes, books, partial in zip(self.codes, self.books, self.partial, strict=True):
            if not partial:
                total += _decode(codes[which], books, columns)
                continue
            places = self.places()[which]
            covered = places < len(codes)
            total[covered] += _decode(codes[places[covered]], books, columns)
        return total if self.scales is None else total * self.scales[which, None]

    def dense(self, rows: int, columns: int) -> Tensor:
        """The matrix that the codes stand for, ``(rows, columns)`` fp32."""
        return self.rows(torch.arange(rows), columns)

    def places(self) -> Tensor:
        """Of every row, its place in the order of importance."""
        assert self.order is not None
        return torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(self.order)))

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """By their names in a coded matrix: ``codes_S``, ``codebooks.S.weight``, ``scales`` and ``rank``."""
        found = {f"{prefix}codes_{number}": codes for number, codes in enumerate(self.codes)}
        for number, books in enumerate(self.books):
            found[f"{prefix}codebooks.{number}.weight"] = books.flatten(0, 1)
        if self.scales is not None:
            found[f"{prefix}scales"] = self.scales
        if self.order is not None:
            found[f"{prefix}rank"] = self.places()
        return found


def fit_codes(
    matrix: Tensor,
    stages: Sequence[StageSpec],
    metric: Tensor | None = None,
    row_weights: Tensor | None = None,
    scales: bool = True,
    damping: float = 0.1,
    rounds: int = 2,
    sweeps: int = 3,
    book_dtype: torch.dtype = torch.float16,
    seed: int = 0,
    in_place: bool = False,
    cluster: Cluster = kmeans,
    books: Sequence[Tensor] | None = None,
) -> Coded:
    """Codes, codebooks and row scales of a matrix.

    :param matrix: ``(rows, columns)``.
    :param stages: coarse first; partial stages after whole ones.
    :param metric: ``(columns, columns)``, positive semidefinite; all columns alike and apart if absent.
    :param row_weights: ``(rows,)``, not negative; all equal if absent.
    :param scales: give every row a factor (its norm, then refitted).
    :param damping: share of the mean of the metric's diagonal added to it (at least 1e-4).
    :param rounds: turns of codebooks and codes.
    :param sweeps: of improving every code, in a turn.
    :param book_dtype: the codebooks' kept dtype: codes of the last turn are chosen for rounded words.
    :param seed: of the k-means starts.
    :param in_place: leave in ``matrix`` what the codes do not explain, rather than copy it (without scales).
    :param cluster: what finds the words of points: `kmeans`, or one that remembers.
    :param books: by stage, codebooks ``(books, words, width)`` that are given: only codes are chosen, and scales.
    :raises ValueError: if shapes disagree or a number is not finite.
    """
    weights = _checked(matrix, metric, row_weights)
    matrix = matrix.detach().to(torch.float32)
    work = _Fit(
        matrix if scales or in_place else matrix.clone(), stages, metric, weights, scales, damping, seed, cluster
    )
    for number in range(len(stages)):
        work.start(number, None if books is None else books[number])
    for turn in range(rounds if metric is not None or len(stages) > 1 else 0):
        if books is None:
            work.refit_books()
        if scales:
            work.refit_scales()
        if books is None and turn == rounds - 1:
            work.round_books(book_dtype)
        for _ in range(sweeps):
            for number in range(len(stages)):
                work.improve(number)
    if books is None and (rounds == 0 or (metric is None and len(stages) == 1)):
        work.round_books(book_dtype)
    if scales:
        work.refit_scales()
    return work.found()


def _checked(matrix: Tensor, metric: Tensor | None, row_weights: Tensor | None) -> Tensor:
    """The row weights, ones if absent, after a look at all inputs."""
    if matrix.dim() != 2 or not is_finite(matrix):
        raise ValueError(f"matrix {tuple(matrix.shape)}: expected two dimensions and finite numbers")
    rows, columns = matrix.shape
    if metric is not None and metric.shape != (columns, columns):
        raise ValueError(f"metric {tuple(metric.shape)}: rows of {columns} need ({columns}, {columns})")
    weights = torch.ones(rows) if row_weights is None else row_weights.to(torch.float32)
    if weights.shape != (rows,) or bool((weights < 0).any()) or not is_finite(weights):
        raise ValueError(f"row_weights {tuple(weights.shape)}: expected {rows} numbers, finite and not negative")
    return weights


def _decode(codes: Tensor, books: Tensor, columns: int) -> Tensor:
    """``(rows, positions)`` codes as ``(rows, columns)``."""
    codes = codes.long()
    if books.shape[0] == 1:
        return books[0][codes].flatten(1)[:, :columns]
    place = torch.arange(codes.shape[1]) * books.shape[1]
    return books.flatten(0, 1)[codes + place].flatten(1)[:, :columns]


def _grouped(blocks: list[slice]) -> Iterator[tuple[int, list[slice], slice]]:
    """Runs of blocks: the first one's number, the blocks, and the columns that they span."""
    count = max(1, GROUP_COLUMNS // (blocks[0].stop - blocks[0].start))
    for first in range(0, len(blocks), count):
        inner = blocks[first : first + count]
        yield first, inner, slice(inner[0].start, inner[-1].stop)


class _Fit:
    """The state of one fit: what is still to be explained, and by stage codes and books."""

    def __init__(
        self,
        matrix: Tensor,
        stages: Sequence[StageSpec],
        metric: Tensor | None,
        weights: Tensor,
        scales: bool,
        damping: float,
        seed: int,
        cluster: Cluster = kmeans,
    ) -> None:
        self.rows, self.columns = matrix.shape
        self.stages, self.seed, self.cluster = stages, seed, cluster
        self.matrix = matrix if scales else None
        self.metric = None if metric is None else damped(metric, max(damping, LEAST_DAMPING)).to(torch.float32)
        self.scales = _kept_scales(matrix.square().mean(1).sqrt()) if scales else None
        self.row_weights = weights / weights.mean().clamp_min(1e-30)
        partial = any(stage.rows is not None for stage in stages)
        self.order = self.row_weights.argsort(descending=True, stable=True) if partial else None
        self.roots: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.codes: list[Tensor] = []
        self.books: list[Tensor] = []
        self.left = matrix / self.scales[:, None] if self.scales is not None else matrix
        self._weigh()

    def _weigh(self) -> None:
        """Row weights of the scaled rows."""
        self.weights = self.row_weights if self.scales is None else self.row_weights * self.scales.square()
        self.weights = self.weights / self.weights.mean().clamp_min(1e-30)

    def members(self, number: int) -> Tensor | None:
        """The rows of a stage, or None for all."""
        count = self.stages[number].rows
        return None if count is None or self.order is None else self.order[:count]

    def blocks(self, number: int) -> list[slice]:
        """The column blocks of a stage; the last one may be shorter."""
        width = self.stages[number].width
        return [slice(at, min(at + width, self.columns)) for at in range(0, self.columns, width)]

    def start(self, number: int, given: Tensor | None = None) -> None:
        """Codebooks, given or by k-means on what earlier stages left, and codes."""
        stage, blocks, members = self.stages[number], self.blocks(number), self.members(number)
        left = self.left if members is None else self.left[members]
        weights = self.weights if members is None else self.weights[members]
        codes = torch.empty(len(left), len(blocks), dtype=torch.int16 if stage.words <= 32768 else torch.int32)
        if stage.shared or given is not None:
            books = self._words_of_all(stage, blocks, left, weights) if given is None else given.float()
            for place, block in track(list(enumerate(blocks)), "coding"):
                root, words = self._roots(block)[0], books[place % len(books)][:, : block.stop - block.start]
                codes[:, place] = nearest(left[:, block] @ root, words @ root)
        else:
            books = torch.zeros(len(blocks), stage.words, stage.width)
            for place, block in track(list(enumerate(blocks)), "clustering"):
                root, back = self._roots(block)
                points = left[:, block] @ root
                words = self.cluster(points, stage.words, weights, seed=self.seed)
                codes[:, place] = nearest(points, words)
                books[place, :, : block.stop - block.start] = words @ back
        self.codes.append(codes)
        self.books.append(books)
        self._add(number, books, -1.0)

    def _words_of_all(self, stage: StageSpec, blocks: list[slice], left: Tensor, weights: Tensor) -> Tensor:
        """One codebook for all blocks, ``(1, words, width)``."""
        diagonal = torch.ones(self.columns) if self.metric is None else self.metric.diagonal()
        per_block = torch.stack([diagonal[block].mean() for block in blocks]).pow(COLUMN_POWER)
        if len(left) * len(blocks) > MOST_POINTS:
            generator = torch.Generator().manual_seed(self.seed)
            chosen, weights = priority_sample(weights, MOST_POINTS // len(blocks), generator)
            left = left[chosen]
        padded = torch.nn.functional.pad(left, (0, len(blocks) * stage.width - self.columns))
        mass = (weights[:, None] * per_block).flatten()
        return self.cluster(padded.reshape(-1, stage.width), stage.words, mass, seed=self.seed)[None]

    def _add(self, number: int, books: Tensor, factor: float) -> None:
        """Add what a stage's codes make of ``books`` to what is left, a run of rows at a time."""
        members, codes = self.members(number), self.codes[number]
        for start in range(0, len(codes), CHUNK_ROWS):
            run = slice(start, start + CHUNK_ROWS)
            part = _decode(codes[run], books, self.columns)
            if members is None:
                self.left[run].add_(part, alpha=factor)
            else:
                self.left.index_add_(0, members[run], part, alpha=factor)

    def _roots(self, block: slice) -> tuple[Tensor, Tensor]:
        """A root of the metric inside of a block, ``x @ root`` having the metric's norm, and the root's inverse."""
        key = (block.start, block.stop)
        if key not in self.roots:
            if self.metric is None:
                root = torch.eye(block.stop - block.start, dtype=torch.float64)
            else:
                root = torch.linalg.cholesky(self.metric[block, block].double())
            self.roots[key] = (root.float(), torch.linalg.inv(root).float())
        return self.roots[key]

    def improve(self, number: int) -> None:
        """Choose every code of a stage anew, given all others."""
        stage, blocks, members = self.stages[number], self.blocks(number), self.members(number)
        books, codes = self.books[number], self.codes[number]
        left = self.left if members is None else self.left[members]
        for first, inner, group in _grouped(blocks):
            if self.metric is not None:
                within = self.metric[group, group]
                outside = left @ self.metric[:, group] - left[:, group] @ within
            for place, block in enumerate(inner, first):
                words = books[0 if stage.shared else place][:, : block.stop - block.start]
                old = words[codes[:, place].long()]
                target = left[:, block] + old
                if self.metric is None:
                    codes[:, place] = nearest(target, words)
                else:
                    here = slice(block.start - group.start, block.stop - group.start)
                    pull = outside[:, here] + left[:, group] @ within[:, here] - left[:, block] @ within[here, here]
                    root, inverse = self._roots(block)
                    codes[:, place] = nearest(target @ root + pull @ inverse.T, words @ root)
                left[:, block] = target - words[codes[:, place].long()]
        if members is not None:
            self.left[members] = left

    def _measured(self, matrix: Tensor) -> Tensor:
        """``diag(f) · matrix · C``."""
        seen = matrix if self.metric is None else matrix @ self.metric
        return seen * self.weights[:, None]

    def _gather(self, number: int, books: Tensor) -> Tensor:
        part, members = _decode(self.codes[number], books, self.columns), self.members(number)
        if members is None:
            return part
        return torch.zeros(self.rows, self.columns).index_copy_(0, members, part)

    def _scatter(self, number: int, matrix: Tensor) -> Tensor:
        """The transpose of ``_gather``."""
        stage, codes, members = self.stages[number], self.codes[number], self.members(number)
        matrix = matrix if members is None else matrix[members]
        padded = torch.nn.functional.pad(matrix, (0, codes.shape[1] * stage.width - self.columns))
        flat = codes.long() if stage.shared else codes + torch.arange(codes.shape[1]) * stage.words
        books = self.books[number]
        sums = torch.zeros(books.shape[0] * stage.words, stage.width)
        return sums.index_add_(0, flat.flatten(), padded.reshape(-1, stage.width)).view_as(books)

    def refit_books(self) -> None:
        """The least-squares codebooks for the codes, all stages at once, by preconditioned conjugate gradients."""
        diagonal = torch.ones(self.columns) if self.metric is None else self.metric.diagonal()
        scale = [self._scatter(s, self.weights[:, None] * diagonal).clamp_min(1e-9) for s in range(len(self.books))]
        rest = [self._scatter(s, self._measured(self.left)) for s in range(len(self.books))]
        ahead = [r / s for r, s in zip(rest, scale, strict=True)]
        going = [a.clone() for a in ahead]
        energy = _dot(rest, ahead)
        first = energy
        for _ in range(CG_STEPS):
            if energy <= CG_TOLERANCE * max(first, 1e-30):
                break
            moved = torch.zeros_like(self.left)
            for s, part in enumerate(going):
                moved += self._gather(s, part)
            bent = self._measured(moved)
            curve = [self._scatter(s, bent) for s in range(len(going))]
            step = energy / max(_dot(going, curve), 1e-30)
            for s, part in enumerate(going):
                self.books[s] += step * part
                rest[s] -= step * curve[s]
            self.left -= step * moved
            ahead = [r / s for r, s in zip(rest, scale, strict=True)]
            energy, before = _dot(rest, ahead), energy
            going = [a + energy / before * g for a, g in zip(ahead, going, strict=True)]

    def _explained(self) -> Tensor:
        total = self._gather(0, self.books[0])
        for number in range(1, len(self.books)):
            total += self._gather(number, self.books[number])
        return total

    def refit_scales(self) -> None:
        """The least-squares factor of every row."""
        assert self.scales is not None
        assert self.matrix is not None
        explained = self._explained()
        seen = explained if self.metric is None else explained @ self.metric
        power = (seen * explained).sum(1)
        scales = (seen * self.matrix).sum(1) / power.clamp_min(1e-30)
        self.scales = _kept_scales(torch.where((power > 0) & (scales > 0), scales, self.scales))
        self._weigh()
        self.left = self.matrix / self.scales[:, None] - explained

    def round_books(self, dtype: torch.dtype) -> None:
        """Put the words on their kept grid."""
        for number, book in enumerate(self.books):
            self.books[number] = book.to(dtype).float()
            self._add(number, book - self.books[number], 1.0)

    def found(self) -> Coded:
        """What was fitted."""
        partial = [stage.rows is not None for stage in self.stages]
        return Coded(self.codes, self.books, partial, self.scales, self.order)


def _kept_scales(scales: Tensor) -> Tensor:
    """Scales on fp16's grid, positive and finite."""
    return scales.clamp(LEAST_SCALE, torch.finfo(torch.float16).max).half().float()


def _dot(left: list[Tensor], right: list[Tensor]) -> float:
    return sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(left, right, strict=True))
