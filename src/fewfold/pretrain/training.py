"""Training from scratch through transformers.Trainer and accelerate: resume, bfloat16, several processes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Generator, nn

from fewfold.errors import TaskError
from fewfold.optional import require
from fewfold.pretrain.checkpoints import begin, complete, go_on, last_complete
from fewfold.pretrain.drawn import Drawn
from fewfold.pretrain.settings import PretrainSettings
from fewfold.progress import track
from fewfold.stored import unpack
from fewfold.stored.kept import round_stored
from fewfold.training.forward import forward_restored
from fewfold.training.history import TrainingHistory
from fewfold.training.processor import quick_on_processors


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
    from fewfold.pretrain.trainer import PretrainTrainer, training_arguments

    unpack(model)
    total = settings.steps * settings.batch
    data, arguments = Drawn(count, make, total, settings.seed), training_arguments(settings, folder)
    trainer = PretrainTrainer(model, data, collate, arguments)
    history = TrainingHistory()
    callback = _callback(history, settings, held_out)
    trainer.add_callback(callback)
    known = last_complete(folder) if resume else None
    run = json.loads(json.dumps({"settings": settings.of_the_run(), **(identity or {})}))
    if known is not None:
        go_on(folder, known, run, history)
    elif trainer.is_world_process_zero():
        begin(folder, run)
    callback.before = history.seconds
    with quick_on_processors(settings.bf16), forward_restored(model):
        trainer.train(resume_from_checkpoint=None if known is None else str(known))
    model.eval()
    round_stored(model)
    history.tokens = round(history.steps * settings.batch * tokens)
    return history


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
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                complete(checkpoint, history, settings.checkpoints_kept)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for _ in self.shown:  # the bar ends where the steps do
                pass

        def _seconds(self) -> float:
            return self.before + time.perf_counter() - self.begun

    return Watch()
