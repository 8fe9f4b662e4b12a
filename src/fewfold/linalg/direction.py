"""The subspace that keeps the directions of a table's rows best, in closed steps and without gradients.

The best reconstruction of a row's direction within a subspace is its projection, so a bias-free linear auto-encoder
reaches ``mean(1 − cos) = 1 − mean_i |P u_i|`` at best, with ``u_i`` the rows at length one. The leading eigenvectors
of ``Σ u_i u_iᵀ`` maximise ``mean |P u_i|²`` instead, and are where the search starts. Each step then takes
``G = Σ_i f_i u_i z_iᵀ / |z_i|`` with ``z_i = Wᵀ u_i``, and its polar factor as the next ``W``: the norm is convex, so
its tangent bounds it from below, and the best ``W`` for the tangents never makes the sum smaller. A row ``b`` that
is added to every reconstruction joins the same step as one more column, orthogonal to the others, whose length is
searched. As the latents stay ``Wᵀ e_i``, the sum could fall then: the search ends before it does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewfold.linalg.spectra import eigh_descending
from fewfold.progress import track

CHUNK = 4096  # rows that are multiplied at once
SHOWN_FROM = 1e10  # multiply-accumulates of all steps together, from which progress is shown
LENGTHS = (0.0, 0.125, 0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)  # tried for a mean row, times the one before
SHORT_ROW = 0.5  # the start weighs rows below this share of the mean length as if they had it


@dataclass(frozen=True)
class Directions:
    """A subspace, and how well it keeps directions.

    :param basis: ``(dim, rank)`` float64, orthonormal columns.
    :param mean_row: ``(dim,)`` float64, orthogonal to the basis: what is added to every reconstruction; or None.
    :param cosines: weighted mean cosine at the start and after each step, never falling. Rows without a direction
        are left out of it.
    """

    basis: Tensor
    mean_row: Tensor | None
    cosines: tuple[float, ...]

    def encode(self, table: Tensor) -> Tensor:
        """Coordinates of rows, ``(rows, dim)`` to ``(rows, rank)`` float64; a row of zeros gets zeros.

        The projection keeps its own length, which also makes it the least-squares reconstruction of its row.
        """
        return torch.cat([part.to(self.basis) @ self.basis for part in table.split(CHUNK)])

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstructed rows, ``(rows, rank)`` to ``(rows, dim)`` float64."""
        rows = latents.to(self.basis) @ self.basis.T
        return rows if self.mean_row is None else rows + self.mean_row


@dataclass(frozen=True)
class DirectionSpectrum:
    """Where the search of every rank starts: the best subspaces for the squared error of directions.

    :param shares: ``(dim,)`` float64, falling: what each direction holds of ``Σ f_i |u_i|² = 1`` (0 for a table of
        zeros).
    :param vectors: ``(dim, dim)`` float64, one direction a column.
    :param mean_row: ``(dim,)`` float64, taken off first; or None.
    """

    shares: Tensor
    vectors: Tensor
    mean_row: Tensor | None

    def errors(self) -> Tensor:
        """Squared error of the directions against rank: entry ``r`` is what ``r`` directions leave, ``(dim + 1,)``."""
        tail = self.shares.flip(0).cumsum(0).flip(0)
        return torch.cat([tail, tail.new_zeros(1)])


def direction_spectrum(table: Tensor, row_weights: Tensor | None = None, mean_row: bool = False) -> DirectionSpectrum:
    """Decompose the rows at length one: the singular value decomposition of ``diag(√f) U``, by its Gram matrix.

    :param table: ``(rows, dim)``; products in its own dtype (fp32 for halves), sums in float64.
    :param row_weights: ``(rows,)``, not negative, for example `smoothed_counts`; None weighs all rows alike.
    :param mean_row: take off the mean that leaves the smallest squared error relative to the rows' lengths.
    :raises ValueError: if shapes disagree, a weight is negative or all are zero, or a number is not finite.
    """
    rows = _Rows(table, row_weights)
    return _start(rows, mean_row)


def direction_subspace(
    table: Tensor,
    rank: int,
    row_weights: Tensor | None = None,
    *,
    mean_row: bool = False,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> Directions:
    """Find the subspace of a rank with the largest weighted mean cosine between rows and their projections.

    Rows of zeros (and of weight zero) have no say; they are reconstructed like any other row.

    :param table: ``(rows, dim)``; products in its own dtype (fp32 for halves), sums in float64. It is read in parts
        and not copied.
    :param rank: 1 … dim.
    :param row_weights: ``(rows,)``, not negative, for example `smoothed_counts`; None weighs all rows alike.
    :param mean_row: find, along with the subspace, a row that is added to every reconstruction.
    :param iterations: steps at most; with 0 the result is the start.
    :param tolerance: the search ends when a step adds less than this share of the mean cosine.
    :raises ValueError: if shapes disagree, a weight is negative or all are zero, or a number is not finite.
    """
    rows = _Rows(table, row_weights)
    dim = table.shape[1]
    if not 1 <= rank <= dim:
        raise ValueError(f"rank={rank}: rows of {dim} numbers take 1…{dim}")
    start = _start(rows, mean_row)
    columns, length = start.vectors[:, :rank].contiguous(), None
    if rank == dim or not rows.count:
        return Directions(columns, None if not mean_row else torch.zeros_like(columns[:, 0]), (float(rows.count > 0),))
    if start.mean_row is not None:
        rest = start.mean_row - columns @ (columns.T @ start.mean_row)
        length = float(rest.norm())
        columns = torch.cat([columns, rest[:, None] / max(length, torch.finfo(torch.float64).tiny)], dim=1)
    cosine, length, ascent = rows.ascent(columns, length)
    best, cosines = (columns, length), [cosine]
    work = 2.0 * rows.count * dim * rank * iterations
    steps = range(iterations)
    for _ in track(steps, f"directions of rank {rank}") if work > SHOWN_FROM else steps:
        left, _, right = torch.linalg.svd(ascent, full_matrices=False)
        columns = left @ right
        cosine, length, ascent = rows.ascent(columns, length)
        if cosine < cosines[-1]:  # within rounding, unless there is a mean row
            break
        best = columns, length
        cosines.append(cosine)
        if cosine - cosines[-2] <= tolerance * cosine:
            break
    columns, length = best
    if length is None:
        return Directions(columns, None, tuple(cosines))
    return Directions(columns[:, :-1].contiguous(), columns[:, -1] * length, tuple(cosines))


class _Rows:
    """A table's rows with their weights, read in parts."""

    def __init__(self, table: Tensor, row_weights: Tensor | None) -> None:
        if table.dim() != 2 or 0 in table.shape:
            raise ValueError(f"expected a table of rows, got shape {tuple(table.shape)}")
        self.table = table.detach()
        self.dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
        parts = [torch.linalg.vector_norm(part.double(), dim=1) for part in self.table.split(CHUNK)]
        self.lengths = torch.cat(parts)
        if not torch.isfinite(self.lengths).all():
            raise ValueError("the table holds an infinity or a NaN")
        weights = torch.ones_like(self.lengths) if row_weights is None else row_weights.to(self.lengths)
        if weights.shape != self.lengths.shape:
            raise ValueError(f"row_weights {tuple(weights.shape)}: the table has {table.shape[0]} rows")
        if not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < float("inf"):
            raise ValueError("row_weights must be finite, not negative and not all zero")
        weights = torch.where(self.lengths > 0, weights, 0.0)
        self.count = int((weights > 0).sum())
        self.weights = weights / weights.sum().clamp_min(torch.finfo(torch.float64).tiny)

    def gram(self, row_weights: Tensor) -> Tensor:
        """``Σ g_i e_i e_iᵀ``, ``(dim, dim)`` float64."""
        dim = self.table.shape[1]
        gram = torch.zeros(dim, dim, dtype=torch.float64, device=self.table.device)
        parts = list(zip(self.table.split(CHUNK), row_weights.split(CHUNK), strict=True))
        big = float(self.table.numel()) * dim > SHOWN_FROM
        for part, weights in track(parts, "directions of all rows") if big else parts:
            scaled = part.to(self.dtype) * weights.sqrt().to(self.dtype)[:, None]
            gram += scaled.T @ scaled
        return gram

    def ascent(self, columns: Tensor, length: float | None) -> tuple[float, float | None, Tensor]:
        """The mean cosine at a subspace, and the matrix whose polar factor is the next one.

        :param columns: ``(dim, rank)``, and one more with a mean row: its direction.
        :param length: of the mean row, or None without one.
        :return: the cosine, the best length near the given one, and ``Σ f_i u_i [z_i, |b|]ᵀ / |[z_i, |b|]|``, float64.
        """
        narrow = columns.to(self.dtype)
        latents = torch.cat([part.to(self.dtype) @ narrow for part in self.table.split(CHUNK)])
        pull = self.weights / self.lengths.clamp_min(torch.finfo(torch.float64).tiny)
        if length is None:
            norms = torch.linalg.vector_norm(latents, dim=1).double()
            cosine = float(pull @ norms)
        else:
            own, along = latents[:, :-1].square().sum(1).double(), latents[:, -1].double()
            tried = [(self._cosine(pull, own, along, length * factor), length * factor) for factor in LENGTHS]
            cosine, length = max([(self._cosine(pull, own, along, length), length), *tried], key=lambda pair: pair[0])
            norms = (own + length**2).sqrt()
            latents[:, -1] = length
        latents *= torch.where(norms > 0, pull / norms, 0.0).to(self.dtype)[:, None]
        ascent = torch.zeros_like(columns)
        for part, scaled in zip(self.table.split(CHUNK), latents.split(CHUNK), strict=True):
            ascent += part.to(self.dtype).T @ scaled
        return cosine, length, ascent

    @staticmethod
    def _cosine(pull: Tensor, own: Tensor, along: Tensor, length: float) -> float:
        """``Σ f_i <u_i, b + W z_i> / |b + W z_i|``, from ``|z_i|²`` and ``<e_i, b> / |b|``."""
        norms = (own + length**2).sqrt()
        return float(torch.where(norms > 0, pull * (own + length * along) / norms, 0.0).sum())


def _start(rows: _Rows, mean_row: bool) -> DirectionSpectrum:
    lengths = rows.lengths
    if mean_row:  # a very short row would outweigh all others
        lengths = lengths.clamp_min(SHORT_ROW * float(rows.weights @ lengths))
    relative = rows.weights / lengths.square().clamp_min(torch.finfo(torch.float64).tiny)
    gram, mean = rows.gram(relative), None
    if mean_row:
        share = relative / relative.sum().clamp_min(torch.finfo(torch.float64).tiny)
        parts = zip(rows.table.split(CHUNK), share.split(CHUNK), strict=True)
        mean = torch.stack([weights @ part.double() for part, weights in parts]).sum(0)
        gram -= relative.sum() * torch.outer(mean, mean)
    shares, vectors = eigh_descending(gram)
    return DirectionSpectrum(shares, vectors, mean)
