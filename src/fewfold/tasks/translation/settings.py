"""How a translation model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fewfold.errors import TaskError
from fewfold.training.frequencies import Start
from fewfold.training.neighbours import Tables

Schedule = Literal["cosine", "inverse_sqrt"]


@dataclass(frozen=True)
class TranslationTraining:
    """Adam on cross-entropy with smoothed labels, batches of like length.

    :param steps: Optimizer steps.
    :param batch_tokens: Tokens of a batch's larger side, padding included.
    :param learning_rate: Its peak.
    :param schedule: After a linear rise over `warmup` steps: "cosine" falls to 0 at the last step, "inverse_sqrt"
        as one over the square root of the steps (Vaswani et al. 2017).
    :param warmup: Steps in which the learning rate rises.
    :param label_smoothing: Share of a label's weight that is spread over the vocabulary (Szegedy et al. 2016).
    :param weight_decay: Of matrices, decoupled (AdamW).
    :param max_gradient_norm: Longer gradients are scaled down to it.
    :param max_length: Tokens a sentence; of longer ones the ends are cut.
    :param seed: Of the order of the batches and of dropout.
    :param evaluate_steps: Steps between two measurements on held-out pairs.
    :param checkpoint_minutes: A killed run loses at most so much.
    :param output_bias: Where the bias of a head that has one begins (the transformer's): at the logs of words' shares
        of the target text ("frequencies"), or at 0 ("zeros").
    :param neighbours: Tables that begin at the neighbours that words have in the training text, not at random: "slim"
        ones, "all" or "none".
    :param bf16: Compute in bfloat16, weights stay as they are.
    """

    steps: int = 3000
    batch_tokens: int = 2000
    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: int = 300
    label_smoothing: float = 0.1
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    max_length: int = 128
    seed: int = 0
    evaluate_steps: int = 500
    checkpoint_minutes: float = 3.0
    output_bias: Start = "frequencies"
    neighbours: Tables = "slim"
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens", "learning_rate", "max_gradient_norm", "max_length", "evaluate_steps"):
            if not getattr(self, name) > 0:
                raise TaskError(f"TranslationTraining({name}={getattr(self, name)}): give more than 0")
        if not 0 <= self.label_smoothing < 1:
            raise TaskError(f"TranslationTraining(label_smoothing={self.label_smoothing}): give a share, 0 up to 1")
        if self.warmup < 0 or self.weight_decay < 0 or self.checkpoint_minutes < 0:
            raise TaskError("TranslationTraining: warmup, weight_decay and checkpoint_minutes are not negative")
        if self.schedule not in get_args(Schedule):
            raise TaskError(
                f"TranslationTraining(schedule={self.schedule!r}): choose {' or '.join(get_args(Schedule))}"
            )
        for name, allowed in (("output_bias", Start), ("neighbours", Tables)):
            if getattr(self, name) not in get_args(allowed):
                raise TaskError(
                    f"TranslationTraining({name}={getattr(self, name)!r}): choose {' or '.join(get_args(allowed))}"
                )

    def rate(self, step: int) -> float:
        """The learning rate of a step, the first one being 1."""
        if step <= self.warmup:
            return self.learning_rate * step / self.warmup
        if self.schedule == "inverse_sqrt":
            return self.learning_rate * math.sqrt(max(self.warmup, 1) / step)
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
