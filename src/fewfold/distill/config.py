"""What is learned from the teacher, and how: losses, optimizer, schedule and limits; from Python or YAML."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fewfold.errors import DistillError

Layers = Literal["last", "all"] | list[int] | list[tuple[int, int]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HiddenTerm(_Strict):
    """Squared error of hidden states."""

    weight: float = Field(1.0, gt=0, description="of this loss in the sum")
    layers: Layers = Field(
        "last", description="'last', 'all' (0 is the embeddings' output), student layers, or (student, teacher) pairs"
    )
    kind: Literal["mse", "relative"] = Field(
        "mse", description="mean squared error, or that over the mean square of the teacher's vector, token by token"
    )
    stack: Literal["both", "encoder", "decoder"] = Field(
        "both", description="of an encoder–decoder: which stack; both learn with this weight each"
    )


class LogitsTerm(_Strict):
    """Nearness of the output distributions."""

    weight: float = Field(1.0, gt=0, description="of this loss in the sum")
    temperature: float = Field(1.0, gt=0, description="both softmaxes divide logits by it")
    kind: Literal["kl", "soft_cross_entropy"] = Field(
        "kl", description="KL divergence times T², or cross-entropy averaged over classes too and without T²; a head "
        "that gives one score learns the teacher's by squared error"
    )  # fmt: skip


class AttentionTerm(_Strict):
    """Nearness of what the heads do."""

    weight: float = Field(1.0, gt=0, description="of this loss in the sum")
    layers: Layers = Field("last", description="as of hidden states; layer 1 is the first")
    kind: Literal["scores", "probabilities", "values"] = Field(
        "probabilities",
        description="squared error of scaled scores before the softmax, KL divergence of attention, or KL divergence "
        "of relations between value vectors (MiniLM, Wang et al. 2020)",
    )
    stack: Literal["both", "encoder", "decoder", "cross"] = Field(
        "both", description="of an encoder–decoder: self-attention of both stacks or of one, or the decoder's "
        "attention to the encoder"
    )  # fmt: skip

    @model_validator(mode="after")
    def _crosses(self) -> AttentionTerm:
        if self.stack == "cross" and self.kind == "values":
            raise ValueError("kind='values' relates tokens of one stack: stack='cross' has scores or probabilities")
        return self


class WeightedTerm(_Strict):
    """A term with nothing to choose but its weight."""

    weight: float = Field(1.0, gt=0, description="of this loss in the sum")


class AnchorsTerm(_Strict):
    """Nearness of what a text is like: its similarities to some of the texts, which stand still."""

    weight: float = Field(1.0, gt=0, description="of this loss in the sum")
    count: int = Field(1024, ge=2, description="of the texts trained on, how many are anchors")
    temperature: float = Field(0.1, gt=0, description="of the softmax over cosines; the lower, the nearer ones count")


class DistillConfig(_Strict):
    """One phase of distillation.

    Squared errors and divergences are means over real tokens (``reduction="tokens"``), or over the texts of a batch
    of each text's own mean (``"examples"``). Without ``steps``, ``epochs`` or ``minutes``, one epoch is run.
    """

    hidden: list[HiddenTerm] = Field(default_factory=list, description="hidden states, one term or several")
    logits: LogitsTerm | None = Field(None, description="output distributions, of models with a head")
    attention: list[AttentionTerm] = Field(default_factory=list, description="what the heads do, one term or several")
    sentence: WeightedTerm | None = Field(
        None, description="1 − cosine of mean-pooled last hidden states (of an encoder–decoder: the encoder's)"
    )
    anchors: AnchorsTerm | None = Field(
        None, description="KL divergence between the teacher's and the student's softmax over cosines of a text to "
        "anchors, all mean-pooled as for `sentence`; the anchors' vectors are the teacher's",
    )  # fmt: skip
    labels: WeightedTerm | None = Field(
        None, description="cross-entropy with labels or target tokens, squared error with scores"
    )
    reduction: Literal["tokens", "examples"] = Field(
        "tokens", description="mean over all real tokens, or over texts of each one's own mean"
    )
    count_padding: bool = Field(False, description="padding counts like text (as the published code has it)")
    projection: bool = Field(False, description="learn a map from the student's width to the teacher's")
    dropout: bool = Field(False, description="the student's dropout is on")
    freeze_tables: bool = Field(
        False, description="token and position tables that were not compressed stay as they are"
    )

    max_length: int = Field(128, ge=2, description="tokens kept of a text, and of its target")
    noise: float = Field(
        0.3, ge=0, lt=1, description="where an encoder–decoder gets texts without targets, a text is its own target, "
        "and the source loses up to this share of its tokens; 0: none"
    )  # fmt: skip
    masking: float | None = Field(
        None, gt=0, lt=1, description="share of tokens hidden from both models, as masked language models are trained: "
        "logits and labels count there alone, and labels are the tokens themselves",
    )  # fmt: skip
    pieces: bool = Field(False, description="cut texts into pieces of 4 to 32 words, so that all lengths are learned")
    batch_size: int = Field(32, ge=1, description="texts a step, over all processes and accumulated parts")
    accumulation: int = Field(1, ge=1, description="parts that the batch of a process is run in")

    local_steps: int = Field(
        0, ge=0, description="before the first step every compressed linear is fitted to the dense layer's outputs, "
        "one after another, in so many L-BFGS steps (20 is usual); 0: not"
    )  # fmt: skip
    optimizer: Literal["adamw", "bert_adam"] = Field(
        "adamw", description="AdamW, or Adam without bias correction as BERT's code has it"
    )
    learning_rate: float = Field(3e-4, gt=0, description="its peak")
    rates: Literal["equal", "by_size"] = Field(
        "equal", description="one learning rate, or larger ones for tensors of larger numbers than weights have: "
        "factors, sub-vectors"
    )  # fmt: skip
    whole_rate_loss: float | None = Field(
        None, gt=0, description="a student whose held-out loss before training is lower takes less of the learning "
        "rate, in proportion to the loss's root: near the teacher, whole steps lead away from it"
    )  # fmt: skip
    betas: tuple[float, float] = Field((0.9, 0.999), description="of Adam")
    epsilon: float = Field(1e-8, gt=0, description="of Adam")
    weight_decay: float = Field(0.0, ge=0, description="of all but biases and norms")
    clip: float = Field(1.0, ge=0, description="norm that gradients are cut to, 0: never")
    clip_by: Literal["model", "tensor"] = Field("model", description="the norm of all gradients together, or of each")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="how the rate falls after the rise")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the run in which the rate rises")
    bf16: bool = Field(False, description="autocast to bfloat16")
    quantization_aware: bool = Field(
        True, description="what is kept in 2 to 4 bits is rounded in every pass, and gradients go straight through"
    )

    steps: int | None = Field(None, ge=1, description="optimizer steps")
    epochs: float | None = Field(None, gt=0, description="passes over the texts")
    minutes: float | None = Field(None, gt=0, description="wall-clock limit; the schedule then follows the clock")
    validation: int = Field(128, ge=0, description="texts held out to measure the loss on; a tenth of all at most")
    evaluate_minutes: float = Field(5.0, gt=0, description="minutes between two measurements on held-out texts")
    patience: int | None = Field(None, ge=1, description="measurements without a gain after which to stop")
    checkpoint_minutes: float = Field(5.0, gt=0, description="minutes between two checkpoints: what a kill may lose")
    log_steps: int = Field(10, ge=1, description="steps that one point of the loss curve averages")
    seed: int = Field(0, description="of the order of texts, what is held out, and dropout")
    name: str = Field("custom", description="what records call it")
    source: str = Field("", description="where it comes from, in words")

    @field_validator("hidden", "attention", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else [] if value is None else [value]

    @model_validator(mode="after")
    def _teaches(self) -> DistillConfig:
        if not (self.hidden or self.attention or self.logits or self.of_vectors or self.labels):
            raise ValueError("no loss: give at least one of hidden, logits, attention, sentence, anchors, labels")
        if self.masking is not None and self.reduction == "examples" and (self.logits or self.labels):
            raise ValueError("masking counts masked tokens alike: take reduction='tokens'")
        if self.patience is not None and not self.validation:
            raise ValueError("patience counts measurements on held-out texts: give validation=…, or leave patience out")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation={self.accumulation} does not divide batch_size={self.batch_size}")
        return self

    @property
    def of_vectors(self) -> bool:
        """Whether a loss is about the vectors of whole texts."""
        return self.sentence is not None or self.anchors is not None

    def changed(self, **values: Any) -> DistillConfig:
        """A checked copy with other values.

        :raises DistillError: naming the wrong key or value.
        """
        return validated({**self.model_dump(), **values}, f"config {self.name}")

    def limited(self, minutes: float | None = None, steps: int | None = None) -> DistillConfig:
        """A copy with limits: minutes beside its own steps or epochs, steps in their place.

        :raises DistillError: if one is not above 0.
        """
        limits: dict[str, Any] = {} if minutes is None else {"minutes": minutes}
        return self.changed(**limits) if steps is None else self.changed(**limits, steps=steps, epochs=None)


def validated(data: Any, where: str) -> DistillConfig:
    """A config from a dictionary.

    :param where: what errors call it.
    :raises DistillError: naming the wrong key or value.
    """
    try:
        return DistillConfig.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join(str(piece) for piece in problem["loc"])
            lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": "))
        raise DistillError(f"{where} is wrong at " + "; ".join(lines)) from None


def read_yaml(path: str | os.PathLike[str]) -> list[DistillConfig]:
    """Read a config file: the fields of one phase, or a list of phases under ``phases:``.

    :raises DistillError: if the file is missing, no YAML, or holds a wrong key or value.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DistillError(f"config {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise DistillError(f"config {path} is no YAML: {error}") from None
    if not isinstance(data, dict):
        raise DistillError(f"config {path} is empty; write losses such as 'hidden: {{weight: 1}}'")
    phases = data.get("phases", [data])
    return [validated(phase, f"config {path}, phase {number}") for number, phase in enumerate(phases, 1)]


def write_yaml(phases: list[DistillConfig], path: str | os.PathLike[str]) -> None:
    """Write a config file that :func:`read_yaml` reads back equal."""
    data = [phase.model_dump(mode="json", exclude_defaults=True) for phase in phases]
    Path(path).write_text(yaml.safe_dump({"phases": data}, sort_keys=False), encoding="utf-8")


_UNITS = {"s": 1 / 60, "sec": 1 / 60, "m": 1, "min": 1, "minute": 1, "minutes": 1, "h": 60, "hour": 60, "hours": 60}


def parse_limit(text: str) -> dict[str, Any] | None:
    """'20min', '1.5 h' or '300 steps' as values of a config; None for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text)
    if match is None:
        return None
    if match[2] in ("step", "steps") and match[1].isdigit():
        return {"steps": int(match[1])}
    return {"minutes": float(match[1]) * _UNITS[match[2]]} if match[2] in _UNITS else None
