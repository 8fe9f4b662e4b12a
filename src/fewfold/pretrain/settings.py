"""How a model is trained from scratch by transformers.Trainer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fewfold.errors import TaskError
from fewfold.training.settings import CheckedSettings

_LIMITS = ("micro_batch", "log_steps", "evaluate_steps", "checkpoint_steps", "checkpoints_kept", "bf16")


class PretrainSettings(CheckedSettings):
    """AdamW with a linear warm-up; biases and norms do not decay. What is drawn depends on seed and step alone."""

    steps: int = Field(3000, ge=1, description="optimizer steps")
    batch: int = Field(32, ge=1, description="examples of a step, over all processes")
    micro_batch: int | None = Field(
        None, ge=1, description="examples that a process holds at a time; gradients of the others are added up (None: "
        "its share of the batch)",
    )  # fmt: skip
    learning_rate: float = Field(1e-3, gt=0, description="its peak")
    betas: tuple[float, float] = Field((0.9, 0.98), description="of AdamW")
    epsilon: float = Field(1e-6, gt=0, description="of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of all but biases and norms")
    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps in which the rate rises")
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "linear", description="how the rate falls after the rise"
    )
    max_gradient_norm: float = Field(1.0, gt=0, description="longer gradients are scaled down to it")
    bf16: bool = Field(False, description="autocast to bfloat16")
    seed: int = Field(0, description="of weights, order, masks and dropout")
    log_steps: int = Field(50, ge=1, description="steps that a point of the curve averages")
    evaluate_steps: int | None = Field(None, ge=1, description="steps between looks at held-out data (a quarter)")
    checkpoint_steps: int = Field(500, ge=1, description="steps between two checkpoints: what a kill may lose")
    checkpoints_kept: int = Field(1, ge=1, description="so many of the last ones stay")

    def accumulated(self, processes: int) -> tuple[int, int]:
        """Split a step's batch.

        :param processes: That train side by side.
        :return: Examples that a process holds at a time, and how many times of a step.
        :raises TaskError: If the batch cannot be split evenly.
        """
        micro = self.micro_batch or max(1, self.batch // processes)
        rounds, rest = divmod(self.batch, micro * processes)
        if rest or not rounds:
            raise TaskError(
                f"batch={self.batch} is no multiple of micro_batch={micro} times {processes} processes: change either"
            )
        return micro, rounds

    def of_the_run(self) -> dict[str, Any]:
        """What has to stay the same for a run to go on."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in _LIMITS}
