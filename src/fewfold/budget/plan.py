"""From a recipe and budgets to one size for every unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fewfold.budget.allocate import Curve, allocate, even
from fewfold.budget.budget import Budget, Limit
from fewfold.budget.cost import CostModel
from fewfold.calibration.statistics import Statistics
from fewfold.errors import BudgetError
from fewfold.methods.base import Unit
from fewfold.methods.registry import method_named
from fewfold.progress import track
from fewfold.surgery.targets import Target, matches


@dataclass(frozen=True)
class Choice:
    """What was decided for one unit.

    :param settings: of the method, or None to leave the unit's targets as they are.
    :param error: the expected error that the allocation reckoned with (0 where nothing was weighed).
    :param store: name of the store that the unit's targets share, if they share one.
    """

    unit: Unit
    settings: Mapping[str, Any] | None
    error: float = 0.0
    store: str = ""


@dataclass(frozen=True)
class Reached:
    """A budget's outcome.

    :param budget: what was asked.
    :param limit: its amount in parameters, bytes, MACs or milliseconds.
    :param reached: what the chosen sizes cost, in the same unit.
    """

    budget: Budget
    limit: float
    reached: float


@dataclass(frozen=True)
class Plan:
    """Every unit's choice, what the budgets came to, and the measured times of a latency budget."""

    choices: list[Choice]
    reached: list[Reached]
    timing: dict[str, Any]


def plan(
    model: nn.Module,
    units: Sequence[Unit],
    budgets: Sequence[Budget],
    weights: Mapping[str, Tensor],
    statistics: Statistics,
    fit: bool = True,
) -> Plan:
    """Settle the settings of every unit.

    :param weights: dense weights by target name (not used where ``fit`` is false).
    :raises BudgetError: if a unit has neither size nor budget, or both, or a budget cannot be reached.
    """
    _check_rivals(units, budgets)
    choices: dict[int, Choice] = {}
    for number, unit in enumerate(units):
        settings = method_named(unit.method).fixed(unit)
        if settings is not None:
            choices[number] = Choice(unit, settings)
    costs = CostModel(model)
    reached = []
    for budget, covered in _coverage(model, units, budgets):
        reached.append(_spend(model, units, budget, covered, choices, costs, weights, statistics, fit))
    for number, unit in enumerate(units):
        settings = method_named(unit.method).unbudgeted(unit) if number not in choices else None
        if settings is not None:
            choices[number] = Choice(unit, settings)
    missing = [unit for number, unit in enumerate(units) if number not in choices]
    if missing:
        further = f" and {len(missing) - 1} more have" if len(missing) > 1 else " has"
        raise BudgetError(
            f"{missing[0].name}{further} no size: give a budget that covers them "
            f"(budget=Budget(bytes='1/4 of {missing[0].targets[0].kind}s')) or fix it "
            f"({type(missing[0].config).__name__}({method_named(missing[0].method).sized_by}=…))"
        )
    timing = costs.timing.report() if costs.timing is not None else {}
    return Plan([choices[number] for number in range(len(units))], reached, timing)


def competing(model: nn.Module, units: Sequence[Unit], budgets: Sequence[Budget]) -> list[Unit]:
    """Units that calibrate nothing, and whose sizes a budget weighs against those of units that are calibrated.

    :raises BudgetError: as of :func:`plan`, where budgets do not fit the units.
    """
    _check_rivals(units, budgets)
    found = []
    free = {number for number, unit in enumerate(units) if method_named(unit.method).fixed(unit) is None}
    for _, covered in _coverage(model, units, budgets):
        chosen = [units[number] for number in covered if number in free]
        free -= set(covered)
        blind = [unit for unit in chosen if method_named(unit.method).calibrates(unit) == "nothing"]
        found += blind if len(blind) < len(chosen) else []
    return found


def _check_rivals(units: Sequence[Unit], budgets: Sequence[Budget]) -> None:
    fixed = all(method_named(unit.method).fixed(unit) is not None for unit in units)
    if fixed and units and (budgets or any(unit.config.budget for unit in units)):
        asked = (list(budgets) or [unit.config.budget for unit in units if unit.config.budget])[0]
        raise BudgetError(
            f"{asked.text!r} has nothing to choose: every size in this recipe is fixed (as in {units[0].name}: "
            f"{dict(method_named(units[0].method).fixed(units[0]) or {})}). Drop the budget, or leave the size open"
        )
    for unit in units:
        if unit.config.budget is not None and method_named(unit.method).fixed(unit) is not None:
            raise BudgetError(f"{unit.name}: the config fixes a size and carries a budget; drop one of the two")


def _coverage(model: nn.Module, units: Sequence[Unit], budgets: Sequence[Budget]) -> list[tuple[Budget, list[int]]]:
    """Which units each budget decides or counts: own budgets first, then parts, then the whole model."""
    covered: list[tuple[Budget, list[int]]] = []
    taken: set[int] = set()
    own: dict[str, tuple[Budget, list[int]]] = {}
    for number, unit in enumerate(units):
        if unit.config.budget is not None:
            own.setdefault(unit.config.budget.text, (unit.config.budget, []))[1].append(number)
            taken.add(number)
    covered.extend(own.values())
    wider = {"all": 1, None: 2}  # come after the parts, and decide what those leave
    for budget in sorted(budgets, key=lambda budget: wider.get(budget.limit.part, 0)):
        members = [number for number, unit in enumerate(units) if covers(budget.limit, unit.targets)]
        if not members:
            raise BudgetError(
                f"budget {budget.text!r} covers no weight that this recipe replaces: its targets are "
                f"{units[0].name} … {units[-1].name}"
            )
        open_sizes = {number for number in members if method_named(units[number].method).fixed(units[number]) is None}
        if open_sizes and open_sizes <= taken:
            rivals = [other.text for other, numbers in covered if open_sizes & set(numbers)]
            raise BudgetError(
                f"budget {budget.text!r} has nothing left to choose: {', '.join(map(repr, rivals))} decides the sizes "
                "of all weights that it covers. A weight follows one budget: keep the tighter one, or name parts that "
                "do not overlap"
            )
        taken |= open_sizes
        covered.append((budget, members))
    return covered


def covers(limit: Limit, targets: Sequence[Target]) -> bool:
    """Whether a budget's part names these targets."""
    if limit.part in (None, "all"):
        return True
    if limit.part in ("linears", "embeddings"):
        return all(target.kind == limit.part[:-1] for target in targets)
    return all(matches(limit.part, target.name) for target in targets)


def _spend(
    model: nn.Module,
    units: Sequence[Unit],
    budget: Budget,
    covered: Sequence[int],
    choices: dict[int, Choice],
    costs: CostModel,
    weights: Mapping[str, Tensor],
    statistics: Statistics,
    fit: bool,
) -> Reached:
    """Choose sizes for the covered units that have none yet."""
    limit, quantity = budget.limit, budget.quantity
    costs.use(limit)
    members = [units[number] for number in covered]
    if limit.fraction:
        amount = limit.amount * sum(costs.dense(quantity, unit) for unit in members)
        rest = 0.0
    else:
        amount = limit.amount
        rest = costs.rest(quantity, units) if limit.part is None else 0.0
        if limit.part is None:  # the whole model also holds units that other budgets decide
            rest += sum(
                costs.choice(quantity, choices[number].unit, choices[number].settings)
                for number in range(len(units))
                if number in choices and number not in covered
            )
    settled = [number for number in covered if number in choices]
    rest += sum(costs.choice(quantity, choices[n].unit, choices[n].settings) for n in settled)
    free = [number for number in covered if number not in choices]
    curves, options, errors = [], [], []
    for number in track(free, "weighing sizes"):
        unit = units[number]
        sizes: list[Mapping[str, Any] | None] = list(method_named(unit.method).sizes(unit))
        error = (
            method_named(unit.method).errors(unit, sizes, weights, statistics)  # type: ignore[arg-type]
            if fit
            else [0.0] * len(sizes)
        )
        if method_named(unit.method).may_stay_dense(unit):
            if costs.choice("bytes", unit, sizes[0]) > costs.dense("bytes", unit):
                sizes, error = [None], [0.0]  # even the smallest takes more than the weight itself
            elif unit.config.stored.is_plain:
                sizes, error = [*sizes, None], [*error, 0.0]
        values = costs.curve(quantity, unit, sizes)
        curves.append(Curve(unit.name, values, error))
        options.append(sizes)
        errors.append(error)
    picked = (allocate if fit else even)(curves, amount - rest, f"budget {budget.text!r}")
    total = rest
    for number, sizes, error, curve, index in zip(free, options, errors, curves, picked, strict=True):
        choices[number] = Choice(units[number], sizes[index], error[index])
        total += curve.costs[index]
    return Reached(budget, amount, total)
