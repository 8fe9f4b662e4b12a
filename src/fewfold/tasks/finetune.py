"""Fine-tuning with transformers.Trainer: the same for dense and for compressed models."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewfold.errors import TaskError
from fewfold.measure.environment import warn_of_slow_bf16
from fewfold.optional import require
from fewfold.progress import track
from fewfold.stored import unpack
from fewfold.stored.kept import round_stored
from fewfold.tasks.batches import Padding, Row, token_total
from fewfold.training.arguments import trainer_arguments
from fewfold.training.forward import forward_restored
from fewfold.training.processor import quick_on_processors

LOOK = 10  # steps between two looks at the loss: each waits for the accelerator


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
    """

    learning_rate: float = 3e-5
    epochs: float = 3
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    bf16: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise TaskError(f"FineTuning({name}={getattr(self, name)}): give more than 0")
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
) -> Training:
    """Train all parameters of a model that may train, in place.

    Stored tensors train as floats and are rounded to their stored dtype at the end: what is judged is what is saved.

    :param model: A model with the task's head; it ends in eval mode, on the accelerator if there is one.
    :param tokenizer: Its tokenizer, for padding.
    :param rows: Inputs and labels, such as `text_rows` makes.
    :param settings: How to train.
    :param seed: Of the order of the rows and of dropout.
    :param examples: How many examples the rows stand for, where it is not one a row.
    :return: What was done.
    :raises TaskError: If there is no row, or the loss is no number; every tenth step looks.
    :raises ImportError: If accelerate is missing, which Trainer needs.
    """
    if not rows:
        raise TaskError("fine_tune needs at least one training example")
    require("accelerate")
    from transformers import PrinterCallback, ProgressCallback

    from fewfold.training.rounding import RoundedSteps, Rounding

    unpack(model)
    rounding = Rounding(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer_class(settings)(
            model=model,
            args=_arguments(folder, len(rows), settings, seed),
            train_dataset=list(rows),
            data_collator=Padding(tokenizer),
            callbacks=[_progress(), RoundedSteps(rounding)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        start = time.perf_counter()
        try:
            with quick_on_processors(settings.bf16), forward_restored(model):
                result = trainer.train()
        finally:
            rounding.restore_()
        seconds = time.perf_counter() - start
    model.eval()
    rounding.settle_(model)
    round_stored(model)
    _check_loss(result.training_loss, result.global_step, settings)
    tokens = round(token_total(rows) * settings.epochs)
    return Training(examples or len(rows), len(rows), result.global_step, tokens, result.training_loss, seconds)


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
        logging_strategy="no",
        **grouping,
    )


def _check_loss(loss: float, step: int, settings: FineTuning) -> None:
    if not math.isfinite(loss):
        raise TaskError(
            f"the loss became {loss} by step {step}: lower learning_rate={settings.learning_rate}"
            + (" or leave bf16 out" if settings.bf16 else "")
        )


def _trainer_class(settings: FineTuning) -> Any:
    """A Trainer that does not go on for hours with a loss that is no number."""
    from transformers import Trainer

    class Checked(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if self.state.global_step % LOOK == 0:  # what is no number stays none
                _check_loss(float(loss), self.state.global_step + 1, settings)
            return loss

    return Checked


def _progress() -> Any:
    """A callback that moves our own bar, step by step."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        steps: Iterator[int] = iter(())

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps = track(range(state.max_steps + 1), "fine-tuning")
            next(self.steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            next(self.steps, None)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps.close()  # type: ignore[attr-defined]

    return Progress()
