"""Fit what one layer has to itself anew, with its block as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from fewfold.calibration.statistics import Drift
from fewfold.linalg.low_rank import LowRankFactors, calibrated_spectrum
from fewfold.linalg.regression import ridge_solution
from fewfold.linalg.round_factors import balance
from fewfold.methods.factors import matrix_of
from fewfold.methods.shared_layers.modules import SharedLinear
from fewfold.methods.shared_layers.turns import Turns
from fewfold.stored.kept import Kept

RIDGE = 0.01  # pull towards the dense weight, as a share of the mean input energy


@torch.no_grad()
def refit(module: SharedLinear, weight: Tensor, bias: Tensor | None, turns: Turns, drift: Drift) -> None:
    """The difference and the bias that best give the dense outputs on what now comes in.

    The best map without limits is found first (ridge regression, pulled towards the dense weight); the difference is
    what it leaves over the block, cut to its rank in the metric of the inputs (reduced-rank regression).

    :param weight: the dense weight, ``(out, in)``, not turned.
    :param bias: the dense bias, not turned.
    :param turns: of this layer; what comes in is turned already.
    :param drift: moments of the dense model's inputs and of the present ones.
    """
    dense = turns.outputs(weight)  # outputs as they are now, from inputs as the dense model has them
    mean, dense_mean = drift.total / drift.count, drift.dense_total / drift.count
    moment, cross = drift.product / drift.count, drift.cross / drift.count
    if bias is not None:
        moment, cross = moment - torch.outer(mean, mean), cross - torch.outer(dense_mean, mean)
    if module.rank and module.down is not None and module.up is not None:
        wanted, _ = ridge_solution(moment, dense @ cross, turns.weight(weight), RIDGE)
        block = module.store(None).double().cpu()
        spectrum = calibrated_spectrum(wanted - block, moment)
        factors = balance(LowRankFactors(spectrum.up[:, : module.rank], spectrum.down[: module.rank]))
        for leaf, tensor in ((module.down, factors.down), (module.up, factors.up)):
            matrix_of(leaf).copy_(tensor)
            if isinstance(leaf, Kept):
                leaf.round_()
    if bias is not None and module.bias is not None:
        found = module.assembled_weight().double().cpu()
        module.bias.copy_(turns.outputs(bias.cpu()) + dense @ dense_mean - found @ mean)
