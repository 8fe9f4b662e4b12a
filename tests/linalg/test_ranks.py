import itertools

import numpy as np
import pytest
import torch

from fewfold.linalg.ranks import allocate_ranks


def test_matches_brute_force_when_costs_are_equal():
    generator = np.random.default_rng(0)
    gains = {name: torch.tensor(np.sort(generator.random(5))[::-1].copy()) for name in "abc"}
    costs = dict.fromkeys("abc", 10)
    ranks = allocate_ranks(gains, costs, 85, floor=1)

    def kept(choice):
        return sum(float(gains[name][:rank].sum()) for name, rank in zip("abc", choice, strict=True))

    choices = [choice for choice in itertools.product(range(1, 6), repeat=3) if 10 * sum(choice) <= 85]
    assert kept(ranks.values()) == pytest.approx(max(map(kept, choices)))


def test_dear_directions_must_gain_more():
    gains = {"cheap": torch.tensor([1.0, 0.5, 0.4]), "dear": torch.tensor([1.9, 1.2, 0.7])}
    assert allocate_ranks(gains, {"cheap": 1, "dear": 2}, 5, floor=0) == {"cheap": 1, "dear": 2}


def test_floor_bound_and_multiple():
    gains = {"a": torch.linspace(1, 0.5, 16), "b": torch.linspace(1e-3, 1e-4, 16), "short": torch.ones(2)}
    ranks = allocate_ranks(gains, dict.fromkeys(gains, 1), 30, floor=4, multiple=4)
    assert ranks == {"a": 16, "b": 12, "short": 2}
    ranks = allocate_ranks(gains, dict.fromkeys(gains, 1), 1000)
    assert ranks == {"a": 16, "b": 16, "short": 2}


def test_budget_too_small_is_named():
    with pytest.raises(ValueError, match="budget=3"):
        allocate_ranks({"a": torch.ones(4)}, {"a": 2}, 3, floor=2)
