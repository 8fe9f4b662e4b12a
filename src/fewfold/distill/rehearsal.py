"""What can be found out about a recovery before anything is compressed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fewfold.distill.checkpoints import phase_folder, refuse_others, work_key
from fewfold.distill.checks import check_data, vocabularies_of
from fewfold.distill.config import DistillConfig
from fewfold.distill.local import Local
from fewfold.distill.masked import BatchMasking
from fewfold.distill.objective import Objective
from fewfold.distill.reading import Reading, planned_steps, split_off
from fewfold.distill.stacks import is_seq2seq
from fewfold.distill.teachers import LiveTeacher
from fewfold.measure.modes import evaluating

TEXTS = 2


def rehearse(
    model: Any,
    data: Any,
    phases: Sequence[DistillConfig],
    tokenizer: Any,
    exclude: Iterable[str],
    checkpoints: Path | None = None,
    replaced: Collection[str] | None = None,
) -> Reading:
    """Read the texts and work out every loss once on a few of them, the model being its own student.

    :param model: the teacher; its parameters are not changed.
    :param checkpoints: the folder that the recovery will keep its checkpoints in.
    :param replaced: modules that will be compressed (None: any).
    :return: the texts, for the recovery.
    :raises DistillError: for whatever would stop the recovery later.
    """
    words = vocabularies_of(tokenizer) if is_seq2seq(model) else tokenizer
    reading = Reading(data, phases, words, exclude, model)
    for number, phase in enumerate(phases, 1):
        Local(phase, reading.examples.texts, getattr(tokenizer, "source", tokenizer)).rehearse(model, replaced)
        learned, _ = split_off(reading.tokens(phase), phase)
        check_data(learned, phase, planned_steps(phase, len(learned)))
        folder = phase_folder(checkpoints, number)
        if folder is not None:
            refuse_others(folder, work_key(phase, learned.fingerprint()))
        objective = Objective(phase, model, model).to(next(model.parameters()).device)
        masking = BatchMasking.of(phase, words)
        batch = learned.batch(list(range(min(TEXTS, len(learned)))))
        batch = batch if masking is None else masking(batch, 1)
        batch = {name: tensor.to(next(model.parameters()).device) for name, tensor in batch.items()}
        with evaluating(model), torch.no_grad():
            objective.prepare(model, learned.part(range(min(TEXTS, len(learned)))))
            given = LiveTeacher(model, objective.needs(0))(batch)
            objective(
                given, LiveTeacher(model, objective.needs(1))(batch), batch, dict.fromkeys(objective.counts(batch), 1.0)
            )
    return reading
