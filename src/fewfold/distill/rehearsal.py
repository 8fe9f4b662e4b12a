"""What can be found out about a recovery before anything is compressed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fewfold.distill.checks import check_data, check_labels, vocabularies_of
from fewfold.distill.config import DistillConfig
from fewfold.distill.examples import read_examples
from fewfold.distill.masked import BatchMasking
from fewfold.distill.objective import Objective
from fewfold.distill.stacks import is_seq2seq
from fewfold.distill.teachers import LiveTeacher
from fewfold.measure.modes import evaluating

TEXTS = 2


def rehearse(model: Any, data: Any, phases: Sequence[DistillConfig], tokenizer: Any, exclude: Iterable[str]) -> None:
    """Read the texts and work out every loss once on a few of them, the model being its own student.

    :param model: the teacher; its parameters are not changed.
    :raises DistillError: for whatever would stop the recovery later.
    """
    from fewfold.distill.run import planned_steps, split_off, tokens_of

    writes = is_seq2seq(model)
    words = vocabularies_of(tokenizer) if writes else tokenizer
    labelled = [phase for phase in phases if phase.masking is None]
    examples = read_examples(data, any(phase.labels for phase in labelled), exclude, writes)
    check_labels(examples.labels if labelled else None, model)
    for phase in phases:
        learned, _ = split_off(tokens_of(examples, words, model, phase), phase)
        check_data(learned, phase, planned_steps(phase, len(learned)))
        objective = Objective(phase, model, model).to(next(model.parameters()).device)
        masking = BatchMasking.of(phase, words)
        batch = learned.batch(list(range(min(TEXTS, len(learned)))))
        batch = batch if masking is None else masking(batch, 1)
        batch = {name: tensor.to(next(model.parameters()).device) for name, tensor in batch.items()}
        with evaluating(model), torch.no_grad():
            given = LiveTeacher(model, objective.needs(0))(batch)
            objective(
                given, LiveTeacher(model, objective.needs(1))(batch), batch, dict.fromkeys(objective.counts(batch), 1.0)
            )
