"""Learning rates that follow the size of a tensor's numbers."""

import pytest
import torch
from torch import nn

from fewfold.training.rates import parameter_groups, rate_factors


def model_of(**sizes):
    """A parameter for every size of its numbers, half of them negative."""
    return nn.ParameterDict({name: torch.tensor([[size, -size], [size, -size]]) for name, size in sizes.items()})


def test_rates_grow_with_the_numbers():
    model = model_of(none=0.0, small=1e-4, usual=0.05, near=0.059, twice=0.1, nearly=0.11, large=0.8, huge=9.0)
    assert rate_factors(model) == pytest.approx({"twice": 2.0, "nearly": 2.0, "large": 16.0, "huge": 16.0})
    assert rate_factors(model_of(between=0.14)) == pytest.approx({"between": 2**1.5})
    model["large"].requires_grad_(False)
    assert "large" not in rate_factors(model)


def test_gains_of_norms_keep_the_rate():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    nn.init.constant_(model[0].weight, 0.2)
    assert rate_factors(model) == pytest.approx({"0.weight": 4.0})


def test_every_parameter_is_in_one_group():
    model = model_of(a=0.01, b=0.1, c=0.1, d=0.8)
    groups = parameter_groups([*model.named_parameters()], 0.5, rate_factors(model), 0.1, {"a", "b"})
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in groups for name, parameter in model.named_parameters()
        if any(parameter is other for other in group["params"])
    }  # fmt: skip
    assert found == {"a": (0.5, 0.1), "b": (1.0, 0.1), "c": (1.0, 0.0), "d": (8.0, 0.0)}
    assert sum(len(group["params"]) for group in groups) == 4
    assert groups[0]["lr"] == 0.5  # that of reports
