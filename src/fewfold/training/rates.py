"""How large steps a tensor takes: factors and sub-vectors hold larger numbers than weights, and need larger ones."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

RATES = ("equal", "by_size")
USUAL = 0.05  # the root mean square of a dense weight's numbers, for which learning rates are given
LARGEST = 16.0


@torch.no_grad()
def rate_factors(student: nn.Module) -> dict[str, float]:
    """What a tensor's learning rate is multiplied by: 1 up to the usual size of numbers, then in proportion to it.

    As Adafactor's relative steps (Shazeer and Stern 2018, section 8), of the numbers before training. Half powers of
    two, so that there are few different ones. Vectors keep the rate: gains of norms are near 1 in every model.

    :return: by the parameter's name, for those that are not 1.
    """
    found = {}
    for name, parameter in student.named_parameters():
        if parameter.ndim < 2:
            continue
        size = float(parameter.float().square().mean().sqrt()) / USUAL
        factor = 2 ** (round(2 * math.log2(size)) / 2) if size > 1 and math.isfinite(size) else 1.0
        if parameter.requires_grad and factor > 1:
            found[name] = min(factor, LARGEST)
    return found


def parameter_groups(
    named: list[tuple[str, nn.Parameter]], rate: float, factors: Mapping[str, float], decay: float, decays: set[str]
) -> list[dict[str, Any]]:
    """An optimizer's groups: parameters of one learning rate and one weight decay each.

    :param factors: of :func:`rate_factors`, by these names.
    :param decays: names of those that decay.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    groups[True, 1.0], groups[False, 1.0] = [], []
    for name, parameter in named:
        groups[name in decays, factors.get(name, 1.0)].append(parameter)
    return [
        {"params": found, "weight_decay": decay if decaying else 0.0, "lr": rate * factor}
        for (decaying, factor), found in sorted(groups.items(), key=lambda item: (not item[0][0], item[0][1]))
    ]
