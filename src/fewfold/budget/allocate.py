"""Choose one size for every unit so that a budget is kept and the summed error is least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fewfold.errors import BudgetError


@dataclass(frozen=True)
class Curve:
    """The sizes of one unit.

    :param name: for errors.
    :param costs: in rising order, in the budget's unit.
    :param errors: expected error at each cost.
    """

    name: str
    costs: Sequence[float]
    errors: Sequence[float]


def lower_hull(costs: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Indices of the lower convex hull of ``(cost, error)``, from the cheapest point to the least error."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], errors[i]))
    hull: list[int] = []
    for index in order:
        if hull and costs[index] == costs[hull[-1]]:
            continue
        if hull and errors[index] >= errors[hull[-1]]:
            continue
        while len(hull) >= 2 and _slope(costs, errors, hull[-2], index) <= _slope(costs, errors, hull[-2], hull[-1]):
            hull.pop()
        hull.append(index)
    return hull


def _slope(costs: Sequence[float], errors: Sequence[float], first: int, second: int) -> float:
    return (errors[second] - errors[first]) / (costs[second] - costs[first])


def allocate(curves: Sequence[Curve], limit: float, what: str) -> list[int]:
    """Pick an index a curve: total cost within ``limit``, total error least.

    Exact on the convex hulls (steps taken in order of error saved a unit of cost), then what is left of the limit
    goes to single steps that still fit.

    :param what: the budget in words, for the error.
    :raises BudgetError: if even the cheapest sizes exceed the limit; it says what they cost.
    """
    hulls = [lower_hull(curve.costs, curve.errors) for curve in curves]
    chosen = [hull[0] for hull in hulls]
    spent = sum(curve.costs[index] for curve, index in zip(curves, chosen, strict=True))
    if spent > limit * (1 + 1e-9):
        raise BudgetError(
            f"{what} cannot be reached: the smallest sizes of its {len(curves)} targets already cost "
            f"{spent:,.6g}, the limit leaves {max(limit, 0):,.6g}. Ask for more, cover more targets, or use a "
            "smaller stored_dtype"
        )
    steps = sorted(
        (_slope(curve.costs, curve.errors, first, second), number, place + 1)
        for number, (curve, hull) in enumerate(zip(curves, hulls, strict=True))
        for place, (first, second) in enumerate(pairwise(hull))
    )
    stopped: set[int] = set()
    for _, number, place in steps:
        if number in stopped:
            continue
        curve, target = curves[number], hulls[number][place]
        extra = curve.costs[target] - curve.costs[chosen[number]]
        if spent + extra > limit:
            stopped.add(number)
            continue
        chosen[number], spent = target, spent + extra
    return _fill(curves, chosen, limit - spent)


def _fill(curves: Sequence[Curve], chosen: list[int], left: float) -> list[int]:
    """Spend what is left: repeatedly the affordable step that saves the most error."""
    while True:
        best: tuple[float, int, int, float] | None = None
        for number, curve in enumerate(curves):
            cost, error = curve.costs[chosen[number]], curve.errors[chosen[number]]
            for index, (other_cost, other_error) in enumerate(zip(curve.costs, curve.errors, strict=True)):
                extra, saved = other_cost - cost, error - other_error
                if 0 < extra <= left and saved > 0 and (best is None or saved > best[0]):
                    best = (saved, number, index, extra)
        if best is None:
            return chosen
        _, number, index, extra = best
        chosen[number], left = index, left - extra


def even(curves: Sequence[Curve], limit: float, what: str) -> list[int]:
    """Pick the same share of each curve's largest cost: for structures that are trained, not fitted."""
    allocate([Curve(c.name, [min(c.costs)], [0.0]) for c in curves], limit, what)
    orders = [sorted(range(len(curve.costs)), key=curve.costs.__getitem__) for curve in curves]
    low, high = 0.0, 1.0
    chosen = [order[0] for order in orders]
    for _ in range(60):
        share = (low + high) / 2
        trial = [
            next((i for i in reversed(order) if curve.costs[i] <= share * curve.costs[order[-1]]), order[0])
            for curve, order in zip(curves, orders, strict=True)
        ]
        if sum(curve.costs[i] for curve, i in zip(curves, trial, strict=True)) <= limit:
            low, chosen = share, trial
        else:
            high = share
    return chosen
