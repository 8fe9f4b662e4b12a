"""Bring the attention heads of two layers into one order and into one frame, without a change of what they compute.

A head computes with two products only: ``Q^T K`` decides where it looks, ``O V`` what it brings. Its own numbers are
free up to an invertible map between the two of a product; heads are therefore compared by their products, and averaged
only after a rotation brought them into one frame (orthogonal Procrustes: Schönemann, 1966).

An order of heads is exact wherever all heads are alike: not where each has a position bias of its own (ALiBi, T5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewfold.linalg.alignment import best_assignment, inner_products


@dataclass(frozen=True)
class Heads:
    """The weights of one attention layer, biases of queries, keys and values as one more column where there are some.

    :param query: ``(heads · d, in)``.
    :param key: ``(kv_heads · d, in)``; each serves ``heads / kv_heads`` query heads that follow each other.
    :param value: ``(kv_heads · v, in)``.
    :param output: ``(out, heads · v)``.
    :param heads: number of query heads.
    :param kv_heads: number of key and value heads; ``heads`` where absent.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    heads: int
    kv_heads: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        if self.heads < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not share {self.kv_heads} key and value heads evenly")
        for name, rows, count in (
            ("query", self.query.shape[0], self.heads),
            ("key", self.key.shape[0], self.kv_heads),
            ("value", self.value.shape[0], self.kv_heads),
            ("output", self.output.shape[1], self.heads),
        ):
            if rows % count:
                raise ValueError(f"{name}: {rows} numbers do not fall into {count} heads")
        sizes = [rows.shape[1] for rows in self.split()]
        if sizes[0] != sizes[1] or sizes[2] != sizes[3]:
            raise ValueError(f"heads of {sizes} numbers for query, key, value and output: each two must be equal")

    @property
    def per_group(self) -> int:
        """Query heads of one key and value head."""
        return self.heads // self.kv_heads

    def split(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key, value and transposed output by head: ``(heads or kv_heads, size, in or out)``."""
        return (
            self.query.unflatten(0, (self.heads, -1)),
            self.key.unflatten(0, (self.kv_heads, -1)),
            self.value.unflatten(0, (self.kv_heads, -1)),
            self.output.t().unflatten(0, (self.heads, -1)),
        )

    def permuted(self, order: Tensor) -> Heads:
        """These heads in another order, as :func:`match_heads` returns one."""
        groups = order[:: self.per_group] // self.per_group
        query, key, value, output = self.split()
        return self._joined(query[order], key[groups], value[groups], output[order])

    def _joined(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Heads:
        return replace(
            self,
            query=query.flatten(0, 1),
            key=key.flatten(0, 1),
            value=value.flatten(0, 1),
            output=output.flatten(0, 1).t(),
        )


def match_heads(
    reference: Heads,
    other: Heads,
    metric: Tensor | None = None,
    scores: Literal["products", "rows"] = "products",
) -> Tensor:
    """The order in which the heads of one layer match those of another best.

    Key and value heads are permuted as wholes, query heads inside of the group that shares one: the optimum over all
    such orders.

    :param metric: ``(in, in)`` second moment of the attention's input; identity where absent.
    :param scores: 'products' compares ``Q^T K`` and ``O V``, each kind weighing one half, whatever frame the heads are
        in: to be followed by :func:`rotate_heads`. 'rows' compares the numbers themselves: best for a plain mean.
    :return: ``(heads,)`` int64: ``other.permuted(p)`` stands next to ``reference``.
    :raises ValueError: if the layers' shapes or heads disagree.
    """
    _check_alike(reference, other)
    groups, size = reference.kv_heads, reference.per_group
    by_head, by_group = (_product_scores if scores == "products" else _row_scores)(reference, other, metric)
    inner = torch.empty(groups, groups, size, dtype=torch.long)
    totals = by_group.cpu().clone()
    by_head = by_head.cpu().unflatten(0, (groups, size)).unflatten(2, (groups, size)).transpose(1, 2)
    for row in range(groups):
        for column in range(groups):
            inner[row, column] = best_assignment(by_head[row, column])
            totals[row, column] += by_head[row, column].gather(1, inner[row, column][:, None]).sum()
    chosen = best_assignment(totals)
    order = [inner[row, column] + size * column for row, column in enumerate(chosen.tolist())]
    return torch.cat(order).to(reference.query.device)


def rotate_heads(reference: Heads, other: Heads, query_key: bool = True) -> Heads:
    """Turn every head of ``other`` so that its numbers lie closest to those of ``reference``; its products stay.

    ``V -> R V``, ``O -> O R^T`` with one rotation a value head, and ``K -> R K``, ``Q -> R Q`` with one a key head:
    each the least-squares optimum over orthogonal ``R``.

    :param other: in the order of ``reference``, see :func:`match_heads`.
    :param query_key: whether queries and keys are turned as well: only exact where nothing stands between the
        projection and the product, so never with rotary positions or norms of queries and keys.
    :return: weights of the same attention in the dtype of ``other``.
    :raises ValueError: if the layers' shapes or heads disagree.
    """
    _check_alike(reference, other)
    dtype = other.query.dtype
    wanted, turned = [[part.detach().double() for part in heads.split()] for heads in (reference, other)]
    size = reference.per_group
    pairs = [(2, 3)] + ([(1, 0)] if query_key else [])
    for single, several in pairs:
        cross = wanted[single] @ turned[single].transpose(1, 2)
        cross = cross + _by_group(wanted[several] @ turned[several].transpose(1, 2), size)
        left, _, right = torch.linalg.svd(cross)
        rotation = left @ right
        turned[single] = rotation @ turned[single]
        turned[several] = rotation.repeat_interleave(size, 0) @ turned[several]
    return other._joined(*(part.to(dtype) for part in turned))


def rows_of_heads(order: Tensor, rows: int) -> Tensor:
    """The order of ``rows`` numbers that belong to heads of equal size, for an order of the heads.

    :param order: ``(heads,)``.
    :return: ``(rows,)`` int64.
    :raises ValueError: if the rows do not fall into that many heads.
    """
    if rows % len(order):
        raise ValueError(f"{rows} rows do not fall into {len(order)} heads")
    return torch.arange(rows, device=order.device).unflatten(0, (len(order), -1))[order].flatten()


def _product_scores(reference: Heads, other: Heads, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """``<Q_a^T K_a, Q_b^T K_b>`` and the same of ``O V``, each as a share of its kind's norm, ``(heads, heads)``."""
    total = torch.zeros(reference.heads, reference.heads, dtype=torch.float64, device=reference.query.device)
    for first, second, seen in ((0, 1, metric), (3, 2, None)):
        cross, own, its = (
            _products(_per_query_head(a, first), _per_query_head(b, first), seen)
            * _products(_per_query_head(a, second), _per_query_head(b, second), metric)
            for a, b in ((reference, other), (reference, reference), (other, other))
        )
        norm = own.sum((1, 3)).trace().clamp_min(0).sqrt() * its.sum((1, 3)).trace().clamp_min(0).sqrt()
        total += cross.sum((1, 3)) / norm.clamp_min(torch.finfo(torch.float64).tiny)
    return total, total.new_zeros(reference.kv_heads, reference.kv_heads)


def _row_scores(reference: Heads, other: Heads, metric: Tensor | None) -> tuple[Tensor, Tensor]:
    """Inner products of the heads' numbers: ``(heads, heads)`` of queries and outputs, by group of keys and values."""
    parts: list[Tensor] = []
    for number, seen in enumerate((metric, metric, metric, None)):
        products = _products(reference.split()[number], other.split()[number], seen)
        parts.append(products.diagonal(dim1=1, dim2=3).sum(-1))
    return parts[0] + parts[3], parts[1] + parts[2]


def _per_query_head(heads: Heads, number: int) -> Tensor:
    part = heads.split()[number]
    return part.repeat_interleave(heads.heads // len(part), 0)


def _products(first: Tensor, second: Tensor, metric: Tensor | None) -> Tensor:
    """Inner products of all rows of all heads, ``(heads, size, heads, size)``."""
    flat = inner_products(first.flatten(0, 1), second.flatten(0, 1), metric)
    return flat.unflatten(0, (len(first), -1)).unflatten(2, (len(second), -1))


def _by_group(products: Tensor, size: int) -> Tensor:
    return products.unflatten(0, (-1, size)).sum(1)


def _check_alike(reference: Heads, other: Heads) -> None:
    shapes: Sequence[tuple[int, ...]] = [
        (heads.heads, heads.kv_heads, *heads.query.shape, *heads.key.shape, *heads.value.shape, *heads.output.shape)
        for heads in (reference, other)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(f"layers of different heads cannot be matched: {shapes[0]} against {shapes[1]}")
