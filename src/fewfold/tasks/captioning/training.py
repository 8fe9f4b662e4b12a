"""Train a captioner from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewfold.measure.modes import evaluating
from fewfold.pretrain.checkpoints import identity_of
from fewfold.pretrain.settings import PretrainSettings
from fewfold.pretrain.training import pretrain
from fewfold.tasks.captioning.batching import IGNORED, Examples, collate
from fewfold.tasks.captioning.images import Captions
from fewfold.training.history import TrainingHistory

BATCH = 64  # of held-out captions


def train_captioner(
    model: nn.Module, tokenizer: Any, train: Captions, held_out: Captions, settings: PretrainSettings, *,
    folder: Path, resume: bool = True,
) -> TrainingHistory:  # fmt: skip
    """Train all parameters of a captioner, in place.

    :param model: Such as `build_captioner` makes.
    :param tokenizer: Of the captions.
    :param train: Images to learn from; moved a little and mirrored at random.
    :param held_out: Images that the loss is measured on.
    :param settings: How to train.
    :param folder: For checkpoints.
    :param resume: Go on from the last one.
    :return: What was done; losses are nats a token.
    :raises FewfoldError: As of `pretrain`.
    """
    examples, judged = Examples(train, tokenizer), Examples(held_out, tokenizer)
    identity = {**identity_of(model), "data": [train.source, len(train), held_out.source, len(held_out)]}
    return pretrain(
        model, len(examples), examples.changed, collate, settings, folder=folder, resume=resume, identity=identity,
        held_out=lambda trained: held_out_loss(trained, judged), tokens=examples.mean_tokens,
    )  # fmt: skip


def held_out_loss(model: nn.Module, examples: Examples) -> float:
    """Mean cross-entropy a token, in nats."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(examples), BATCH):
            places = range(start, min(start + BATCH, len(examples)))
            batch = {name: value.to(device) for name, value in collate([examples.plain(p) for p in places]).items()}
            tokens = int((batch["labels"] != IGNORED).sum())
            total += float(model(**batch).loss) * tokens
            count += tokens
    return total / count
