"""The public face of recovery: ``fewfold.distill``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fewfold.checkpoint.folders import check_writable
from fewfold.checkpoint.save import save
from fewfold.distill.records import write_history
from fewfold.distill.run import distil
from fewfold.training.processes import is_main_process


def distill(
    teacher: Any,
    student: Any,
    data: Any,
    *,
    config: Any = "general",
    tokenizer: Any = None,
    student_tokenizer: Any = None,
    out: str | os.PathLike[str] | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    exclude: Iterable[str] = (),
    cache_teacher: str | os.PathLike[str] | None = None,
    resume: bool = True,
    source: str | os.PathLike[str] | None = None,
    data_name: str | None = None,
) -> Any:
    """Let a compressed student learn from its dense teacher, in place.

    :param teacher: the dense model; it is only read.
    :param student: the compressed model; all its stored tensors train. Integer-kept ones have floats
        behind them and end on their grids.
    :param data: texts, rows with text and label columns (dictionaries, named tuples), or a datasets.Dataset.
    :param config: a DistillConfig or a list of them (phases), a dict, a YAML path, or a preset's name.
    :param tokenizer: of both models.
    :param student_tokenizer: only to check that it is the same.
    :param out: folder to save the student into, with ``distill.json`` and ``distill.png``. Checkpoints stand in
        ``OUT.checkpoints`` while it runs; a run that was killed goes on from there.
    :param minutes: wall-clock limit of everything, preparations included; the learning rate then follows the clock.
    :param steps: optimizer steps of everything.
    :param exclude: evaluation sentences: texts that are one of them, or hold one, are left out.
    :param cache_teacher: run the teacher over all texts once, and keep its outputs in this folder.
    :param resume: go on from checkpoints of the same run.
    :param source: folder whose files beside the weights (tokenizer, sentence-transformers) are kept in ``out``.
    :param data_name: what records call the data.
    :return: ``student``.
    :raises DistillError: naming what does not fit, or at which step a loss was no number.
    """
    folder = None if out is None else check_writable(out)
    checkpoints = None if folder is None else folder.with_name(f"{folder.name}.checkpoints")
    if checkpoints is not None and not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    outcome = distil(
        teacher, student, data, config=config, tokenizer=tokenizer, student_tokenizer=student_tokenizer,
        minutes=minutes, steps=steps, exclude=exclude, checkpoints=checkpoints, resume=resume,
        cache_teacher=None if cache_teacher is None else Path(cache_teacher), data_name=data_name,
    )  # fmt: skip
    if folder is not None and checkpoints is not None and is_main_process():
        save(student, folder, tokenizer=tokenizer, source=source)
        write_history(outcome, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return student
