"""Vectors of words from the neighbours that they have in a text: counted, not trained, in seconds."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from fewfold.models.slim.assignment import codes_of_vectors
from fewfold.progress import step
from fewfold.stored.codes import CodedMatrix
from fewfold.stored.modules import StoredMatrix
from fewfold.surgery.ties import EmbeddingAlias, TiedHead

Tables = Literal["slim", "all", "none"]  # that begin at neighbours, as settings of trainings name them

WINDOW = 2  # neighbours to either side; one at distance d counts 1 / d
CONTEXTS = 10_000  # most frequent words that count as neighbours
SMOOTHING = 0.75  # exponent of the neighbours' own frequencies
MOST = 20_000_000  # tokens that are counted; of a longer text, the first
WEIGHT = 1.0  # exponent of words' frequencies where sub-vectors are chosen
_CHUNK = 4_000_000
_OVERSAMPLED, _TURNS = 32, 3


def neighbour_vectors(ids: Tensor, words: int, width: int, seed: int = 0) -> Tensor:
    """Words that have like neighbours get like vectors.

    Positive pointwise mutual information of every word with its left and, apart from them, its right neighbours, nearer
    ones weighing more and frequent ones smoothed, cut to ``width`` directions by a singular value decomposition whose
    values are taken to the power of 1/2 (Levy, Goldberg and Dagan, TACL 2015, "Improving Distributional Similarity with
    Lessons Learned from Word Embeddings", sections 2 and 3), then turned at random, so that all columns count the same.

    :param ids: ``(tokens,)``, the running text; ids below 0 stand between texts and are no words.
    :param words: of the vocabulary. Those without neighbours in the text get random vectors.
    :param seed: of the turn and the random vectors; the global generator is left alone.
    :return: ``(words, width)`` fp32, of standard deviation 1.
    """
    generator = torch.Generator().manual_seed(seed)
    places, values = _counts(ids[:MOST].to("cpu", torch.int64), words)
    held = torch.bincount(places[0], values, words) + torch.bincount(places[1], values, words)
    contexts = torch.full((words,), -1)
    frequent = held.topk(min(words, CONTEXTS)).indices
    contexts[frequent] = torch.arange(len(frequent))
    sides = [_information(place, values, contexts, words, len(frequent)) for place in (places, places.flip(0))]
    moved = sides[1].indices() + torch.tensor([[0], [len(frequent)]])
    both = torch.sparse_coo_tensor(
        torch.cat([sides[0].indices(), moved], 1), torch.cat([side.values() for side in sides]),
        (words, 2 * len(frequent)), check_invariants=False,
    )  # fmt: skip
    vectors = _leading(both, width, generator)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    vectors = (vectors.double() @ turn).float()
    alone = vectors.square().sum(1) == 0
    spread = vectors[~alone].std() if bool((~alone).any()) else torch.tensor(1.0)
    vectors = vectors / spread.clamp(min=1e-12)
    vectors[alone] = torch.randn(int(alone.sum()), width, generator=generator)
    return vectors


def _counts(ids: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """How often one word stands to the left of another: ``(2, pairs)`` left and right words, and weighted counts."""
    keys, weights = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    for start in range(0, len(ids), _CHUNK):
        found, counted = [keys], [weights]
        for distance in range(1, WINDOW + 1):
            part = ids[start : start + _CHUNK + distance]
            left, right = part[:-distance], part[distance:]
            inside = (left >= 0) & (right >= 0)
            for nearer in range(1, distance):  # a gap between texts is not looked across
                inside &= part[nearer : nearer + len(left)] >= 0
            once, often = torch.unique(left[inside] * words + right[inside], return_counts=True)
            found.append(once)
            counted.append(often.double() / distance)
        keys, inverse = torch.unique(torch.cat(found), return_inverse=True)
        weights = torch.bincount(inverse, torch.cat(counted), len(keys))
    return torch.stack([keys // words, keys % words]), weights


def _information(places: Tensor, values: Tensor, contexts: Tensor, words: int, count: int) -> Tensor:
    """Positive pointwise mutual information, sparse ``(words, count)``, coalesced."""
    column = contexts[places[1]]
    known = column >= 0
    row, column, values = places[0][known], column[known], values[known]
    rows = torch.bincount(row, values, words)
    columns = torch.bincount(column, values, count).pow(SMOOTHING)
    information = (values * columns.sum() / (rows[row] * columns[column])).log()
    kept = information > 0
    return torch.sparse_coo_tensor(
        torch.stack([row[kept], column[kept]]), information[kept].float(), (words, count), check_invariants=False
    ).coalesce()


def _leading(matrix: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """``U √Σ`` of the leading ``width`` singular values, found by turns of a random subspace (Halko et al. 2011);
    columns beyond the rank are zero.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # torch calls its CSR tensors young
        forth, back = matrix.coalesce().to_sparse_csr(), matrix.t().coalesce().to_sparse_csr()
    size = min(width + _OVERSAMPLED, *matrix.shape)
    basis = torch.randn(matrix.shape[1], size, generator=generator)
    for _ in range(_TURNS):
        basis = torch.linalg.qr(back @ (forth @ basis))[0]  # of the contexts' side: they are never many
    product = forth @ basis
    squares = sum(part.double().T @ part.double() for part in product.split(_CHUNK // size))
    squared, directions = torch.linalg.eigh(squares)
    values = squared.flip(0)[:width].clamp(min=0).sqrt()
    kept = int((values > 1e-5 * values.max()).sum())  # none where no two words are neighbours
    found = product.new_zeros(len(product), width)
    found[:, :kept] = product @ (directions.flip(1)[:, :kept] / values[:kept].sqrt()).float()
    return found


@torch.no_grad()
def begin_at_neighbours(tables: Iterable[nn.Module | None], ids: Tensor, dense: bool = False) -> int:
    """Begin fresh tables at the neighbours that words have in a text, which training would otherwise have to find out.

    Coded tables get codes and sub-vectors by which words that are used alike share, where codes at random let any two
    share; what is learned of one word then serves the others. Tables keep the standard deviation that they had.

    :param tables: Modules such as an embedding and an output layer; None and tables with fewer rows than ids are left.
    :param ids: ``(tokens,)``, the training text; as of :func:`neighbour_vectors`.
    :param dense: Let plain tables begin at the vectors too.
    :return: How many tables were changed: dense ones, and coded ones of one stage of sub-vectors.
    """
    given: list[nn.Module] = [
        table.table if isinstance(table, TiedHead | EmbeddingAlias) else table for table in tables if table is not None
    ]
    coded = {id(part): part for table in given for part in table.modules() if isinstance(part, CodedMatrix)}
    plain = [table for table in given if dense and isinstance(table, nn.Embedding | nn.Linear)]
    least, changed = int(ids.max()) + 1, 0

    @functools.cache
    def vectors(rows: int, columns: int) -> Tensor:
        with step("counting words' neighbours"):
            return neighbour_vectors(ids, rows, columns)

    for table in coded.values():
        if table.rows < least or len(table.stages) > 1 or table.stages[0].rows is not None:
            continue
        leaf = next(iter(table.leaves()))
        if type(leaf) is StoredMatrix:
            weights = torch.bincount(ids[ids >= 0], minlength=table.rows).double().pow(WEIGHT)
            codes, words = codes_of_vectors(vectors(table.rows, table.columns), table.stages[0], weights, changed)
            table.set_codes_([codes])
            assert leaf.weight is not None
            leaf.weight.copy_(words * float(leaf.weight.std()))
            changed += 1
    for weight in {id(table.weight): table.weight for table in plain}.values():
        if len(weight) >= least:
            zeros = (weight == 0).all(1)  # padding has no vector
            weight.copy_(vectors(*weight.shape) * float(weight[~zeros].std()))
            weight[zeros] = 0.0
            changed += 1
    return changed
