"""Fused Adam against its formula in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from fewfold.training.optimizer import adam

RATE, BETAS, EPSILON, DECAY = 0.05, (0.8, 0.9), 1e-3, 0.2


def by_formula(weights, gradients, decoupled):
    """Kingma and Ba (2015), algorithm 1; with Loshchilov and Hutter's decay where it is decoupled."""
    weights, first, second = weights.astype(np.float64), 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        if decoupled:
            weights = weights * (1 - RATE * DECAY)
        else:
            gradient = gradient + DECAY * weights
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        share = first / (1 - BETAS[0] ** step)
        weights = weights - RATE * share / (np.sqrt(second / (1 - BETAS[1] ** step)) + EPSILON)
    return weights


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("grouped", [True, False])
def test_steps_are_adams(decoupled, grouped):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(5, 7)), rng.normal(size=(4, 5, 7))
    weight = nn.Parameter(torch.tensor(start, dtype=torch.float32))
    given = [{"params": [weight], "weight_decay": DECAY}] if grouped else iter([weight])
    optimizer = adam(given, decoupled, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=9.0 if grouped else DECAY)
    assert optimizer.defaults["fused"]
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), by_formula(start, gradients, decoupled), rtol=1e-5, atol=1e-6)


def test_where_there_is_no_fused_pass_it_is_the_plain_one():
    assert not adam([nn.Parameter(torch.ones(2, device="meta"))], lr=0.1).defaults["fused"]
