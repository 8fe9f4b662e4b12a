"""Fine-tuning with transformers.Trainer: the same for dense and for compressed models."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewfold.errors import TaskError
from fewfold.measure.environment import warn_of_slow_bf16
from fewfold.optional import require
from fewfold.stored import unpack
from fewfold.stored.kept import round_stored
from fewfold.tasks.batches import Row, token_total
from fewfold.training.arguments import trainer_arguments
from fewfold.training.forward import forward_restored
from fewfold.training.identity import config_of
from fewfold.training.processor import quick_on_processors
from fewfold.training.rates import RATES


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned: AdamW, linear warm-up, then linear decay to 0, batches of like length.

    :param learning_rate: Its peak; 2e-5…5e-5 is usual, compressed models often take more.
    :param epochs: Passes over the training examples.
    :param batch_size: Examples (of SQuAD: windows) a step.
    :param warmup: Share of the steps in which the learning rate rises.
    :param weight_decay: Of matrices; biases and norms have none.
    :param max_gradient_norm: Longer gradients are scaled down to it.
    :param bf16: Compute in bfloat16, weights stay as they are.
    :param limit: Train on the first so many examples of the split; None for all.
    :param rates: One learning rate (`equal`), or larger ones for tensors of larger numbers than weights have
        (`by_size`: factors and sub-vectors of compressed models).
    """

    learning_rate: float = 3e-5
    epochs: float = 3
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    bf16: bool = False
    limit: int | None = None
    rates: str = "equal"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise TaskError(f"FineTuning({name}={getattr(self, name)}): give more than 0")
        if self.rates not in RATES:
            raise TaskError(f"FineTuning(rates={self.rates!r}): give one of {', '.join(RATES)}")
        if not 0 <= self.warmup < 1:
            raise TaskError(f"FineTuning(warmup={self.warmup}): give a share of the steps, 0 up to 1")
        if self.limit is not None and self.limit < 1:
            raise TaskError(f"FineTuning(limit={self.limit}): give at least one example, or None for all")


@dataclass(frozen=True)
class Training:
    """What a fine-tuning did.

    :param examples: Training examples (of SQuAD: questions).
    :param rows: What they became for the model: of SQuAD, windows.
    :param steps: Optimizer steps.
    :param tokens: Tokens seen over all epochs, padding left out.
    :param loss: Mean loss over all steps.
    :param seconds: Wall time, tokenizing left out.
    """

    examples: int
    rows: int
    steps: int
    tokens: int
    loss: float
    seconds: float

    @property
    def seconds_per_1000(self) -> float:
        """Seconds that 1,000 examples took, all epochs together."""
        return 1000 * self.seconds / self.examples


def fine_tune(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    settings: FineTuning,
    seed: int = 0,
    examples: int | None = None,
    checkpoints: str | PathLike[str] | None = None,
    checkpoint_minutes: float = 5.0,
    key: str | None = None,
) -> Training:
    """Train all parameters of a model that may train, in place.

    Stored tensors train as floats and are rounded to their stored dtype at the end: what is judged is what is saved.

    :param model: A model with the task's head; it ends in eval mode, on the accelerator if there is one.
    :param tokenizer: Its tokenizer, for padding.
    :param rows: Inputs and labels, such as `text_rows` makes.
    :param settings: How to train.
    :param seed: Of the order of the rows and of dropout.
    :param examples: How many examples the rows stand for, where it is not one a row.
    :param checkpoints: A folder of this run alone: a run that was killed goes on from there, to the same numbers. It
        stays, with the end of the run, for you to remove.
    :param checkpoint_minutes: Between two checkpoints.
    :param key: What `run_key` says of this run, where that is known.
    :return: What was done.
    :raises TaskError: If there is no row, the loss is no number (every tenth step looks), or the checkpoints are
        those of another run.
    :raises ImportError: If accelerate is missing, which Trainer needs.
    """
    if not rows:
        raise TaskError("fine_tune needs at least one training example")
    require("accelerate")
    from fewfold.tasks.tuner import Tuner
    from fewfold.training.rounding import Rounding

    if key is None:
        key = "" if checkpoints is None else run_key(model, rows, settings, seed)
    unpack(model)
    rounding = Rounding(model)
    with _folder(checkpoints) as folder:
        arguments = _arguments(str(folder), len(rows), settings, seed)
        minutes = None if checkpoints is None else checkpoint_minutes
        tuner = Tuner(model, arguments, rows, tokenizer, settings, rounding, key, minutes)
        try:
            with quick_on_processors(settings.bf16), forward_restored(model):
                steps = tuner.run()
        finally:
            rounding.restore_()
        model.eval()
        rounding.settle_(model)
        round_stored(model)
    tokens = round(token_total(rows) * settings.epochs)
    return Training(examples or len(rows), len(rows), steps, tokens, tuner.mean_loss(steps), tuner.seconds)


def run_key(model: nn.Module, rows: Sequence[Row], settings: FineTuning, seed: int) -> str:
    """What has to be the same for a run to go on: every number of the model at its begin, rows, settings, seed."""
    from fewfold.training.sharded import exact_state

    described = (type(model).__name__, config_of(model), asdict(settings), seed)
    digest = hashlib.blake2b(repr(described).encode(), digest_size=16)
    for name, tensor in exact_state(model).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    for row in rows:
        for name, value in sorted(row.items()):
            digest.update(name.encode() + np.asarray(value).tobytes())
    return digest.hexdigest()


@contextmanager
def _folder(checkpoints: str | PathLike[str] | None) -> Iterator[Path]:
    """The given folder, or a passing one."""
    if checkpoints is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    kept = Path(checkpoints)
    kept.mkdir(parents=True, exist_ok=True)
    yield kept


def _arguments(folder: str, rows: int, settings: FineTuning, seed: int) -> Any:
    from transformers import TrainingArguments

    steps = math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs)
    # older versions of transformers know the same under another name
    grouping: dict[str, Any] = {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" not in TrainingArguments.__dataclass_fields__:
        grouping = {"group_by_length": True}
    warn_of_slow_bf16(settings.bf16)
    return trainer_arguments(
        output_dir=folder,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        warmup_steps=round(settings.warmup * steps),
        lr_scheduler_type="linear",
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        bf16=settings.bf16,
        seed=seed,
        save_strategy="no",
        save_total_limit=2,
        logging_strategy="no",
        **grouping,
    )
