"""Judge a model on a task: as it is, or after fine-tuning, over several seeds."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

from torch import nn

from fewfold.errors import TaskError
from fewfold.tasks.answering import Answering
from fewfold.tasks.batches import Padding
from fewfold.tasks.captioning.task import CAPTIONS, Captioning
from fewfold.tasks.classify import Classification
from fewfold.tasks.finetune import FineTuning, fine_tune, run_key
from fewfold.tasks.glue import GLUE
from fewfold.tasks.heads import has_head, with_head
from fewfold.tasks.judged import Task
from fewfold.tasks.kept import KeptRuns
from fewfold.tasks.result import Run, TaskResult, describe
from fewfold.tasks.translation.task import LANGUAGE_PAIRS, Translation

GENERATED = (*LANGUAGE_PAIRS, *CAPTIONS)
TASKS = (*GLUE, "squad", *GENERATED)


def evaluate(
    model: nn.Module,
    task: str,
    *,
    tokenizer: Any,
    finetune: FineTuning | None = None,
    seeds: Sequence[int] = (0,),
    max_length: int | None = None,
    stride: int = 128,
    batch_size: int = 64,
    eval_limit: int | None = None,
    resamples: int = 1000,
    beams: int = 1,
    predictions: str | PathLike[str] | None = None,
    checkpoints: str | PathLike[str] | None = None,
    checkpoint_minutes: float = 5.0,
) -> TaskResult:
    """Judge a model, dense or compressed, on a task's development data with its official metrics.

    With `finetune`, each seed trains a copy of the model: one that has the task's head goes on from there, any other
    gets a fresh head around its body (see `with_head`). The model itself stays as it is.

    :param model: A transformers model; without `finetune` it needs the task's head, except for "stsb", where the
        cosines of a bare encoder's sentence vectors are judged.
    :param task: "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "squad", or
        "multi30k-en-de", "multi30k-de-en" and "flickr8k-captions", which are judged as they are.
    :param tokenizer: The model's tokenizer.
    :param finetune: How to fine-tune first; None not to.
    :param seeds: One run each; one where nothing is trained.
    :param max_length: Tokens a text (default 128) or a window of SQuAD (default 384; 256 or 192 save time).
    :param stride: Of SQuAD: tokens that neighbouring windows share.
    :param batch_size: Rows a forward while judging.
    :param eval_limit: Judge on the first so many examples; None for all.
    :param resamples: Bootstrap resamples of the examples for the intervals.
    :param beams: Of translation and captioning: beams of the search, 1 is greedy.
    :param predictions: A file for all predictions, a JSON object a line.
    :param checkpoints: With `finetune`: a folder for finished seeds and for checkpoints of the one that is trained. An
        evaluation that was killed goes on from there, to the same numbers. It stays, for you to remove.
    :param checkpoint_minutes: Between two checkpoints.
    :return: Metrics with mean, spread and intervals, counts, seconds, and what they depend on.
    :raises TaskError: If the task is unknown, the model does not fit, or the data is not as it should be.
    :raises DataUnavailable: If the data cannot be had.
    """
    start = time.perf_counter()
    seeds = list(dict.fromkeys(seeds))
    if not seeds or (finetune is None and len(seeds) > 1):
        raise TaskError(f"evaluate(seeds={seeds}): give at least one seed, and only one where nothing is trained")
    if eval_limit is not None and eval_limit < 1:
        raise TaskError(f"evaluate(eval_limit={eval_limit}): judge on at least one example, or None for all")
    work = task_named(task, tokenizer, max_length, stride, eval_limit, beams)
    if finetune is None:
        if not work.judges(model):
            raise TaskError(
                f"{task}: {type(model).__name__} is no encoder–decoder that generates: give a {work.kind} model"
                if task in GENERATED
                else f"{task}: {type(model).__name__} has no head for it ({work.kind}, {work.num_labels} labels): pass "
                "finetune=FineTuning() to train one, or load a model that was fine-tuned"
            )
        judged = work.judge(model, batch_size, resamples)
        runs, described = [Run(seeds[0], None, judged)], describe(model)
    else:
        judging = (task, max_length, stride, batch_size, resamples, work.judged_on())
        kept = None if checkpoints is None else KeptRuns(checkpoints, judging)
        runs, described = _train_and_judge(
            model, work, tokenizer, finetune, seeds, batch_size, resamples, kept, checkpoint_minutes
        )
    settings = {
        "finetune": None if finetune is None else asdict(finetune),
        "seeds": [run.seed for run in runs],
        "max_length": work.max_length,
        "batch_size": batch_size,
        "eval_limit": eval_limit,
        "resamples": resamples,
        **({"beams": beams} if task in GENERATED else {}),
    }
    spent = sum(run.judged.seconds + (run.training.seconds if run.training else 0) for run in runs)
    minutes = max(time.perf_counter() - start, spent) / 60  # what was done before a kill counts
    result = TaskResult(task, runs, described, work.data(), settings, minutes)
    if predictions is not None:
        result.save_predictions(predictions)
    return result


def task_named(
    task: str, tokenizer: Any, max_length: int | None = None, stride: int = 128, eval_limit: int | None = None,
    beams: int = 1,
) -> Task:  # fmt: skip
    """Make a task with its data.

    :param task: One of `TASKS`.
    :param tokenizer: The model's tokenizer.
    :param max_length: As for `evaluate`.
    :param stride: As for `evaluate`.
    :param eval_limit: As for `evaluate`.
    :param beams: As for `evaluate`.
    :return: The task.
    :raises TaskError: If the task is unknown, or its data is not as it should be.
    """
    if task == "squad":
        return Answering(tokenizer, max_length or 384, stride, eval_limit)
    if task in LANGUAGE_PAIRS:
        return Translation(task, tokenizer, max_length or 128, eval_limit, beams)
    if task in CAPTIONS:
        return Captioning(task, tokenizer, max_length or 30, eval_limit, beams)
    if task not in GLUE:
        raise TaskError(f"no task {task!r}: choose one of {', '.join(TASKS)}")
    return Classification(task, tokenizer, max_length or 128, eval_limit)


def _train_and_judge(
    model: nn.Module, work: Task, tokenizer: Any, finetune: FineTuning, seeds: Sequence[int], batch_size: int,
    resamples: int, runs_kept: KeptRuns | None, checkpoint_minutes: float,
) -> tuple[list[Run], dict[str, Any]]:  # fmt: skip
    runs, described = [], {}
    if work.kind in ("translation", "captioning"):
        work.training_rows(model, None)
    kept = has_head(model, work.num_labels, work.kind)
    for seed in seeds:
        trained: Any = copy.deepcopy(model)
        if not kept:
            trained = with_head(trained, work.num_labels, work.kind, seed)
        if trained.config.pad_token_id is None:  # classifiers of causal models look for the last real token
            trained.config.pad_token_id = Padding(tokenizer).filler
        rows, examples = work.training_rows(trained, finetune.limit)
        key = None if runs_kept is None else run_key(trained, rows, finetune, seed)
        place = None if runs_kept is None or key is None else runs_kept.place(seed, key)
        found = None if place is None else KeptRuns.found(place)
        if found is not None:
            described = found[1]
            runs.append(found[0])
            continue
        training = fine_tune(
            trained, tokenizer, rows, finetune, seed, examples,
            None if place is None else place / "checkpoints", checkpoint_minutes, key,
        )  # fmt: skip
        described = {**describe(trained), "head": "kept" if kept else "fresh"}
        runs.append(Run(seed, training, work.judge(trained, batch_size, resamples)))
        if place is not None:
            KeptRuns.keep(place, runs[-1], described)
    return runs, described
