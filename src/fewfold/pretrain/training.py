"""Training from scratch through transformers.Trainer and accelerate: resume, bfloat16, several processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from fewfold.errors import CheckpointError, TaskError
from fewfold.measure.environment import warn_of_slow_bf16
from fewfold.optional import require
from fewfold.pretrain.drawn import Drawn
from fewfold.pretrain.settings import PretrainSettings
from fewfold.progress import track
from fewfold.stored import unpack
from fewfold.stored.kept import Kept
from fewfold.training.history import TrainingHistory
from fewfold.training.processor import quick_on_processors

RUN = "run.json"


def pretrain(
    model: nn.Module, count: int, make: Callable[[int, Generator], Any], collate: Callable[[list[Any]], dict[str, Any]],
    settings: PretrainSettings, *, folder: Path, held_out: Callable[[nn.Module], float] | None = None,
    tokens: float = 0.0, resume: bool = True, identity: dict[str, Any] | None = None,
) -> TrainingHistory:  # fmt: skip
    """Train all parameters of a model, in place.

    Under `torchrun` or `accelerate launch` every process takes its share of a batch, and the first one writes.

    :param model: One whose forward gives a `loss`; it ends in eval mode, stored tensors rounded to their stored dtype.
    :param count: Examples of one pass.
    :param make: As of `Drawn`.
    :param collate: What it made, to the model's inputs.
    :param settings: How to train.
    :param folder: For checkpoints; a run that was stopped goes on from the last one.
    :param held_out: Measures the loss on held-out data.
    :param tokens: Of an example on average, for the throughput.
    :param resume: False starts anew.
    :param identity: What else has to be the same for a run to go on, ready for JSON.
    :return: What was done.
    :raises TaskError: If the batch cannot be split, or the loss is no longer a number.
    :raises CheckpointError: If the folder holds checkpoints of another run.
    :raises ImportError: If accelerate is missing.
    """
    require("accelerate")
    from transformers.trainer_utils import get_last_checkpoint

    unpack(model)
    total = settings.steps * settings.batch
    trainer = _trainer(model, Drawn(count, make, total, settings.seed), collate, settings, folder)
    history = TrainingHistory()
    callback = _callback(history, settings, held_out)
    trainer.add_callback(callback)
    known = get_last_checkpoint(str(folder)) if resume and folder.is_dir() else None
    run = json.loads(json.dumps({"settings": settings.of_the_run(), **(identity or {})}))
    if known is not None:
        _go_on(folder, Path(known), run, history)
    if trainer.is_world_process_zero():
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("checkpoint-*") if known is None else ():
            shutil.rmtree(stale)
        (folder / RUN).write_text(json.dumps(run), encoding="utf-8")
    callback.before = history.seconds
    with quick_on_processors(settings.bf16):
        trainer.train(resume_from_checkpoint=known)
    model.eval()
    for leaf in model.modules():
        if isinstance(leaf, Kept):
            leaf.round_()
    history.tokens = round(history.steps * settings.batch * tokens)
    return history


def _go_on(folder: Path, checkpoint: Path, run: dict[str, Any], history: TrainingHistory) -> None:
    """Take over what a run had written down, if it is this one."""
    file = folder / RUN
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != run:
        raise CheckpointError(
            f"{folder} holds checkpoints of a run with another model, other data or settings: remove it, or start anew "
            "with resume=False (--fresh)"
        )
    written = json.loads((checkpoint / "history.json").read_text(encoding="utf-8"))
    for name, value in written.items():
        setattr(history, name, value)


def _trainer(
    model: nn.Module, data: Drawn, collate: Callable[[list[Any]], dict[str, Any]], settings: PretrainSettings,
    folder: Path,
) -> Any:  # fmt: skip
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, ProgressCallback, Trainer

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(data)

    trainer = InOrder(model=model, args=_arguments(settings, folder), train_dataset=data, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _arguments(settings: PretrainSettings, folder: Path) -> Any:
    from transformers import TrainingArguments

    micro, rounds = settings.accumulated(int(os.environ.get("WORLD_SIZE", "1")))
    cpu = not torch.accelerator.is_available()
    warn_of_slow_bf16(settings.bf16)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rounds,
        learning_rate=settings.learning_rate,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
        warmup_steps=round(settings.warmup * settings.steps),
        lr_scheduler_type=settings.schedule,
        max_grad_norm=settings.max_gradient_norm,
        bf16=settings.bf16,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and "WORLD_SIZE" in os.environ else None,
        seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=settings.checkpoints_kept,
        logging_strategy="steps",
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,  # else a loss that is no number would count as none at all
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _callback(
    history: TrainingHistory, settings: PretrainSettings, held_out: Callable[[nn.Module], float] | None
) -> Any:
    """Keeps the history, shows progress, looks at held-out data, and stops at a loss that is none."""
    from transformers import TrainerCallback

    every = settings.evaluate_steps or max(1, -(-settings.steps // 4))

    class Watch(TrainerCallback):
        before, begun = 0.0, 0.0
        shown: Iterator[int] = iter(())

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.begun = time.perf_counter()
            steps = range(state.global_step, state.max_steps + 1)
            self.shown = track(steps, "training") if state.is_world_process_zero else iter(())
            next(self.shown, None)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            next(self.shown, None)
            history.steps, history.seconds = state.global_step, self._seconds()
            if held_out is not None and (history.steps % every == 0 or history.steps == state.max_steps):
                loss = held_out(model)
                history.held_out.append({"step": history.steps, "seconds": history.seconds, "loss": loss})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" not in logs:
                return
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise TaskError(
                    f"the loss became {loss} by step {state.global_step}: lower learning_rate={settings.learning_rate}"
                )
            point = {"step": state.global_step, "seconds": self._seconds(), "learning_rate": logs["learning_rate"]}
            history.curve.append({**point, "loss": loss})

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                target = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "history.json"
                target.write_text(json.dumps(asdict(history)), encoding="utf-8")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for _ in self.shown:  # the bar ends where the steps do
                pass

        def _seconds(self) -> float:
            return self.before + time.perf_counter() - self.begun

    return Watch()
