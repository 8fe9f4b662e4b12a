"""From a recipe to units: which targets each config takes, with its overrides applied."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from torch import nn

from fewfold.errors import RecipeError, TargetError
from fewfold.methods.base import MethodConfig, Unit, parse_layers
from fewfold.methods.registry import method_of
from fewfold.recipe import Recipe
from fewfold.surgery.replace import Replaced
from fewfold.surgery.roles import model_width
from fewfold.surgery.targets import Target, describe_names, find_targets, matches, select, split_fused


def find_units(model: nn.Module, recipe: Recipe) -> list[Unit]:
    """Every unit of a recipe, in its order. The first config that names a target takes it.

    :raises TargetError: if a pattern names nothing that can be replaced.
    :raises RecipeError: if a value does not fit a target.
    """
    targets = find_targets(model, operators=True)
    width = model_width(targets)
    taken: dict[str, tuple[str, set[str]]] = {}  # by module: the method that took it, and which parts
    units: list[Unit] = []
    for config in recipe.methods:
        method = method_of(config)
        served = [t for t in targets if t.kind in method.kinds]
        wanted = method.takes(config, _chosen(model, served, config))
        chosen = [t for t in wanted if _is_free(t, method.name, taken)]
        if not chosen and config.targets in ("rest", ["rest"]) and len(recipe.methods) > 1:
            continue  # bodies without poolers and positions leave nothing
        if not chosen:
            raise TargetError(
                f"{type(config).__name__}(targets={config.targets!r}) has no target left: earlier configs of the "
                "recipe take all of them; put the narrower config first"
            )
        for target in chosen:
            taken.setdefault(target.module, (method.name, set()))[1].add(target.name)
        for settings, group in _grouped(config, chosen):
            new = method.units_in(model, settings, group, width)
            for unit in new:
                method.check(unit)
            units.extend(new)
    return units


def _is_free(target: Target, method: str, taken: dict[str, tuple[str, set[str]]]) -> bool:
    """Whether no earlier config has a target; parts of one fused projection may go to several configs of one method."""
    owner, names = taken.get(target.module, (method, set()))
    return (
        owner == method and target.module not in names and not (names if target.part is None else target.name in names)
    )


def _chosen(model: nn.Module, targets: list[Target], config: MethodConfig) -> list[Target]:
    patterns = [config.targets] if isinstance(config.targets, str) else config.targets
    if not patterns:
        raise RecipeError(f"{type(config).__name__}(targets=[]) names nothing; {describe_names(targets)}")
    wanted: dict[str, Target] = {}
    for pattern in patterns:
        split = (
            [part for target in targets for part in split_fused(model, target)] if config.fused == "split" else targets
        )
        for target in select(model, split, pattern):
            wanted[target.name] = target
        if pattern in ("linears", "embeddings", "all", "rest"):
            done = [t for t in wanted.values() if isinstance(model.get_submodule(t.module), Replaced)]
            if len(done) < len(
                wanted
            ):  # compressing further: what is compressed already stays, unless it is all there is
                wanted = {name: t for name, t in wanted.items() if t not in done}
    for pattern in config.exclude:
        # a pooler that is left out anyway may be excluded too; what no weight is called is a mistake
        if not any(matches(pattern, name) for name in [*wanted, *(target.name for target in targets)]):
            raise TargetError(f"exclude={pattern!r} names no weight of this model; {describe_names(targets)}")
        wanted = {name: target for name, target in wanted.items() if not matches(pattern, name)}
    if config.layers is not None:
        layers = parse_layers(config.layers)
        present = sorted({t.layer for t in wanted.values() if t.layer is not None})
        wanted = {name: target for name, target in wanted.items() if target.layer in layers}
        if not wanted:
            raise TargetError(f"layers={config.layers!r} leaves no target: the chosen ones lie in layers {present}")
    if not wanted and "rest" not in patterns:
        raise TargetError(f"exclude={config.exclude!r} leaves no target of {config.targets!r}")
    order = {target.module: number for number, target in enumerate(targets)}
    return sorted(wanted.values(), key=lambda t: (order[t.module], t.part.start if t.part else 0))


def _grouped(config: MethodConfig, targets: list[Target]) -> list[tuple[MethodConfig, list[Target]]]:
    """Targets by the config that holds for them, overrides applied."""
    groups: dict[str, tuple[MethodConfig, list[Target]]] = {}
    used: set[str] = set()
    for target in targets:
        values: dict[str, Any] = {}
        for pattern, changes in config.overrides.items():
            if matches(pattern, target.name):
                values.update(changes)
                used.add(pattern)
        settings = config if not values else _overridden(config, values, target)
        groups.setdefault(repr(sorted(values.items())), (settings, []))[1].append(target)
    unused = [pattern for pattern in config.overrides if pattern not in used]
    if unused:
        raise TargetError(f"overrides name {unused[0]!r}, which matches no chosen target; {describe_names(targets)}")
    return list(groups.values())


def _overridden(config: MethodConfig, values: dict[str, Any], target: Target) -> MethodConfig:
    try:
        return type(config)(**{**{name: value for name, value in config if name != "overrides"}, **values})
    except ValidationError as error:
        problem = error.errors()[0]
        raise RecipeError(
            f"overrides for {target.name}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        ) from None
