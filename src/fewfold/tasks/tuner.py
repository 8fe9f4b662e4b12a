"""The Trainer behind fine-tuning: it looks at the loss as it goes, and goes on where it was killed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from fewfold.checkpoint.folders import write_whole
from fewfold.errors import TaskError
from fewfold.measure.inputs import clipped_length
from fewfold.progress import bar
from fewfold.tasks.batches import Padding, Row
from fewfold.training.complete import drop_incomplete, newest
from fewfold.training.exact import ExactCheckpoints
from fewfold.training.lengths import even_length, length_stride
from fewfold.training.optimizer import adam
from fewfold.training.rates import parameter_groups, rate_factors
from fewfold.training.rounding import RoundedSteps, Rounding

STATE = "fine_tuning.json"
LOOK = 10  # steps between two looks at the loss: each waits for the accelerator


class Tuner(ExactCheckpoints):
    """Fine-tunes one model.

    :param rounding: Of the model's few-bit tensors.
    :param key: What a run is known by, see `run_key`.
    :param minutes: Between two checkpoints; None for none.
    """

    model: Any

    def __init__(
        self, model: nn.Module, args: Any, rows: Sequence[Row], tokenizer: Any, settings: Any, rounding: Rounding,
        key: str = "", minutes: float | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.rounding, self.key = settings, rounding, key
        self.rates = rate_factors(model) if settings.rates == "by_size" else {}
        self.total: float | Tensor = 0.0  # the losses' sum
        self.seconds = 0.0  # of what a run did before
        self.shuffled = ""  # torch's random numbers at the begin of the epoch: they order its rows
        self.count = len(rows)
        stride = length_stride(model, settings.bf16)

        def padded(longest: int) -> int:
            return even_length(longest, stride, clipped_length(model.config, longest + stride))

        padding = Padding(tokenizer, padded)
        super().__init__(model=model, args=args, train_dataset=list(rows), data_collator=padding)  # type: ignore[arg-type]
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.progress = _Progress()
        for callback in (self.progress, RoundedSteps(rounding), _Watch(self, minutes)):
            self.add_callback(callback)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Trainer's own, or one with learning rates by the size of numbers."""
        if self.optimizer is None and self.rates:
            given, named = self.args, [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            decays = set(self.get_decay_parameter_names(self.model))
            groups = parameter_groups(named, given.learning_rate, self.rates, given.weight_decay, decays)
            self.optimizer = adam(groups, betas=(given.adam_beta1, given.adam_beta2), eps=given.adam_epsilon)
        return super().create_optimizer(*args, **kwargs)

    def kept(self) -> nn.Module:
        """The model, and the scales that its few-bit tensors are rounded by."""
        return nn.ModuleList([self.model, self.rounding])

    def run(self) -> int:
        """Train, from the last checkpoint on if there is one.

        :return: Steps, those of runs before counted.
        :raises TaskError: If the loss is no number, or the checkpoints are another run's.
        """
        folder = Path(str(self.args.output_dir))
        drop_incomplete(folder, STATE)
        found = newest(folder, STATE)
        if found is not None:
            state = json.loads((found / STATE).read_text(encoding="utf-8"))
            if state["key"] != self.key:
                raise TaskError(
                    f"{found.parent} holds checkpoints of another model, other rows or settings: remove that folder, "
                    "or give another one"
                )
            self.total, self.seconds, self.shuffled = state["total"], state["seconds"], state["shuffled"]
            if state["over"]:
                self._load_from_checkpoint(str(found))
                return int(state["steps"])
        start = time.perf_counter()
        try:
            result = self.train(resume_from_checkpoint=None if found is None else str(found))
        finally:
            self.progress.stack.close()
        self.seconds += time.perf_counter() - start
        self.check(self.mean_loss(result.global_step), result.global_step)
        return result.global_step

    def mean_loss(self, steps: int) -> float:
        """The mean of all steps' losses."""
        return float(self.total) / max(1, steps)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """One step; every tenth looks at the loss, for what is no number stays none.

        :raises TaskError: If it is none.
        """
        loss = super().training_step(*args, **kwargs)
        self.total = self.total + loss.detach()
        if self.state.global_step % LOOK == 0:
            self.check(float(loss), self.state.global_step + 1)
        return loss

    def check(self, loss: float, step: int) -> None:
        """Refuse a loss that is no number.

        :raises TaskError: Saying what to do.
        """
        if not math.isfinite(loss):
            raise TaskError(
                f"the loss became {loss} by step {step}: lower learning_rate={self.settings.learning_rate}"
                + (" or leave bf16 out" if self.settings.bf16 else "")
            )


class _Watch(TrainerCallback):
    """Writes checkpoints, and marks complete ones."""

    def __init__(self, tuner: Tuner, minutes: float | None) -> None:
        self.tuner, self.minutes = tuner, minutes

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = self.saved = time.perf_counter()
        self.goes_on = state.global_step > 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch that was begun before has its rows in the order of then; Trainer leaves out those that it read."""
        if self.goes_on:
            torch.set_rng_state(torch.frombuffer(bytearray.fromhex(self.tuner.shuffled), dtype=torch.uint8))
            self.goes_on = False
        self.tuner.shuffled = torch.get_rng_state().numpy().tobytes().hex()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.minutes is not None:
            timely = time.perf_counter() - self.saved >= 60 * self.minutes
            # not between epochs: what goes on stands in the midst of one
            an_epoch = math.ceil(self.tuner.count / args.per_device_train_batch_size)
            over = state.global_step >= state.max_steps
            control.should_save = over or (timely and state.global_step % an_epoch != 0)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder, self.saved = Path(args.output_dir) / f"checkpoint-{state.global_step}", time.perf_counter()
        content = {
            "key": self.tuner.key, "total": float(self.tuner.total), "shuffled": self.tuner.shuffled,
            "seconds": self.tuner.seconds + self.saved - self.begun, "steps": state.global_step,
            "over": state.global_step >= state.max_steps,
        }  # fmt: skip
        write_whole(folder / STATE, json.dumps(content))


class _Progress(TrainerCallback):
    """Moves our own bar, step by step, until its stack is closed."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance = self.stack.enter_context(bar("fine-tuning", state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(state.global_step, f"{state.global_step}/{state.max_steps}")
