"""transformers' Trainer for training from scratch: accelerate, bfloat16, several processes, exact checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from fewfold.measure.environment import warn_of_slow_bf16
from fewfold.pretrain.drawn import Drawn
from fewfold.pretrain.masking import IGNORED
from fewfold.pretrain.settings import PretrainSettings
from fewfold.training.arguments import trainer_arguments
from fewfold.training.exact import ExactCheckpoints


class PretrainTrainer(ExactCheckpoints):
    """Reads what is drawn in its order; parts of a step count by the labels that they hold.

    So a step's loss and gradient are those of its whole batch, however it is split over time and processes.
    """

    model: Any

    counts: list[float]  # of a step's parts that are still to come
    total, parts = 1.0, 1

    def __init__(self, model: Any, data: Drawn, collate: Callable[..., Any], arguments: TrainingArguments) -> None:
        super().__init__(model=model, args=arguments, train_dataset=data, data_collator=collate)
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The parts of a step; counts what they hold."""
        parts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.counts, self.parts = [_labels_in(part) for part in parts], len(parts)
        self.total = self._summed(sum(self.counts))
        return parts, None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one part, weighed by what it holds of the whole batch."""
        loss = model(**inputs).loss
        # Trainer divides by the parts of a step, and gradients are averaged over processes
        return loss * (self.counts.pop(0) * self.parts * self.args.world_size / max(self.total, 1.0))

    def _summed(self, number: float) -> float:
        if self.args.world_size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(tensor)
        return float(tensor)


def _labels_in(batch: dict[str, Any]) -> float:
    """What a part of a batch weighs: its labelled places, without labels its examples."""
    labels = batch.get("labels")
    if isinstance(labels, torch.Tensor) and not labels.is_floating_point():
        return float((labels != IGNORED).sum())
    return float(len(next(iter(batch.values()))))


def training_arguments(settings: PretrainSettings, folder: Path) -> TrainingArguments:
    """What Trainer is told; checkpoints are rotated by who marks them complete."""
    micro, rounds = settings.accumulated(int(os.environ.get("WORLD_SIZE", "1")))
    cpu = not torch.accelerator.is_available()
    warn_of_slow_bf16(settings.bf16)
    args: TrainingArguments = trainer_arguments(
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
        ddp_backend="gloo" if cpu and "WORLD_SIZE" in os.environ else None,
        seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=None,  # older ones go when the new one is complete
        logging_strategy="steps",
        logging_steps=settings.log_steps,
    )
    return args
