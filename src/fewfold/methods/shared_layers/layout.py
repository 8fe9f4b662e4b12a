"""What a unit of shared layers knows of itself: its group, where its block begins, and how its weights are turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewfold.calibration.statistics import Statistics
from fewfold.errors import RecipeError
from fewfold.methods.base import Unit
from fewfold.methods.shared_layers.align import Alignment
from fewfold.methods.shared_layers.config import SharedLayers
from fewfold.methods.shared_layers.maps import anchor, stepwise_layers
from fewfold.methods.shared_layers.places import Group, Stacks, norms_in, place_of, role_path
from fewfold.methods.shared_layers.turns import Turns
from fewfold.surgery.targets import Target, read_bias

# Whose order the layers of a block take, where it is not that of the layer which it begins with: a mixture's members
# come closer to each other in the first one's.
ALIGNED = {"anchored": "first"}


@dataclass
class Layout:
    """One group's surroundings.

    :param start: the target that the block begins with or that is counted twice, where the config says so; one that it
        begins with may belong to another block.
    :param gains: what each direction of the layers' differences is worth, once that is known.
    """

    group: Group
    start: Target
    alignment: Alignment
    gains: list[Tensor] | None = field(default=None, repr=False)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The group's."""
        return self.group.targets

    def bias(self, target: Target) -> Tensor:
        """The dense bias of a target that has one, ``(out,)`` float64."""
        bias = read_bias(self.alignment.model, target)
        assert bias is not None
        return bias.double().cpu()

    def turns(self, weights: Mapping[str, Tensor]) -> list[Turns]:
        """One a target."""
        return [self.alignment.turns(target, weights) for target in self.targets]

    def weights(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """The targets' weights, turned, float64."""
        turns = self.turns(weights)
        return [turn.weight(weights[target.name]) for turn, target in zip(turns, self.targets, strict=True)]

    def moments(self, statistics: Statistics, weights: Mapping[str, Tensor]) -> list[Tensor] | None:
        """Second moments of the targets' inputs, turned (centred where a bias takes up the mean); None if one lacks."""
        found = []
        for target, turn in zip(self.targets, self.turns(weights), strict=True):
            moments = statistics.input_moments(target)
            if moments is None:
                return None
            found.append(turn.moment(moments.covariance if target.bias else moments.second))
        return found


def units_of(name: str, model: nn.Module, config: SharedLayers, targets: Sequence[Target]) -> list[Unit]:
    """A unit for everything that a block stands for.

    :raises RecipeError: if the map does not fit a stack, or only one stack is there to share across.
    """
    who = f"SharedLayers(map={config.map!r}, blocks={config.blocks!r})"
    stacks = Stacks.of(targets, config.map, config.blocks, who)
    if config.across_stacks and len(stacks.blocks) < 2:
        raise RecipeError(
            f"SharedLayers(across_stacks=True): the chosen weights lie in one stack, {next(iter(stacks.blocks))}; "
            "there is none to share it with"
        )
    starts, turned_to = (_starts(stacks, config, init) for init in (config.init, ALIGNED.get(config.init, config.init)))
    alignment = Alignment(
        model, targets, stacks, turned_to, config.align, config.across_stacks, config.init in ("first", "stepwise")
    )
    everything = [*targets, *(norms_in(model, stacks.layer_names()) if config.shares_norms else [])]
    by_place = {(place_of(target).stack, place_of(target).layer, _path(model, target, config)): target
                for target in everything}  # fmt: skip
    units = []
    for group in stacks.groups(model, everything, config.across_stacks):
        first = group.targets[0]
        stack, layer = starts[place_of(first).stack, group.block]
        start = by_place.get((stack, layer, _path(model, first, config)), first)
        if (start.rows, start.columns, start.bias) != (first.rows, first.columns, first.bias):
            start = first
        units.append(Unit(name, config, group.targets, Layout(group, start, alignment)))
    return units


def _path(model: nn.Module, target: Target, config: SharedLayers) -> str:
    place = place_of(target)
    return role_path(model, place) if config.across_stacks else place.path


def _starts(stacks: Stacks, config: SharedLayers, init: str) -> dict[tuple[str, int], tuple[str, int]]:
    """By stack and block: the layer that it begins with, or is anchored at; across stacks, one layer a block."""
    found: dict[tuple[str, int], tuple[str, int]] = {}
    common: dict[int, tuple[str, int]] = {}
    for stack, blocks in stacks.blocks.items():
        layers, count = sorted(blocks), max(blocks.values()) + 1
        steps = stepwise_layers(len(layers), count)
        for block in range(count):
            members = [place for place, layer in enumerate(layers) if blocks[layer] == block]
            chosen = {"stepwise": steps[block], "anchored": anchor(members, len(layers), block, count)}
            own = (stack, layers[chosen.get(init, members[0])])
            found[stack, block] = common.setdefault(block, own) if config.across_stacks else own
    return found


def mean_of_vectors(vectors: Sequence[Tensor]) -> Tensor:
    """The mean in float64."""
    return torch.stack([vector.double() for vector in vectors]).mean(0)
