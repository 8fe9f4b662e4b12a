"""What can be found out about a recovery before anything is compressed or trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from fewfold.assembled import AssembledLinear
from fewfold.distill.checkpoints import phase_folder, refuse_others, work_key
from fewfold.distill.checks import check_cache, check_data, vocabularies_of
from fewfold.distill.config import DistillConfig
from fewfold.distill.local import Local
from fewfold.distill.masked import BatchMasking
from fewfold.distill.objective import Objective
from fewfold.distill.outputs import Outputs, run
from fewfold.distill.reading import Reading, planned_steps
from fewfold.distill.stacks import is_seq2seq
from fewfold.distill.teachers import ask, check_cacheable, move
from fewfold.distill.tokens import TokenisedTexts
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
        learned = _learned(reading, phase)
        folder = phase_folder(checkpoints, number)
        if folder is not None:
            refuse_others(folder, work_key(phase, learned.fingerprint()))
        _try(model, model, learned, phase, words)
    return reading


def check_phases(
    teacher: Any, student: Any, reading: Reading, phases: Sequence[DistillConfig], tokenizer: Any, cached: bool = False
) -> None:
    """Find out whether every phase can run, so that none is refused after the ones before it have trained for hours.

    :param tokenizer: of encoder–decoders both vocabularies'.
    :param cached: whether the teacher's outputs come from a cache.
    :raises DistillError: for whatever would stop one of them.
    """
    if cached:
        check_cache(phases)
    replaced = {name for name, module in student.named_modules() if isinstance(module, AssembledLinear)}
    for phase in phases:
        local = Local(phase, reading.examples.texts, getattr(tokenizer, "source", tokenizer))
        local.check(student)
        local.rehearse(teacher, replaced)
        learned = _learned(reading, phase)
        objective, outputs = _try(teacher, student, learned, phase, tokenizer)
        if cached:
            check_cacheable(objective.needs(1), outputs)


def _learned(reading: Reading, phase: DistillConfig) -> TokenisedTexts:
    """The texts that a phase learns on, enough of them."""
    learned, _ = reading.split(phase)
    check_data(learned, phase, planned_steps(phase, len(learned)))
    return learned


def _try(
    teacher: Any, student: Any, learned: TokenisedTexts, phase: DistillConfig, tokenizer: Any
) -> tuple[Objective, Outputs]:
    """Work out a phase's losses on a few texts; what the teacher gave for them."""
    device = next(student.parameters()).device
    objective = Objective(phase, student, teacher).to(device)
    masking = BatchMasking.of(phase, tokenizer)
    batch = learned.batch(list(range(min(TEXTS, len(learned)))))
    batch = batch if masking is None else masking(batch, 1)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    move(teacher, device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=phase.bf16)
    with evaluating(teacher, student), torch.no_grad(), half:
        objective.prepare(teacher, learned.part(range(min(TEXTS, len(learned)))))
        objective.to(device)
        wanted = ask(teacher, batch, objective.needs(1))
        objective(run(student, batch, objective.needs(0)), wanted, batch, dict.fromkeys(objective.counts(batch), 1.0))
    return objective, wanted
