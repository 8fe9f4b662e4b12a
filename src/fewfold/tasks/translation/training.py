"""Train a translation model from scratch, with checkpoints and exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fewfold.errors import TaskError
from fewfold.measure.environment import warn_of_slow_bf16
from fewfold.measure.modes import evaluating
from fewfold.progress import bar
from fewfold.stored import unpack
from fewfold.stored.kept import round_stored
from fewfold.tasks.translation.batching import IGNORED, Pair, collate, encode_pairs, token_batches
from fewfold.tasks.translation.corpus import Corpus
from fewfold.tasks.translation.resume import load_state, run_key, save_state
from fewfold.tasks.translation.settings import TranslationTraining
from fewfold.tasks.translation.vocabulary import Vocabularies
from fewfold.training.history import TrainingHistory
from fewfold.training.optimizer import adam
from fewfold.training.processor import quick_on_processors

LOG_STEPS = 50


def train_translation(
    model: Any, vocabularies: Vocabularies, train: Corpus, held_out: Corpus,
    settings: TranslationTraining | None = None, *, checkpoints: Path | None = None, resume: bool = True,
    stop_after: int | None = None,
) -> TrainingHistory:  # fmt: skip
    """Train all parameters of a model, in place.

    With the same seed, and checkpoints or not, a run that was stopped and went on ends where an uninterrupted one does.

    :param model: Such as `build_model` makes; it ends in eval mode, stored tensors rounded to their stored dtype.
    :param vocabularies: Of both sides.
    :param train: Training pairs.
    :param held_out: Pairs that the loss is measured on now and then.
    :param settings: How to train; None for the defaults.
    :param checkpoints: Folder for the run's state; None keeps none.
    :param resume: Go on from the state there.
    :param stop_after: Save and leave after so many steps, as if the run had been stopped there.
    :return: What was done.
    :raises TaskError: If the state is of another run, the data does not fit, or the loss is no longer a number.
    """
    settings = settings or TranslationTraining()
    warn_of_slow_bf16(settings.bf16)
    pairs = encode_pairs(vocabularies, train, settings.max_length)
    judged = encode_pairs(vocabularies, held_out, settings.max_length)
    unpack(model)
    run = _Run(model, vocabularies, settings, pairs)
    key = run_key(model, pairs, settings)
    torch.manual_seed(settings.seed)
    history = TrainingHistory()
    known = load_state(checkpoints, key, model, run.optimizer) if checkpoints is not None and resume else None
    if known is not None:
        run.sum, run.count = known.pop("since_the_last_point", (0.0, 0))
        history = TrainingHistory(**known)
    last = min(settings.steps, stop_after or settings.steps)
    saved = time.perf_counter()
    with quick_on_processors(settings.bf16), bar("training", settings.steps) as advance:
        for step, places in run.batches(history.steps, last):
            run.step(step, places, history)
            advance(step, f"{step}/{settings.steps}")
            if step % settings.evaluate_steps == 0 or step == settings.steps:
                loss = held_out_loss(model, vocabularies, judged, settings.batch_tokens)
                history.held_out.append({"step": step, "seconds": history.seconds, "loss": loss})
            minutes = (time.perf_counter() - saved) / 60
            if checkpoints is not None and (minutes >= settings.checkpoint_minutes or step == last):
                record = {**asdict(history), "since_the_last_point": (run.sum, run.count)}
                save_state(checkpoints, key, model, run.optimizer, record)
                saved = time.perf_counter()
    model.eval()
    round_stored(model)
    return history


class _Run:
    """One training: its optimizer, and a step of it."""

    def __init__(
        self, model: Any, vocabularies: Vocabularies, settings: TranslationTraining, pairs: Sequence[Pair]
    ) -> None:
        self.model, self.settings, self.pairs = model, settings, pairs
        self.fill, self.start = _ids(model, vocabularies)
        self.device = next(model.parameters()).device
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.numel()]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = adam(groups, lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-9)
        self.sum, self.count = 0.0, 0

    def batches(self, done: int, last: int) -> Iterator[tuple[int, list[int]]]:
        """Numbers and places of the steps after `done`: epoch after epoch, each in an order of its own."""
        step, epoch = 0, 0
        while step < last:
            for places in token_batches(self.pairs, self.settings.batch_tokens, self.settings.seed * 1_000_003 + epoch):
                step += 1
                if step > last:
                    return
                if step > done:
                    yield step, places
            epoch += 1

    def step(self, step: int, places: Sequence[int], history: TrainingHistory) -> None:
        """Learn from one batch."""
        begun = time.perf_counter()
        settings = self.settings
        batch = collate([self.pairs[place] for place in places], self.fill, self.start)
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bf16):
            loss = translation_loss(self.model, _moved(batch, self.device), settings.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_gradient_norm)
        self.optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            mend = " or leave bf16 out" if settings.bf16 else ""
            raise TaskError(
                f"the loss became {value} at step {step}: lower learning_rate={settings.learning_rate}{mend}"
            )
        history.steps, history.tokens = step, history.tokens + sum(len(self.pairs[p].target) for p in places)
        history.seconds += time.perf_counter() - begun
        self.sum, self.count = self.sum + value, self.count + 1
        if step % LOG_STEPS == 0 or step == settings.steps:
            point = {"step": step, "seconds": history.seconds, "learning_rate": settings.rate(step)}
            history.curve.append({**point, "loss": self.sum / self.count})
            self.sum, self.count = 0.0, 0


def translation_loss(model: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy a target token, in nats.

    :param model: One that has a loss of its own (`training_loss`) is asked for it, any other for its logits.
    :param batch: As `collate` makes.
    :param label_smoothing: As of `TranslationTraining`.
    :return: A scalar.
    """
    if hasattr(model, "training_loss"):
        return model.training_loss(batch, label_smoothing)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits
    return cross_entropy(
        logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing
    )


def held_out_loss(model: Any, vocabularies: Vocabularies, pairs: Sequence[Pair], batch_tokens: int) -> float:
    """Mean cross-entropy a token over pairs; torch's random numbers are left as they were.

    :param model: As of `translation_loss`.
    :param vocabularies: Of both sides.
    :param pairs: The pairs.
    :param batch_tokens: Tokens a batch.
    :return: Nats a target token.
    """
    fill, start = _ids(model, vocabularies)
    device, total, count = next(model.parameters()).device, 0.0, 0
    with evaluating(model), torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)  # models that mask at random are asked the same every time
        for places in token_batches(pairs, max(batch_tokens, 256), 0):
            batch = collate([pairs[place] for place in places], fill, start)
            tokens = int((batch["labels"] != IGNORED).sum())
            total += float(translation_loss(model, _moved(batch, device))) * tokens
            count += tokens
    return total / count


def _ids(model: Any, vocabularies: Vocabularies) -> tuple[tuple[int, int], int]:
    """Padding ids of both sides and the decoder's first token."""
    fill = (vocabularies.source.pad_token_id, vocabularies.target.pad_token_id)
    return fill, int(model.config.decoder_start_token_id)


def _moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
