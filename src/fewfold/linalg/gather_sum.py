"""Products with a matrix of shared sub-vectors, without the matrix: partial products, gathered and summed.

``logit_w = Σ_p <h_p, codebook_p[code[w, p]]>``: every distinct ``<h_p, codebook_p[j]>`` is computed once, then each
row sums one look-up a position (Li et al., AAAI 2018). Exact; only the order of the additions differs.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

SPARSE_BATCH = 8  # up to here MKL's sparse product sums faster than an embedding bag
BLOCK = 256  # inputs whose partial products are summed at once, so that they stay in the cache

# nanoseconds on one core, fitted to runs of 33,278 × 512 at batches of 1 to 256; only their ratios decide
STREAMED = 0.4  # a number of a weight read from memory,
CACHED = 0.05  # or from the cache,
CACHE_NUMBERS = 2**20  # where it has at most so many numbers
MULTIPLIED = 0.02  # a multiply-accumulate
GATHERED = 2.0  # a look-up,
ADDED = 0.15  # and each of the batch's numbers that it adds,
ADDED_FAR = 0.45  # where the partial products of a large batch have left the near cache
FAR_BATCH = 64
ASSEMBLED = 1.0  # a number of a rebuilt weight
STEPS = 90_000.0  # what a chain's calls cost however small it is, beyond those of one product with a kept weight
TRAINED_BATCH = 64  # inputs whose partial products are summed at once in a loss, and
NEAR_NUMBERS = 2**22  # the most partial products of them that stay near


def chain_is_cheaper(batch: int, weights: int, products: int, gathers: int, kept: bool) -> bool:
    """Whether partial products beat one product with the rebuilt weight.

    Both are reckoned in nanoseconds: ``products · (read + batch · MULTIPLIED) + gathers · (GATHERED + batch · ADDED)``
    against ``weights · (read + batch · MULTIPLIED)``, and the assembly where the weight is not kept between calls.
    Where it is kept, one product is one call, and the chain's ``STEPS`` count. Above ``FAR_BATCH`` an addition costs
    ``ADDED_FAR``.

    :param batch: rows that are multiplied.
    :param weights: numbers of the rebuilt weight.
    :param products: partial products' multiply-accumulates a row.
    :param gathers: look-ups a row.
    :param kept: whether the rebuilt weight is at hand.
    """

    def multiply(numbers: int) -> float:
        read = STREAMED if numbers > CACHE_NUMBERS else CACHED
        return numbers * (read + batch * MULTIPLIED)

    added = ADDED if batch <= FAR_BATCH else ADDED_FAR
    chain = multiply(products) + gathers * (GATHERED + batch * added)
    if kept:
        return chain + STEPS < multiply(weights)
    return chain < multiply(weights) + weights * ASSEMBLED


def chain_trains_cheaper(batch: int, weights: int, products: int, gathers: int, sums: int) -> bool:
    """Whether a loss and its gradients are cheaper by partial products than with the weight built.

    As :func:`chain_is_cheaper`; three products each way (outputs and both gradients), sums and transposed sums on one
    side, assembly and its transpose on the other.

    :param sums: partial products of one input.
    """
    runs = -(-batch // TRAINED_BATCH)
    added = ADDED if sums * min(batch, TRAINED_BATCH) <= NEAR_NUMBERS else ADDED_FAR

    def multiply(numbers: int, passes: int) -> float:
        read = STREAMED if numbers > CACHE_NUMBERS else CACHED
        return 3 * numbers * (passes * read + batch * MULTIPLIED)

    chain = multiply(products, runs) + 2 * gathers * (runs * GATHERED + batch * added)
    return chain < multiply(weights, 1) + 2 * weights * ASSEMBLED


def partial_products(hidden_states: Tensor, codebook: Tensor, positions: int) -> Tensor:
    """Every sub-vector's product with its part of the inputs.

    :param hidden_states: ``(batch, columns)``; columns beyond the last are taken as 0.
    :param codebook: ``(positions, words, width)``, or ``(1, words, width)`` shared by all positions.
    :return: ``(positions · words, batch)``.
    """
    width = codebook.shape[2]
    missing = positions * width - hidden_states.shape[1]
    if missing:
        hidden_states = F.pad(hidden_states, (0, missing))
    blocks = hidden_states.reshape(-1, positions, width)
    codebook = codebook.expand(positions, -1, -1)
    if not torch.compiler.is_compiling() and blocks.shape[0] == 1:  # one input: as rows, twice as fast
        return torch.bmm(blocks.transpose(0, 1), codebook.transpose(1, 2)).reshape(-1, 1)
    return torch.bmm(codebook, blocks.permute(1, 2, 0)).flatten(0, 1)


class GatherSum:
    """Sums of chosen rows, the same choice at every call.

    It holds its choice as int32, and a sparse matrix of ones as large again once few columns are summed.

    :param indices: ``(rows, count)``: which of ``size`` rows each output row sums.
    """

    def __init__(self, indices: Tensor, size: int) -> None:
        with torch.inference_mode(False):  # what an inference made must not stand in a later graph
            rows, count = indices.shape
            self.shape, self.size = (rows, count), size
            self.flat = indices.to(torch.int32).flatten()
            self.offsets = torch.arange(0, rows * count + 1, count, dtype=torch.int32, device=indices.device)
        self._ones: Tensor | None = None
        self._users: tuple[Tensor, Tensor] | None = None

    def spread(self, values: Tensor) -> Tensor:
        """The transposed sum: ``(rows, batch)`` to ``(size, batch)``, what the sum hands back to each chosen row.

        It holds who chose which row, as int32, from its first call on; sums are taken in a fixed order.
        """
        if self._users is None:
            with torch.inference_mode(False):
                self._users = users_of(self.flat, self.shape[1], self.size)
        rows, offsets = self._users
        return F.embedding_bag(rows, values, offsets, mode="sum", include_last_offset=True)

    def __call__(self, values: Tensor) -> Tensor:
        """``(size, batch)`` to ``(rows, batch)``."""
        batch = values.shape[1]
        if batch == 0:
            return values.new_zeros(self.shape[0], 0)
        if batch <= SPARSE_BATCH and self._sparse_runs(values):
            ones = self._sparse(values.dtype)
            return torch.mv(ones, values[:, 0])[:, None] if batch == 1 else torch.mm(ones, values)
        if batch <= BLOCK or values.requires_grad:
            return self._bag(values)
        summed = values.new_empty(self.shape[0], batch)
        for start in range(0, batch, BLOCK):
            summed[:, start : start + BLOCK] = self._bag(values[:, start : start + BLOCK].contiguous())
        return summed

    def sum_of(self, values: Tensor) -> Tensor:
        """As a call, for a ``batch`` that is small enough already and takes no gradients."""
        return self._bag(values)

    def _bag(self, values: Tensor) -> Tensor:
        return F.embedding_bag(self.flat, values, self.offsets, mode="sum", include_last_offset=True)

    def _sparse_runs(self, values: Tensor) -> bool:
        known = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
        return known and not values.requires_grad and torch.backends.mkl.is_available()

    def _sparse(self, dtype: torch.dtype) -> Tensor:
        if self._ones is None or self._ones.dtype != dtype:
            with torch.inference_mode(False), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # sparse tensors announce themselves as beta
                ones = torch.ones(self.flat.shape[0], dtype=dtype)
                shape = (self.shape[0], self.size)
                self._ones = torch.sparse_csr_tensor(self.offsets, self.flat, ones, shape, check_invariants=False)
        return self._ones


def users_of(flat: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Who chose which row: the choosers of every row one behind the other, and where each row's begin, int32.

    :param flat: ``(choosers · count,)``: chosen rows, ``count`` a chooser.
    :param size: rows to choose from.
    """
    rows = flat.argsort(stable=True).div(count, rounding_mode="floor").to(torch.int32)
    return rows, F.pad(torch.bincount(flat, minlength=size).cumsum(0), (1, 0)).to(torch.int32)


def gather_sum(indices: Tensor, values: Tensor) -> Tensor:
    """As :class:`GatherSum`, one look-up a position: for graphs that are traced.

    :param indices: ``(rows, count)``.
    :param values: ``(size, batch)``.
    :return: ``(rows, batch)``.
    """
    summed = values.index_select(0, indices[:, 0])
    for position in range(1, indices.shape[1]):
        summed = summed + values.index_select(0, indices[:, position])
    return summed
