"""How a language model is trained on running text: streams, optimizer, schedule and limits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fewfold.training.frequencies import Start
from fewfold.training.neighbours import Tables
from fewfold.training.settings import CheckedSettings

_LIMITS = ("checkpoint_minutes", "log_steps")


class LMTraining(CheckedSettings):
    """Settings of one training. Without `steps`, `epochs` or `minutes`, ten epochs are run.

    With `minutes` alone the schedule follows the clock; with steps or epochs it follows the steps, and a training that
    was stopped ends with the numbers of one that was not.
    """

    batch: int = Field(20, ge=1, description="streams read side by side")
    bptt: int = Field(35, ge=1, description="tokens of a stream after which the gradient ends")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="sgd has no momentum")
    learning_rate: float = Field(2e-3, gt=0, description="peak rate; about 20 suits sgd, 1e-3 to 4e-3 adam")
    output_bias: Start = Field(
        "frequencies",
        description="where the output layer's bias begins: at the logs of words' shares of the text, or 0",
    )
    neighbours: Tables = Field(
        "slim", description="tables that begin at the neighbours words have in the text, not at random: slim, all, none"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    weight_decay: float = Field(0.0, ge=0, description="of all weights")
    clip: float = Field(0.5, ge=0, description="norm that the gradient is cut to, 0: never")
    schedule: Literal["cosine", "linear", "constant", "plateau"] = Field(
        "cosine", description="plateau: the rate falls where the valid text gains nothing"
    )
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the run in which the rate rises")
    decay: float = Field(0.25, gt=0, lt=1, description="plateau: what the rate is multiplied by")
    steps: int | None = Field(None, ge=1, description="optimizer steps")
    epochs: float | None = Field(None, gt=0, description="passes over the training text")
    minutes: float | None = Field(None, gt=0, description="wall-clock limit of training")
    evaluate_steps: int | None = Field(None, ge=1, description="steps between judgements on the valid text; an epoch")
    evaluate_streams: int = Field(10, ge=1, description="streams that the valid text is read in")
    patience: int | None = Field(None, ge=1, description="judgements without a gain after which to stop")
    checkpoint_minutes: float = Field(5.0, ge=0, description="minutes between two checkpoints: what a kill may lose")
    log_steps: int = Field(50, ge=1, description="steps that a point of the curve averages")
    bf16: bool = Field(False, description="autocast to bfloat16")
    seed: int = Field(0, description="of weights, dropout and drawn noise")

    def planned_steps(self, windows: int) -> int | None:
        """The steps of a run over an epoch of so many windows; None where only the clock ends it."""
        if self.steps is not None:
            return self.steps
        if self.minutes is not None and self.epochs is None:
            return None
        return max(1, round((self.epochs or 10.0) * windows))

    def of_the_run(self) -> dict[str, Any]:
        """What has to stay the same for a run to go on: all but how often it is written down."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name not in _LIMITS}
