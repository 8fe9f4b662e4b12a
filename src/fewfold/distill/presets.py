"""Ready configs: ours, and the two stages of the published recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fewfold.distill.config import (
    AnchorsTerm,
    AttentionTerm,
    DistillConfig,
    HiddenTerm,
    LogitsTerm,
    WeightedTerm,
    parse_limit,
    read_yaml,
    validated,
)
from fewfold.errors import DistillError

SOURCE = "Ren et al., Exploring Extreme Parameter Compression for Pre-trained Language Models (ICLR 2022)"

# task: epochs of the intermediate phase, epochs of the prediction phase, tokens kept of a text
TASKS = {
    "cola": (20, 30, 64),
    "mnli": (3, 3, 128),
    "mrpc": (20, 20, 128),
    "sst-2": (5, 5, 64),
    "sts-b": (15, 5, 128),
    "qqp": (3, 3, 128),
    "qnli": (10, 10, 128),
    "rte": (20, 20, 128),
}


def general() -> list[DistillConfig]:
    """Ours, for unlabelled text: hidden states, relative to the teacher's, and what texts are like; no dropout."""
    hidden = [HiddenTerm(layers="last", kind="relative"), HiddenTerm(layers="all", kind="relative")]
    return [
        DistillConfig(
            hidden=hidden, sentence=WeightedTerm(), anchors=AnchorsTerm(), batch_size=32, learning_rate=5e-4,
            rates="by_size", whole_rate_loss=1.0, warmup=0.1, schedule="cosine", pieces=True, freeze_tables=True,
            name="general", source="ours: last and all hidden states, texts' vectors and their similarities",
        )
    ]  # fmt: skip


def task() -> list[DistillConfig]:
    """Ours, for labelled data: the teacher's logits, gold labels at a tenth, and last hidden states."""
    return [
        DistillConfig(
            hidden=[HiddenTerm(kind="relative")], logits=LogitsTerm(temperature=2.0),
            labels=WeightedTerm(weight=0.1), learning_rate=3e-4, epochs=3,
            name="task", source="ours: logits at temperature 2, labels and last hidden states",
        )
    ]  # fmt: skip


def _published(batch: int, **values: Any) -> DistillConfig:
    """What both published stages share.

    Their code sums each text's mean over the batch, which is the batch size times our mean over texts. It clips
    every tensor's gradient by itself, and its Adam corrects no bias.
    """
    sources = {"source": SOURCE, "reduction": "examples", "count_padding": True, "dropout": True}
    settings: dict[str, Any] = {
        "optimizer": "bert_adam", "epsilon": 1e-6, "weight_decay": 0.01, "clip": 1.0, "clip_by": "tensor",
        "warmup": 0.1, "batch_size": batch, "validation": 0,
    }  # fmt: skip
    return DistillConfig(**{**sources, **settings, **values})


def _last_layer(batch: int) -> dict[str, Any]:
    return {
        "hidden": [HiddenTerm(weight=batch, layers="last")],
        "attention": [AttentionTerm(weight=batch, layers="last", kind="scores")],
    }


def published_stage_1() -> list[DistillConfig]:
    """General distillation: hidden states and attention scores of the last layer."""
    # 8 processes of 32 texts: their summed losses are averaged over processes; texts come with tokens masked
    last = _last_layer(32)
    return [_published(256, **last, masking=0.15, learning_rate=1e-4, epochs=2, name="published-stage-1")]


def published_stage_2(task_name: str = "mnli") -> list[DistillConfig]:
    """Task distillation in two phases with an optimizer each: the last layer, then the prediction.

    Scores (STS-B) are learned from the labels, classes from the teacher alone.
    """
    first, second, length = TASKS[task_name]
    name = f"published-stage-2-{task_name}"
    shared = {"learning_rate": 2e-5, "max_length": length, "seed": 526}
    predict: dict[str, Any] = {"logits": LogitsTerm(kind="soft_cross_entropy")}
    if task_name == "sts-b":
        predict = {"labels": WeightedTerm()}
    return [
        _published(
            32, **_last_layer(32), **shared, schedule="constant", warmup=0.0, epochs=first, name=f"{name}-intermediate"
        ) if phase == "intermediate" else _published(32, **predict, **shared, epochs=second, name=f"{name}-prediction")
        for phase in ("intermediate", "prediction")
    ]  # fmt: skip


PRESETS: dict[str, Callable[[], list[DistillConfig]]] = {
    "general": general,
    "task": task,
    "published-stage-1": published_stage_1,
    "published-stage-2": published_stage_2,
    **{f"published-stage-2-{name}": lambda name=name: published_stage_2(name) for name in TASKS},  # type: ignore[misc]
}


def phases_of(source: Any) -> list[DistillConfig]:
    """The phases of a config, a list of them, a dict, a YAML path, a preset's name, or a limit such as '20min'.

    A limit (or a number of minutes) runs the preset ``general``.

    :raises DistillError: naming what was not understood and what is known.
    """
    if isinstance(source, DistillConfig):
        return [source]
    if isinstance(source, dict):
        return [validated(source, "the distillation config")]
    limit = limit_of(source)
    if limit is not None:
        return [phase.limited(**limit) for phase in general()]
    if isinstance(source, str | os.PathLike):
        if Path(source).suffix in (".yaml", ".yml"):
            return read_yaml(source)
        if str(source) in PRESETS:
            return PRESETS[str(source)]()
    elif isinstance(source, Iterable):
        phases = [phase for item in source for phase in phases_of(item)]
        if phases:
            return phases
    raise DistillError(
        f"{source!r} is no distillation config; pass a DistillConfig, a .yaml file, a limit such as '20min' or "
        f"'300 steps', or one of the presets {', '.join(PRESETS)}"
    )


def limit_of(source: Any) -> dict[str, Any] | None:
    """A number of minutes, '20min' or '300 steps' as values of a config; None for anything else."""
    if isinstance(source, int | float) and not isinstance(source, bool):
        return {"minutes": float(source)}
    return parse_limit(source) if isinstance(source, str) else None


def planned(asked: Any, own: list[DistillConfig]) -> list[DistillConfig]:
    """The phases of a recovery that comes after a compression.

    :param asked: as of :func:`phases_of`; None for what the recipe says. A limit is that of the recipe's own phases,
        where it has some.
    :param own: the recipe's phases; none where it has no recovery.
    """
    if asked is None or asked == []:
        return own if asked is None else []
    limit = limit_of(asked) if own else None
    return phases_of(asked) if limit is None else limited(own, limit.get("minutes"), limit.get("steps"))


def limited(phases: list[DistillConfig], minutes: float | None, steps: int | None) -> list[DistillConfig]:
    """All phases within one limit: each gets a share by its epochs (equal shares where one has none).

    :param minutes: of all phases.
    :param steps: of all phases; every phase gets one at least.
    """
    lengths = [phase.epochs or 0.0 for phase in phases]
    shares = [length / sum(lengths) for length in lengths] if all(lengths) else [1 / len(phases)] * len(phases)
    return [
        phase.limited(
            None if minutes is None else minutes * share, None if steps is None else max(1, round(steps * share))
        )
        for phase, share in zip(phases, shares, strict=True)
    ]
