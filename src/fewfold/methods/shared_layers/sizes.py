"""What units of shared layers begin with, and what every rank of their differences is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fewfold.calibration.statistics import Statistics
from fewfold.linalg.shared_mean import difference_spectra, mean_weight
from fewfold.methods.base import Unit
from fewfold.methods.energy import output_energy
from fewfold.methods.shared_layers.config import SharedLayers
from fewfold.methods.shared_layers.layout import Layout
from fewfold.stored import StoredDtype

# Share of the inputs' mean energy that pulls the block that is begun with towards the plain mean: where the inputs say
# little, the weighted mean extrapolates, and a shared model's inputs are not the dense model's.
START_DAMPING = 10.0
# Share of the mean that is the layer at which a block is anchored. An even mean is none of the layers: one that leans
# towards one of them is better before training and after it. More than this is worse before, and little better after.
ANCHOR = 2 / 3


def config_of(unit: Unit) -> SharedLayers:
    """The unit's config."""
    assert isinstance(unit.config, SharedLayers)
    return unit.config


def layout_of(unit: Unit) -> Layout:
    """The unit's surroundings."""
    assert isinstance(unit.layout, Layout)
    return unit.layout


def is_norm(unit: Unit) -> bool:
    """Whether the unit is a norm."""
    return unit.targets[0].kind == "norm"


def full_rank(unit: Unit) -> int:
    """The rank at which a difference loses nothing."""
    return min(unit.targets[0].rows, unit.targets[0].columns)


def difference_form(config: SharedLayers) -> StoredDtype:
    """How differences are kept."""
    return StoredDtype(config.difference_dtype or config.stored_dtype, config.group_size)


def ranks_of(unit: Unit, settings: Mapping[str, Any]) -> list[int]:
    """Each layer's rank; a total that is not settled yet, spread evenly."""
    if "ranks" in settings:
        return list(settings["ranks"])
    total, count = settings["total"], len(unit.targets)
    return [total // count + (number < total % count) for number in range(count)]


def moments_of(unit: Unit, weights: Mapping[str, Tensor], statistics: Statistics) -> list[Tensor] | None:
    """Second moments of the inputs, where the config asks for them and all are known."""
    return None if config_of(unit).weighting == "none" else layout_of(unit).moments(statistics, weights)


def start_of(
    unit: Unit, own: Sequence[Tensor], moments: Sequence[Tensor] | None, weights: Mapping[str, Tensor], strict: bool
) -> Tensor:
    """The block before any difference is fitted; only one that stays without (``strict``) leans towards its anchor."""
    layout, init = layout_of(unit), config_of(unit).init
    if init == "mean":
        return mean_weight(own)
    if init == "weighted" or (init == "anchored" and not strict):
        return mean_weight(own, moments, START_DAMPING)
    if init == "anchored":
        most = (len(own) - 1) * ANCHOR / (1 - ANCHOR) or 1.0
        counts = [most if target.name == layout.start.name else 1.0 for target in layout.targets]
        return mean_weight(own, moments, START_DAMPING, counts)
    return weights[layout.start.name].double()  # others are turned towards it as it is


def gains_of(unit: Unit, weights: Mapping[str, Tensor], statistics: Statistics) -> list[Tensor]:
    """What every direction of every layer's difference is worth, in the unit of the statistics."""
    layout = layout_of(unit)
    if layout.gains is None:
        own, moments = layout.weights(weights), moments_of(unit, weights, statistics)
        start = start_of(unit, own, moments, weights, strict=False)
        layout.gains = []
        spectra = difference_spectra(own, start, moments)
        for number, (target, weight, spectrum) in enumerate(zip(layout.targets, own, spectra, strict=True)):
            seen = weight if moments is None else weight @ moments[number]
            shares = spectrum.gains.clamp_min(0) / max(float((seen * weight).sum()), 1e-30)
            layout.gains.append(shares * output_energy(target, weights[target.name], statistics))
    return layout.gains
