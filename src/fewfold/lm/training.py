"""Training on continuous streams by truncated backpropagation through time.

transformers.Trainer draws batches that know nothing of each other; here the state of a window goes into the next one,
is part of every checkpoint, and the order of the text is fixed. A loop of its own is shorter than the hooks that would
bend a Trainer to that.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.distill.clock import Clock
from fewfold.errors import TaskError
from fewfold.lm.checkpoints import (
    check_same_run,
    flattened,
    optimizer_tensors,
    own_tensors,
    read_checkpoint,
    rebuilt,
    remove_checkpoints,
    skeleton,
    take_optimizer_tensors,
    take_tensors,
    write_checkpoint,
)
from fewfold.lm.config import LMTraining
from fewfold.lm.history import History
from fewfold.lm.judge import judge
from fewfold.lm.schedule import make_optimizer, rate_factor, set_rate
from fewfold.lm.step import foretell
from fewfold.lm.streams import Streams
from fewfold.lm.texts import Text
from fewfold.measure.environment import warn_of_slow_bf16
from fewfold.progress import bar
from fewfold.training.identity import config_of
from fewfold.training.memory import freed_memory_kept


@dataclass
class Progress:
    """How far a training is.

    :param step: windows learned from.
    :param tokens: tokens learned from.
    :param training_seconds: time in training steps alone.
    :param seconds: all time, that of earlier runs of a resumed training included.
    :param best: lowest loss on the valid text, and the step where it was.
    :param stale: judgements since then.
    :param lowered: how often a plateau lowered the rate.
    :param stopped: why it ended: ``steps``, ``time`` or ``no gain``.
    """

    step: int = 0
    tokens: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    lowered: int = 0
    stopped: str = ""
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # loss, tokens, seconds since the last point

    @property
    def tokens_a_second(self) -> float:
        """Throughput of the training steps."""
        return self.tokens / self.training_seconds if self.training_seconds else 0.0


class LMTrainer:
    """A training that can stop at any time and go on.

    :param model: a model that carries a state; trained in place, and left with the weights that did best on the valid
        text, or with the last ones where there is none.
    :param text: what it learns from.
    :param config: how.
    :param boundary: the token before a text's first one (``<eos>``).
    :param valid: what it is judged on.
    :param folder: where checkpoints and the history are kept; None for nowhere.
    :param resume: go on from the checkpoint that the folder holds.
    :param tell: called with every point of the history.
    :raises TaskError: if a text is too short.
    :raises CheckpointError: if the folder holds a training with other settings.
    """

    def __init__(
        self, model: nn.Module, text: Text, config: LMTraining, boundary: int, *, valid: Text | None = None,
        folder: Path | None = None, resume: bool = True, tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.text, self.config, self.boundary, self.valid = model, text, config, boundary, valid
        self.folder, self.resume, self.tell = folder, resume, tell
        if config.patience is not None and valid is None:
            raise TaskError(f"patience={config.patience} needs a valid text to judge on: give one, or no patience")
        self.streams = Streams(text.ids, config.batch, config.bptt, text.name)
        self.optimizer = make_optimizer(model.parameters(), config)
        self.progress, self.history = Progress(), History(folder)
        self.state: Any = None
        self.best: dict[str, Tensor] | None = None
        self.clock = Clock(config.planned_steps(len(self.streams)), config.minutes)
        self._saved = time.perf_counter()

    def train(self) -> Progress:
        """Learn until the steps, the time or the gain end."""
        warn_of_slow_bf16(self.config.bf16)
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.config.seed)
            self._start()
            self.clock.begin(self.clock.now())
            self.model.train()
            with freed_memory_kept(), bar("training", 1.0) as advance:
                while not self.progress.stopped:
                    self.clock.see(self.clock.now())
                    self._step(advance)
                    self._after_step()
        if self.best is not None:
            take_tensors(self.model, self.best)
        self.model.eval()
        return self.progress

    def _start(self) -> None:
        """Begin anew, or go on from a checkpoint."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.resume:
            remove_checkpoints(self.folder)
        found = read_checkpoint(self.folder)
        if found is None:
            self.history.go_on(0)
            return
        tensors, facts = found
        check_same_run(self.folder, facts["run"], self.description())
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}, "carried": {}, "random": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        take_tensors(self.model, parts["model"])
        take_optimizer_tensors(self.model, self.optimizer, parts["optimizer"])
        device = next(parameter.device for parameter in self.model.parameters())
        carried = {name: tensor.to(device) for name, tensor in parts["carried"].items()}
        self.state = rebuilt(facts["carried"], carried, "state")
        self.best = parts["best"] or None
        torch.set_rng_state(parts["random"]["cpu"])
        if torch.cuda.is_available() and "cuda" in parts["random"]:
            torch.cuda.set_rng_state(parts["random"]["cuda"])
        self.progress = Progress(**facts["progress"])
        self.clock.before, self.clock.began = self.progress.seconds, facts["began"]
        self.history.go_on(facts["points"])

    def _step(self, advance: Callable[[float, str], None]) -> None:
        """Learn from one window."""
        progress, config, start = self.progress, self.config, time.perf_counter()
        window = self.streams.window(progress.step)
        rate = config.learning_rate * rate_factor(config, self.clock.fraction(progress.step + 0.5), progress.lowered)
        set_rate(self.optimizer, rate)
        state = None if window.fresh else self.state
        loss, self.state = foretell(self.model, window.inputs, window.labels, state, config.bf16)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TaskError(f"the loss is {value} at step {progress.step + 1}: lower the learning rate ({rate:.3g})")
        self.optimizer.step()
        tokens, seconds = window.labels.numel(), time.perf_counter() - start
        progress.step += 1
        progress.tokens += tokens
        progress.training_seconds += seconds
        for place, amount in enumerate((value * tokens, tokens, seconds)):
            progress.sums[place] += amount
        advance(
            self.clock.fraction(progress.step),
            f"step {progress.step:,}/{self.clock.steps or '?'}, loss {value:.3f}, ppl {math.exp(min(value, 99)):,.1f}, "
            f"{progress.tokens_a_second:,.0f} tokens/s",
        )
        if progress.step % config.log_steps == 0:
            self._log(rate)

    def _log(self, rate: float) -> None:
        loss, tokens, seconds = self.progress.sums
        mean = loss / tokens
        self._note(
            "train", loss=mean, ppl=math.exp(min(mean, 99.0)), learning_rate=rate, tokens_a_second=tokens / seconds
        )
        self.progress.sums = [0.0, 0.0, 0.0]

    def _note(self, kind: str, **values: Any) -> None:
        place = {"step": self.progress.step, "seconds": self.clock.now(), "tokens": self.progress.tokens}
        point = self.history.add(kind, **place, **values)
        if self.tell is not None:
            self.tell(point)

    def _after_step(self) -> None:
        """Judge, stop and save where it is time."""
        progress = self.progress
        over = self.clock.is_over(progress.step)
        if over:
            progress.stopped = "steps" if progress.step == self.clock.steps else "time"
        every = self.config.evaluate_steps or len(self.streams)
        if self.valid is not None and (over or progress.step % every == 0):
            self._judge()
        if self.folder is None:
            return
        due = time.perf_counter() - self._saved >= 60 * self.config.checkpoint_minutes
        if due or progress.stopped:
            self.save()

    def _judge(self) -> None:
        """Measure on the valid text; keep the best weights, count judgements without a gain."""
        assert self.valid is not None
        progress, config = self.progress, self.config
        found = judge(self.model, self.valid, self.boundary, config.evaluate_streams)
        self._note("valid", loss=found.nll, ppl=found.perplexity)
        if progress.best is None or found.nll < progress.best:
            progress.best, progress.best_step, progress.stale = found.nll, progress.step, 0
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in own_tensors(self.model).items()}
            return
        progress.stale += 1
        progress.lowered += 1
        if config.patience is not None and progress.stale >= config.patience and not progress.stopped:
            progress.stopped = "no gain"

    def save(self) -> None:
        """Write a checkpoint."""
        assert self.folder is not None
        self.progress.seconds = self.clock.now()
        parts: dict[str, dict[str, Tensor]] = {
            "model": own_tensors(self.model),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
            "best": self.best or {},
            "carried": dict(flattened(self.state, "state")),
            "random": {"cpu": torch.get_rng_state()},
        }
        if torch.cuda.is_available():
            parts["random"]["cuda"] = torch.cuda.get_rng_state()
        facts = {
            "progress": asdict(self.progress), "carried": skeleton(self.state), "points": len(self.history.points),
            "began": self.clock.began, "run": self.description(),
        }  # fmt: skip
        tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        write_checkpoint(self.folder, self.progress.step, tensors, facts)
        self._saved = time.perf_counter()

    def description(self) -> dict[str, Any]:
        """What has to be the same for a training to go on: settings, texts and the model."""
        described = {
            **self.config.of_the_run(),
            "text": _fingerprint(self.text),
            "valid": _fingerprint(self.valid),
            **{f"model.{name}": value for name, value in config_of(self.model).items()},
        }
        result: dict[str, Any] = json.loads(json.dumps(described, default=str))  # as a checkpoint gives it back
        return result


def _fingerprint(text: Text | None) -> str | None:
    """A text's name, length and contents in short."""
    if text is None:
        return None
    return f"{text.name}, {len(text.ids)} tokens, {hashlib.blake2b(text.ids.tobytes(), digest_size=6).hexdigest()}"
