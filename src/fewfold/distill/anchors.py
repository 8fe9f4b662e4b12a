"""Texts that all others are compared with: the teacher says what they mean before training begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fewfold.distill.losses import mean_pooled
from fewfold.distill.outputs import Needs
from fewfold.distill.stacks import Stack
from fewfold.distill.teachers import LiveTeacher
from fewfold.distill.tokens import TokenisedTexts
from fewfold.progress import track

BATCH = 64


def anchor_vectors(teacher: Any, stack: Stack, tokens: TokenisedTexts, count: int) -> Tensor:
    """Unit vectors of texts that stand evenly spaced in the data.

    :param teacher: the dense model.
    :param stack: whose last hidden states are averaged, text by text.
    :param count: how many texts; all, where there are fewer.
    :return: ``(anchors, width)``, fp32.
    """
    needs, device = Needs(last=True), next(teacher.parameters()).device
    live = LiveTeacher(teacher, Needs(encoder=needs) if stack.name else needs)
    places = np.linspace(0, len(tokens) - 1, min(count, len(tokens))).round().astype(int)
    places = places[np.argsort(tokens.lengths[places], kind="stable")]
    found = []
    for start in track(range(0, len(places), BATCH), "running the teacher over the anchors"):
        batch = {name: part.to(device) for name, part in tokens.batch(places[start : start + BATCH].tolist()).items()}
        states = stack.state(live(batch), stack.depths[1], 1)
        found.append(F.normalize(mean_pooled(states, stack.mask(batch)), dim=-1))
    return torch.cat(found)
