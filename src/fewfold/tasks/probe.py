"""A linear probe: what a logistic regression reads off a frozen body (Alain and Bengio 2016)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fewfold.errors import TaskError
from fewfold.measure.fidelity import mean_states
from fewfold.optional import require
from fewfold.progress import step
from fewfold.tasks.glue import GLUE, Example, read_glue
from fewfold.tasks.judged import Judged
from fewfold.tasks.metrics import scores
from fewfold.tasks.result import Run, TaskResult, describe

PROBED = tuple(name for name, task in GLUE.items() if task.labels)


def probe(
    model: nn.Module, task: str = "sst2", *, tokenizer: Any, limit: int | None = None, eval_limit: int | None = None,
    max_length: int = 128, batch_size: int = 64, strength: float = 1.0, resamples: int = 1000,
) -> TaskResult:  # fmt: skip
    """Judge a model's representation: its weights stay as they are, scikit-learn fits a linear classifier.

    A text is the mean of its last hidden states over real tokens. A pair is the absolute difference and the product of
    its texts' means, as SentEval has them (Conneau and Kiela 2018). Features are standardized on the training examples.

    :param model: A transformers model, with or without a head; of an encoder-decoder the encoder is probed.
    :param task: A task of GLUE with classes, one of `PROBED`.
    :param tokenizer: The model's tokenizer.
    :param limit: Fit on the first so many training examples; None for all.
    :param eval_limit: Judge on the first so many examples of each split; None for all.
    :param max_length: Tokens a text.
    :param batch_size: Texts a forward.
    :param strength: The regression's C: the inverse of its L2 penalty.
    :param resamples: Bootstrap resamples of the examples for the intervals.
    :return: The task's metrics with their intervals, and what they depend on.
    :raises TaskError: If the task has no classes, a number is below 1, or only one class is left to fit on.
    :raises DataUnavailable: If the data cannot be had.
    :raises ImportError: If scikit-learn is missing.
    """
    start = time.perf_counter()
    if task not in PROBED:
        raise TaskError(f"probe(task={task!r}): a probe tells classes apart, choose one of {', '.join(PROBED)}")
    for name, given in (("limit", limit), ("eval_limit", eval_limit)):
        if given is not None and given < 1:
            raise TaskError(f"probe({name}={given}): give at least one example, or None for all")
    if not strength > 0:
        raise TaskError(f"probe(strength={strength}): give more than 0")

    def features(examples: Sequence[Example]) -> NDArray:
        return _features(model, tokenizer, examples, batch_size, max_length)

    train = read_glue(task, "train")
    learned = train.examples[:limit]
    labels = np.array([int(example.label) for example in learned])
    if len(set(labels.tolist())) < 2:
        raise TaskError(f"probe(limit={limit}): the first {len(learned)} examples are of one class; give more")
    learner = require("sklearn.pipeline").make_pipeline(
        require("sklearn.preprocessing").StandardScaler(),
        require("sklearn.linear_model").LogisticRegression(C=strength, max_iter=2000),
    )
    inputs = features(learned)
    with step("fitting the probe"):
        learner.fit(inputs, labels)
    metrics, records, seconds, tokens = {}, [], 0.0, 0
    data = {"train": {"source": train.source, "examples": len(learned)}}
    for split in GLUE[task].dev:
        found = read_glue(task, split)
        examples = found.examples[:eval_limit]
        begun = time.perf_counter()
        predicted = learner.predict(features(examples))
        seconds += time.perf_counter() - begun
        tokens += count_tokens(tokenizer, _distinct(examples), max_length)
        wanted = np.array([int(example.label) for example in examples])
        ending = f"_{split.removeprefix('dev_')}" if len(GLUE[task].dev) > 1 else ""
        named = scores(GLUE[task].metrics, wanted, predicted, resamples)
        metrics.update({name + ending: score for name, score in named.items()})
        records += [
            {"split": split, "index": place, "label": int(wanted[place]), "prediction": int(predicted[place])}
            for place in range(len(examples))
        ]
        data[split] = {"source": found.source, "examples": len(examples)}
    settings = {
        "finetune": None, "probe": {"limit": limit, "strength": strength}, "seeds": [0], "max_length": max_length,
        "batch_size": batch_size, "eval_limit": eval_limit, "resamples": resamples,
    }  # fmt: skip
    judged = Judged(metrics, records, len(records), len(records), tokens, seconds, "probe")
    minutes = (time.perf_counter() - start) / 60
    return TaskResult(task, [Run(0, None, judged)], describe(model), data, settings, minutes)


def count_tokens(tokenizer: Any, texts: Sequence[str], max_length: int) -> int:
    """Tokens that a model reads of these texts, padding left out."""
    return sum(map(len, tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]))


def _distinct(examples: Sequence[Example]) -> list[str]:
    return list(dict.fromkeys(text for example in examples for text in example[:2] if text is not None))


def _features(
    model: nn.Module, tokenizer: Any, examples: Sequence[Example], batch_size: int, max_length: int
) -> NDArray:
    """What the regression sees, `(examples, dim)` or of pairs `(examples, 2 · dim)`."""
    texts = _distinct(examples)
    place = {text: number for number, text in enumerate(texts)}
    states = mean_states(model, tokenizer, texts, batch_size, max_length).numpy()
    if not np.isfinite(states).all():
        raise TaskError(f"{type(model).__name__} gives NaN or infinity: its weights or its dtype are unfit")
    first = states[[place[example.first] for example in examples]]
    if examples[0].second is None:
        return first
    second = states[[place[str(example.second)] for example in examples]]
    return np.concatenate([np.abs(first - second), first * second], axis=1)
