"""What goes on around the training steps: clipping, the curve, measurements, checkpoints, the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from fewfold.distill.checkpoints import write_state
from fewfold.distill.history import History
from fewfold.distill.teachers import Teacher
from fewfold.distill.tokens import TokenisedTexts
from fewfold.distill.trainer import DistillTrainer, clipper
from fewfold.errors import DistillError
from fewfold.progress import bar
from fewfold.training.sharded import exact_state, load_exact

BEST = "best.safetensors"


class Watch(TrainerCallback):
    """Follows one run.

    :param marks: what its checkpoints are known by.
    :param held_out: texts to measure the loss on, or None.
    :param teacher: gives outputs for them.
    :param saves: whether checkpoints are written.

    Who starts the run closes ``stack`` after it, however it ended.
    """

    def __init__(
        self, trainer: DistillTrainer, marks: dict[str, Any], held_out: TokenisedTexts | None, teacher: Teacher,
        saves: bool,
    ) -> None:  # fmt: skip
        self.trainer, self.marks, self.held_out, self.teacher, self.saves = trainer, marks, held_out, teacher, saves
        self.config, self.clock, self.history = trainer.config, trainer.clock, History()
        self.sums: dict[str, Tensor] = {}
        self.since = 0  # steps that the next point of the curve averages
        self.norm = self.rate = 0.0
        self.stall = 0  # measurements without a gain
        self.best: dict[str, Tensor] = {}
        self.measured = self.saved = 0.0
        self.pause = 0.0  # seconds of measurements and checkpoints
        self.timed_out = False  # in the run that is gone on with
        self.stack = ExitStack()
        self.advance: Callable[[float, str], None] = lambda done, count: None

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """Go on where a checkpoint was written."""
        self.history, self.stall = History(**state["history"]), state["stall"]
        self.clock.before, self.clock.began = state["history"]["seconds"], state["began"]
        self.clock.seen = self.clock.before
        # the last step of a limit of time ended before it: there was no time for another one
        self.timed_out = self.history.stopped == "time" and self.clock.limit == state.get("limit")
        if (folder / BEST).is_file():
            self.best = load_file(folder / BEST)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure once before the first step, and start the clock."""
        self.clip = clipper(self.config, [p for p in self.trainer.model.parameters() if p.requires_grad])
        self.history.stopped = ""
        if not self.history.held_out and self.held_out is not None:
            self._measure(0)
            whole, loss = self.config.whole_rate_loss, self.history.held_out[0]["loss"]
            if whole is not None and loss < whole:
                self.trainer.slow_down((loss / whole) ** 0.5)
        self.pause = 0.0
        self.clock.begin(self.trainer.summed([self.clock.now() if args.process_index == 0 else 0.0])[0])
        self.measured = self.saved = self.clock.seen
        self.first_second, self.before = self.clock.now(), self.history.training_seconds
        total = self.clock.limit or self.clock.steps
        self.advance = self.stack.enter_context(bar("distilling", total))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clip, and refuse gradients that are no numbers before they spoil the student."""
        self.norm, self.rate = self.clip(), kwargs["lr_scheduler"].get_last_lr()[0]
        if not torch.isfinite(torch.tensor(self.norm)):
            raise DistillError(self.trainer.trouble("the gradient's norm", self.norm))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Count, note, measure, save and stop where it is time."""
        step, clock, config = state.global_step, self.clock, self.config
        self.history.steps = step
        self.history.tokens += int(self.trainer.totals["real"])
        self.since += 1
        for name, loss in self.trainer.step_losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())).to(loss.device) + loss
        self.history.training_seconds = self.before + clock.now() - self.first_second - self.pause
        over = clock.is_over(step)
        if step == 1 or step % config.log_steps == 0 or over:
            self._note(step)
        timely = clock.seen - self.measured >= 60 * config.evaluate_minutes
        if timely and not over:
            self.measured = clock.seen
            self._measure(step)
        if self.has_stalled:
            self.history.stopped, over = "no gain", True
        elif over:
            self.history.stopped = "steps" if clock.steps is not None and step >= clock.steps else "time"
        fitted = step == 1 and bool(self.history.local)  # what took minutes before the first step is safe
        if self.saves and (over or fitted or clock.seen - self.saved >= 60 * config.checkpoint_minutes):
            self.saved, self.save_start = clock.seen, time.perf_counter()
            self.history.seconds = clock.now()
            control.should_save = True
        control.should_training_stop = over
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint complete."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save:
            if self.best:
                save_file(self.best, folder / BEST)
            content = {
                **self.marks, "history": asdict(self.history), "began": self.clock.began, "stall": self.stall,
                "limit": self.clock.limit,
            }  # fmt: skip
            write_state(folder, content)
        seconds = time.perf_counter() - self.save_start
        self.pause += seconds
        self._reserve(save=seconds)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bring the run to its end."""
        self.finish(state.global_step)

    @property
    def has_stalled(self) -> bool:
        """Whether so many measurements brought no gain that the run ends."""
        return self.config.patience is not None and self.stall >= self.config.patience

    @property
    def is_over(self) -> bool:
        """Whether what was gone on with had come to its end."""
        return self.has_stalled or self.timed_out or self.clock.is_over(self.history.steps)

    def finish(self, step: int) -> None:
        """Measure once more; where a state before the last was better, it comes back."""
        if not self.history.held_out or self.history.held_out[-1]["step"] != step:
            self._measure(step)
        if self.best and self.stall:
            load_exact(self.trainer.model, self.best)
            best = min(self.history.held_out, key=lambda point: point["loss"])
            self.history.held_out.append({**best, "restored": True})
        self.history.seconds = self.clock.now()

    def _note(self, step: int) -> None:
        names = sorted(self.sums)
        values = self.trainer.summed([float(self.sums[name]) / self.since for name in names])
        means = {name: value / self.trainer.args.world_size for name, value in zip(names, values, strict=True)}
        loss = sum(means.values())
        point = {
            "step": step, "seconds": self.clock.seen, "tokens": self.history.tokens, "learning_rate": self.rate,
            "gradient_norm": self.norm, "loss": loss, **means,
        }  # fmt: skip
        self.history.curve.append(point)
        self.sums, self.since = {}, 0
        done = self.clock.seen if self.clock.limit else step
        speed = self.history.tokens / max(self.history.training_seconds, 1e-9)
        self.advance(done, f"step {step}, loss {loss:.4g}, {speed:,.0f} tokens/s")

    def _measure(self, step: int) -> None:
        """The loss on held-out texts; the same in all processes."""
        if self.held_out is None:
            return
        start = time.perf_counter()
        losses = self.trainer.held_out_losses(self.held_out, self.teacher)
        point = {"step": step, "seconds": self.clock.now(), "loss": sum(losses.values()), **losses}
        lowest = min((known["loss"] for known in self.history.held_out), default=float("inf"))
        self.history.held_out.append(point)
        if point["loss"] < lowest:
            self.stall = 0
            if self.config.patience is not None:
                self.best = exact_state(self.trainer.model)
        else:
            self.stall += 1
        seconds = time.perf_counter() - start
        self.pause += seconds
        self._reserve(measure=seconds)

    def _reserve(self, **seconds: float) -> None:
        """Keep time for the last measurement and the last checkpoint, agreed among processes."""
        self.needed = {**getattr(self, "needed", {}), **seconds}
        processes = self.trainer.args.world_size
        (mean,) = (total / processes for total in self.trainer.summed([sum(self.needed.values())]))
        self.clock.reserve = 1.5 * mean
