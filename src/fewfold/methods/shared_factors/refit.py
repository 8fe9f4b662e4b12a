"""Fit one target's cores (or its rows of the mix) anew, with the factors as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewfold.calibration.statistics import Drift
from fewfold.linalg.regression import ridge_solution
from fewfold.linalg.spectra import cholesky_factor, damped
from fewfold.methods.shared_factors.modules import FactorStore
from fewfold.methods.slices.layout import Cut
from fewfold.methods.slices.modules import SlicedLinear, reads_rows, whole

RIDGE = 0.01  # pull towards the dense weight, as a share of the mean input energy
DAMPING = 1e-4  # share of the mean eigenvalue that is added to the metrics of the small side


@torch.no_grad()
def refit(member: SlicedLinear, weight: Tensor, drift: Drift, metric: Tensor | None) -> Tensor | None:
    """The cores that best give the dense outputs on what now comes in, written into the store.

    The best map without limits is found first (ridge regression, pulled towards the dense weight); the cores are its
    projection, in the metrics of inputs and outputs, on what the factors can reach. Where cores are mixed, so are
    they here, with the best mix.

    :param weight: the dense weight, ``(out, in)``.
    :param drift: moments of the dense model's inputs and of the present ones.
    :param metric: second moment of the gradients at the output, or None.
    :return: what the bias has to take up, ``(out,)``, or None where there is no bias.
    """
    store, cut, weight = member.store, member.cut, weight.double()
    assert isinstance(store, FactorStore)
    mean, dense_mean = drift.total / drift.count, drift.dense_total / drift.count
    moment, cross = drift.product / drift.count, drift.cross / drift.count
    if member.bias is not None:
        moment, cross = moment - torch.outer(mean, mean), cross - torch.outer(dense_mean, mean)
    wanted, moment = ridge_solution(moment, weight @ cross, weight, RIDGE)
    reader, writer = (whole(leaf).double() for leaf in store.sides(member))
    reads = _repeated(reader, cut.tiles if cut.tiled == "in" else 1)
    writes = _repeated(writer, cut.tiles if cut.tiled == "out" else 1)
    seen = writes if metric is None else writes @ damped(metric, DAMPING)
    inner, outer = damped(reads @ moment @ reads.t(), DAMPING), damped(seen @ writes.t(), DAMPING)
    best = torch.linalg.solve(outer, seen @ wanted @ moment @ reads.t())
    best = torch.linalg.solve(inner, best.t()).t()  # (writing ranks, reading ranks)
    bank = store.banks[member.bank]
    rows = slice(member.first, member.first + cut.tiles)
    if bank["size"] is None:
        cores = _apart(best, cut)
        kept = cores if reads_rows(cut) else cores.transpose(1, 2)
        leaf = whole(store.cores[member.bank])
        leaf.view(bank["slices"], -1, leaf.shape[1])[rows].copy_(kept)
    else:
        cores = whole(store.cores[member.bank]).double().unflatten(0, (bank["size"], -1))
        cores = cores if reads_rows(cut) else cores.transpose(1, 2)
        mix = _best_mix(cores, best, cut, cholesky_factor(inner), cholesky_factor(outer))
        whole(store.mixes[member.bank])[rows].copy_(mix)
    if member.bias is None:
        return None
    return weight @ dense_mean - member.assembled_weight().double() @ mean


def _repeated(factor: Tensor, tiles: int) -> Tensor:
    """A factor ``(rank, width)`` for every tile: ``(tiles · rank, tiles · width)``."""
    return factor if tiles == 1 else torch.block_diag(*[factor] * tiles)


def _apart(joined: Tensor, cut: Cut) -> Tensor:
    """``(writing ranks, reading ranks)`` of all tiles as ``(tiles, reading rank, writing rank)``."""
    blocks: Sequence[Tensor] = joined.chunk(cut.tiles, dim=1 if cut.tiled == "in" else 0)
    return torch.stack([block.t() for block in blocks])


def _best_mix(cores: Tensor, best: Tensor, cut: Cut, inner: Tensor, outer: Tensor) -> Tensor:
    """The mix ``(tiles, size)`` whose cores come nearest to ``best``, in the metrics with these Cholesky factors."""
    size = len(cores)
    left = outer.chunk(cut.tiles) if cut.tiled == "out" else [outer] * cut.tiles
    right = inner.chunk(cut.tiles) if cut.tiled == "in" else [inner] * cut.tiles
    flat = torch.stack([
        (left[tile].t() @ cores.transpose(1, 2) @ right[tile]).flatten(1) for tile in range(cut.tiles)
    ]).flatten(0, 1)  # fmt: skip
    gram = damped(flat @ flat.t(), 1e-6)
    wanted = flat @ (outer.t() @ best @ inner).flatten()
    return torch.linalg.solve(gram, wanted).view(cut.tiles, size)
