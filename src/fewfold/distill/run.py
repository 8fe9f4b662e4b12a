"""The main line of recovery: check, read, tokenise, train, phase by phase."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewfold.distill.checkpoints import STATE, last_checkpoint, phase_folder, run_key, work_key
from fewfold.distill.checks import check_models, vocabularies_of
from fewfold.distill.clock import Clock
from fewfold.distill.config import DistillConfig
from fewfold.distill.history import History
from fewfold.distill.local import Local
from fewfold.distill.masked import BatchMasking
from fewfold.distill.objective import Objective
from fewfold.distill.outcome import Outcome
from fewfold.distill.presets import limited, phases_of
from fewfold.distill.reading import Reading, held_out_count, planned_steps
from fewfold.distill.records import note_recovery
from fewfold.distill.rehearsal import check_phases
from fewfold.distill.sketch import TEXTS, sketch
from fewfold.distill.stacks import is_seq2seq
from fewfold.distill.teachers import LiveTeacher, Teacher, cached_teacher, move
from fewfold.distill.tokens import TokenisedTexts
from fewfold.errors import DistillError
from fewfold.measure.environment import environment
from fewfold.optional import require
from fewfold.stored import unpack
from fewfold.training.complete import drop_incomplete
from fewfold.training.processes import is_main_process
from fewfold.training.processor import quick_on_processors
from fewfold.training.rates import rate_factors
from fewfold.training.sharded import exact_state, is_sharded, load_exact


def distil(
    teacher: Any,
    student: Any,
    data: Any,
    *,
    config: Any = "general",
    tokenizer: Any = None,
    student_tokenizer: Any = None,
    minutes: float | None = None,
    steps: int | None = None,
    exclude: Iterable[str] = (),
    checkpoints: Path | None = None,
    resume: bool = True,
    cache_teacher: Path | None = None,
    data_name: str | None = None,
    reading: Reading | None = None,
) -> Outcome:
    """Train a student in place; parameters as of :func:`fewfold.distill`.

    :param checkpoints: folder of checkpoints (None: none are written).
    :param reading: the data, where it has been read for these phases already.
    :raises DistillError: naming what does not fit, before anything is trained.
    """
    require("accelerate", "distill")
    started = time.perf_counter()
    phases = phases_of(config)
    if minutes is not None or steps is not None:
        phases = limited(phases, minutes, steps)
    writes = is_seq2seq(student)
    if writes:
        tokenizer = vocabularies_of(tokenizer)
    check_models(teacher, student, tokenizer, student_tokenizer)
    maskings = [BatchMasking.of(phase, tokenizer) for phase in phases]
    if writes and any(maskings):
        raise DistillError("masking is for models of one stack: an encoder–decoder has noise=… in its place")
    reading = reading or Reading(data, phases, tokenizer, exclude, student)
    unpack(student)
    check_phases(teacher, student, reading, phases, tokenizer, cache_teacher is not None)
    outcome = Outcome(student, environment=environment())
    for number, phase in enumerate(phases, 1):
        tokens = reading.tokens(phase)
        folder = phase_folder(checkpoints, number)
        masking = maskings[number - 1]
        fit = Local(phase, reading.examples.texts, getattr(tokenizer, "source", tokenizer))
        history = _phase(
            teacher, student, reading.split(phase), phase, started, folder, resume, cache_teacher, masking, fit
        )
        outcome.histories.append(history)
        outcome.phases.append(phase)
        outcome.data = {
            "name": data_name or "unnamed", "texts": len(tokens), "tokens": int(tokens.offsets[-1]),
            "held_out": held_out_count(len(tokens), phase), "excluded": reading.examples.excluded,
        }  # fmt: skip
        started = time.perf_counter()
    note_recovery(student, outcome)
    return outcome


def _phase(
    teacher: Any,
    student: Any,
    texts: tuple[TokenisedTexts, TokenisedTexts | None],
    config: DistillConfig,
    started: float,
    checkpoints: Path | None,
    resume: bool,
    cache: Path | None,
    masking: BatchMasking | None,
    local: Local,
) -> History:
    from fewfold.distill.pupil import Pupil, training
    from fewfold.distill.trainer import DistillTrainer
    from fewfold.distill.watch import Watch

    learned, held_out = texts
    clock = Clock(planned_steps(config, len(learned)), config.minutes, started)
    objective = Objective(config, student, teacher).to(next(student.parameters()).device)
    first = learned.batch(list(range(min(TEXTS, len(learned)))))
    begun = {
        name: sketch(model, first, objective.needs(side))
        for side, (name, model) in enumerate((("student", student), ("teacher", teacher)))
    }
    scored = masking if config.logits or config.labels else None
    objective.sparse = scored is not None and all(scored.sparse(model, learned) for model in (teacher, student))
    live: Teacher = LiveTeacher(teacher, objective.needs(1))
    with training(teacher, student, config), _folder(checkpoints) as folder:
        key = run_key(config, learned.fingerprint(), _shapes(student))
        rates = rate_factors(student) if config.rates == "by_size" else {}  # before anything has changed it
        if is_main_process():
            drop_incomplete(folder, STATE)
        found = last_checkpoint(folder, key, begun) if resume else None
        gains = local.recover(teacher, student, clock.left) if found is None else {}
        # what is sharded is no plain model any more: a copy is, and its numbers come back
        pupil = Pupil(copy.deepcopy(student) if is_sharded() else student, objective, live)
        trainer = DistillTrainer(pupil, learned, config, clock, folder, masking, rates)
        move(teacher, trainer.args.device)  # it says what the anchors are, and what is cached
        objective.prepare(teacher, learned)
        objective.to(next(pupil.parameters()).device)
        if cache is not None:
            sentences_only = not config.hidden and config.of_vectors
            with trainer.args.main_process_first():
                reads = None if clock.steps is None else clock.steps * config.batch_size
                pupil.teacher = cached_teacher(
                    cache, teacher, objective.needs(1), sentences_only, learned, clock.left, reads
                )
        marks = {"key": key, "work": work_key(config, learned.fingerprint()), "sketches": begun}
        watch = Watch(trainer, marks, held_out, live, saves=checkpoints is not None)
        watch.history.local = gains
        if found is not None:
            watch.restore(found[1], found[0])
            if watch.is_over:
                trainer._load_from_checkpoint(str(found[0]))
                watch.finish(watch.history.steps)
                return _given_back(pupil, student, watch.history)
        trainer.add_callback(watch)
        try:
            with quick_on_processors(config.bf16):
                trainer.train(resume_from_checkpoint=None if found is None else str(found[0]))
        finally:
            watch.stack.close()
            pupil.rounding.restore_()
        return _given_back(pupil, student, watch.history)


def _given_back(pupil: Any, student: Any, history: History) -> History:
    """The trained numbers are the student's, as they were rounded in training."""
    if pupil.student is not student:
        load_exact(student, exact_state(pupil.student))
    pupil.rounding.settle_(student)
    return history


def _shapes(student: Any) -> str:
    return repr([(name, tuple(parameter.shape)) for name, parameter in student.named_parameters()])


@contextmanager
def _folder(checkpoints: Path | None) -> Iterator[Path]:
    if checkpoints is not None:
        checkpoints.mkdir(parents=True, exist_ok=True)
        yield checkpoints
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
