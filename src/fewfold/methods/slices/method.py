"""What the methods across layers do alike: groups as units, and modules that point at one store."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from fewfold.assembled import Assembled
from fewfold.calibration.statistics import Statistics
from fewfold.errors import RecipeError
from fewfold.linalg.tucker import Stack, decompose
from fewfold.methods.base import Method, MethodConfig, Records, Unit
from fewfold.methods.slices.config import SliceConfig
from fewfold.methods.slices.layout import Cut, Group, Side, group_targets, orientations, oriented
from fewfold.methods.slices.metrics import slices_of, weigh
from fewfold.methods.slices.modules import SlicedLinear, SliceStore
from fewfold.store import Store
from fewfold.stored import StoredDtype
from fewfold.surgery.roles import family_of
from fewfold.surgery.targets import Target

PROBE_SLICES = 48  # slices that orientations are compared on


class SliceMethod(Method):
    """Base of the methods whose stores hold slices of many layers' weights."""

    def units(self, config: MethodConfig, targets: Sequence[Target], width: int) -> list[Unit]:
        """One unit a group of equal slices (one for all, where they are coupled)."""
        assert isinstance(config, SliceConfig)
        table = next((target for target in targets if target.kind != "linear"), None)
        if table is not None:
            raise RecipeError(
                f"{type(config).__name__}(targets={config.targets!r}): {table.name} is a table; slices are cut from "
                "linear maps. Use targets='linears', and another method for the embeddings"
            )
        groups = group_targets(targets, width, tile=config.tile, apart=config.apart, depth_groups=config.depth_groups)
        return [Unit(self.name, config, group.targets, (group,)) for group in groups]

    def calibrates(self, unit: Unit) -> Literal["nothing", "inputs", "inputs and gradients"]:
        """As the config's weighting says."""
        weighting = getattr(unit.config, "weighting", "none")
        if weighting == "none":
            return "nothing"
        return "inputs" if weighting == "inputs" else "inputs and gradients"

    @abstractmethod
    def store_settings(self, unit: Unit, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the store is rebuilt from."""

    def settle(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> Mapping[str, Any]:
        """Adds how each family lies."""
        return {**settings, "rows": self.rows(unit, weights, statistics)}

    def rows(self, unit: Unit, weights: Mapping[str, Tensor], statistics: Statistics) -> dict[str, Side]:
        """The orientation of every family: as the config says, or what leaves the smallest error."""
        config = slice_config(unit)
        found: dict[str, Side] = {}
        for group in groups_of(unit):
            named = orientations(group)
            if config.orientation != "auto" or getattr(config, "coupled", False):
                found.update(named["residual" if config.orientation == "auto" else config.orientation])
            else:
                found.update(_best_orientation(unit, group, weights, statistics))
        return found

    def records(self, unit: Unit, settings: Mapping[str, Any]) -> Records:
        """Where each target's slices stand in its bank."""
        targets: dict[str, dict[str, Any]] = {}
        for group in groups_of(unit):
            cuts, first = oriented(group, settings.get("rows", {})), group.first_slices()
            for target in group.targets:
                cut = cuts[target.name]
                targets[target.name] = {
                    "bank": group.name, "first": first[target.name], "tiles": cut.tiles, "tiled": cut.tiled,
                    "rows": cut.rows,
                }  # fmt: skip
        return Records(targets, self.store_settings(unit, settings))

    def build(
        self, target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
    ) -> Assembled:
        """An empty module that points at the slices of ``store``."""
        if not isinstance(store, SliceStore):
            raise ValueError("the store that it is assembled from is missing")
        if set(settings) != {"bank", "first", "tiles", "tiled", "rows"}:
            raise ValueError("its settings are bank, first, tiles, tiled and rows")
        cut = Cut(settings["tiles"], settings["tiled"], settings["rows"])
        store.check_member(target, settings["bank"], settings["first"], cut)
        return SlicedLinear(
            target.name, target.columns, target.rows, target.bias, store, settings["bank"], settings["first"], cut,
            family_of(target),
        )  # fmt: skip


def slice_config(unit: Unit) -> SliceConfig:
    """The unit's config."""
    assert isinstance(unit.config, SliceConfig)
    return unit.config


def groups_of(unit: Unit) -> tuple[Group, ...]:
    """The unit's groups."""
    groups: tuple[Group, ...] = unit.layout
    return groups


def _best_orientation(
    unit: Unit, group: Group, weights: Mapping[str, Tensor], statistics: Statistics
) -> dict[str, Side]:
    """Compare the named orientations, then flips of single families, by the error that two shared factors leave."""
    named = orientations(group)
    rows, columns = group.shape
    if rows != columns:
        return named["published"]
    layers = sorted({target.layer or 0 for target in group.targets})
    per_layer = max(1, group.count // len(layers))
    step = max(1, -(-len(layers) * per_layer // PROBE_SLICES))
    kept = set(layers[step // 2 :: step]) or set(layers)
    probe = [target for target in group.targets if (target.layer or 0) in kept]
    rank = _probe_rank(unit.config, rows)
    weighting, normalise = getattr(unit.config, "weighting", "none"), getattr(unit.config, "normalise", True)

    def error(candidate: Mapping[str, Side]) -> float:
        cuts = oriented(group, candidate)
        if weighting == "none" and not normalise:
            seen = slices_of(probe, cuts, weights)
        else:
            weighed = weigh(probe, cuts, weights, statistics, weighting, normalise)
            seen = [weighed.seen(number) for number in range(len(weighed))]
        return decompose([Stack(seen, "left", "right")], {"left": rank, "right": rank}, sweeps=0).error

    scored = {repr(sorted(named[name].items())): named[name] for name in ("published", "residual")}
    best, lowest = min(((side, error(side)) for side in scored.values()), key=lambda pair: pair[1])
    for family in group.families[:-1]:  # all flipped together is the same again: the last one stays
        flipped: dict[str, Side] = {**best, family: "out" if best[family] == "in" else "in"}
        found = error(flipped)
        if found < lowest * (1 - 1e-6):
            best, lowest = flipped, found
    return best


def _probe_rank(config: MethodConfig, width: int) -> int:
    rank = getattr(config, "rank", None)
    if isinstance(rank, tuple):
        rank = max(rank)
    return min(width, rank) if rank else max(1, width // 4)
