"""Optimizers and what the learning rate is at each step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from fewfold.lm.config import LMTraining
from fewfold.training.optimizer import adam


def make_optimizer(parameters: Iterable[nn.Parameter], config: LMTraining) -> torch.optim.Optimizer:
    """The optimizer that the settings name; Adam's decay is part of the gradient, AdamW's is not."""
    chosen = [parameter for parameter in parameters if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(chosen, lr=config.learning_rate, weight_decay=config.weight_decay)
    return adam(
        chosen, config.optimizer == "adamw", lr=config.learning_rate, betas=config.betas,
        weight_decay=config.weight_decay,
    )  # fmt: skip


def rate_factor(config: LMTraining, fraction: float, lowered: int = 0) -> float:
    """The share of the peak rate: warm-up, then cosine, linear, constant, or lowered where there was no gain.

    :param fraction: how far the run is, 0…1.
    :param lowered: how often a plateau was met.
    :return: 0…1.
    """
    if fraction < config.warmup:
        return fraction / config.warmup
    left = (1 - fraction) / (1 - config.warmup)
    if config.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    if config.schedule == "linear":
        return left
    return config.decay**lowered if config.schedule == "plateau" else 1.0


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters one rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
