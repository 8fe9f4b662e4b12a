"""Fit one target's cores anew, with the factors as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewfold.calibration.statistics import Drift
from fewfold.linalg.regression import ridge_solution
from fewfold.linalg.spectra import damped
from fewfold.methods.shared_factors.modules import FactorStore
from fewfold.methods.slices.layout import Cut
from fewfold.methods.slices.modules import SlicedLinear, reads_rows, whole

RIDGE = 0.01  # pull towards the dense weight, as a share of the mean input energy
DAMPING = 1e-4  # share of the mean eigenvalue that is added to the metrics of the small side


@torch.no_grad()
def refit(member: SlicedLinear, weight: Tensor, drift: Drift, metric: Tensor | None) -> Tensor | None:
    """The cores that best give the dense outputs on what now comes in, written into the store.

    The best map without limits is found first (ridge regression, pulled towards the dense weight); the cores are its
    projection, in the metrics of inputs and outputs, on what the factors can reach.

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
    reader, writer = (whole(leaf).double().cpu() for leaf in store.sides(member))
    reads = _repeated(reader, cut.tiles if cut.tiled == "in" else 1)
    writes = _repeated(writer, cut.tiles if cut.tiled == "out" else 1)
    seen = writes if metric is None else writes @ damped(metric, DAMPING)
    inner, outer = damped(reads @ moment @ reads.t(), DAMPING), damped(seen @ writes.t(), DAMPING)
    best = torch.linalg.solve(outer, seen @ wanted @ moment @ reads.t())
    best = torch.linalg.solve(inner, best.t()).t()  # (writing ranks, reading ranks)
    bank = store.banks[member.bank]
    cores = _apart(best, cut)
    kept = cores if reads_rows(cut) else cores.transpose(1, 2)
    leaf = whole(store.cores[member.bank])
    leaf.view(bank["slices"], -1, leaf.shape[1]).narrow(0, member.first, cut.tiles).copy_(kept)
    if member.bias is None:
        return None
    return weight @ dense_mean - member.assembled_weight().double().cpu() @ mean


def _repeated(factor: Tensor, tiles: int) -> Tensor:
    """A factor ``(rank, width)`` for every tile: ``(tiles · rank, tiles · width)``."""
    return factor if tiles == 1 else torch.block_diag(*[factor] * tiles)


def _apart(joined: Tensor, cut: Cut) -> Tensor:
    """``(writing ranks, reading ranks)`` of all tiles as ``(tiles, reading rank, writing rank)``."""
    blocks: Sequence[Tensor] = joined.chunk(cut.tiles, dim=1 if cut.tiled == "in" else 0)
    return torch.stack([block.t() for block in blocks])
