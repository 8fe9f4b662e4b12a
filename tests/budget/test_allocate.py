import itertools
import random

import pytest

from fewfold.budget.allocate import Curve, allocate, even, lower_hull
from fewfold.errors import BudgetError


def convex_curve(rng, name):
    sizes = rng.randint(2, 5)
    costs = list(itertools.accumulate(rng.randint(1, 9) for _ in range(sizes)))
    slopes = sorted((rng.random() for _ in range(sizes - 1)), reverse=True)
    errors = [20.0]
    for slope, (low, high) in zip(slopes, itertools.pairwise(costs), strict=True):
        errors.append(errors[-1] - slope * (high - low))
    return Curve(name, costs, errors)


def best_by_brute_force(curves, limit):
    choices = itertools.product(*(range(len(curve.costs)) for curve in curves))
    fits = [c for c in choices if sum(v.costs[i] for v, i in zip(curves, c, strict=True)) <= limit]
    return min(sum(v.errors[i] for v, i in zip(curves, c, strict=True)) for c in fits)


@pytest.mark.parametrize("seed", range(30))
def test_keeps_the_limit_and_comes_near_the_best(seed):
    rng = random.Random(seed)
    curves = [convex_curve(rng, str(number)) for number in range(4)]
    low, high = sum(c.costs[0] for c in curves), sum(c.costs[-1] for c in curves)
    limit = rng.uniform(low, high)
    chosen = allocate(curves, limit, "budget")
    spent = sum(c.costs[i] for c, i in zip(curves, chosen, strict=True))
    error = sum(c.errors[i] for c, i in zip(curves, chosen, strict=True))
    assert spent <= limit
    # the greedy Lagrangian walk is at most one step of one curve away from the optimum
    largest_step = max(a - b for c in curves for a, b in itertools.pairwise(c.errors))
    assert error <= best_by_brute_force(curves, limit) + largest_step


def test_exact_where_steps_are_equal():
    curves = [Curve("a", [1, 2, 3], [9, 4, 1]), Curve("b", [1, 2, 3], [9, 8, 7.5])]
    assert allocate(curves, 4, "budget") == [2, 0]
    assert allocate(curves, 5, "budget") == [2, 1]


def test_hull_skips_points_above_it():
    assert lower_hull([1, 2, 3, 4], [10, 9, 3, 3]) == [0, 2]


def test_a_jump_that_pays_is_taken_although_small_steps_do_not():
    curves = [Curve("a", [1, 2, 10], [5, 4.99, 0]), Curve("b", [1, 2], [1, 0.9])]
    assert allocate(curves, 11, "budget") == [2, 0]


def test_impossible_says_what_the_least_is():
    with pytest.raises(BudgetError, match=r"cost 4, the limit leaves 3"):
        allocate([Curve("a", [2], [0]), Curve("b", [2], [0])], 3, "budget 'x'")


def test_even_gives_everyone_the_same_share():
    curves = [Curve("a", list(range(1, 101)), [0] * 100), Curve("b", list(range(10, 1001, 10)), [0] * 100)]
    first, second = even(curves, 550, "budget")
    assert first == second
    assert curves[0].costs[first] + curves[1].costs[second] == 550


def test_even_minds_costs_that_do_not_rise_with_the_place():
    curve = Curve("coded", [30.0, 10.0, 20.0], [0.0] * 3)
    assert even([curve, curve], 25.0, "it") == [1, 1]
    assert even([curve, curve], 45.0, "it") == [2, 2]
    assert even([curve, curve], 60.0, "it") == [0, 0]
    with pytest.raises(BudgetError, match="20"):
        even([curve, curve], 19.0, "it")
