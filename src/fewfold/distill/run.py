"""The main line of recovery: check, read, tokenise, train, phase by phase."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fewfold.calibration.inputs import cut_to_pieces
from fewfold.distill.checkpoints import last_checkpoint, run_key
from fewfold.distill.checks import check_data, check_labels, check_models, decoder_start, vocabularies_of
from fewfold.distill.clock import Clock
from fewfold.distill.config import DistillConfig
from fewfold.distill.examples import Examples, read_examples
from fewfold.distill.history import History
from fewfold.distill.masked import BatchMasking
from fewfold.distill.objective import Objective
from fewfold.distill.outcome import Outcome
from fewfold.distill.presets import limited, phases_of
from fewfold.distill.records import note_recovery
from fewfold.distill.sketch import TEXTS, sketch
from fewfold.distill.stacks import is_seq2seq
from fewfold.distill.teachers import LiveTeacher, Teacher, cached_teacher
from fewfold.distill.tokens import TokenisedTexts, tokenise
from fewfold.errors import DistillError
from fewfold.measure.environment import environment
from fewfold.measure.inputs import clipped_length
from fewfold.optional import require
from fewfold.stored import unpack
from fewfold.training.processor import quick_on_processors
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
) -> Outcome:
    """Train a student in place; parameters as of :func:`fewfold.distill`.

    :param checkpoints: folder of checkpoints (None: none are written).
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
    if cache_teacher is not None and any(maskings):
        raise DistillError("cache_teacher keeps what the teacher says of whole texts: leave out the cache, or masking")
    if writes and any(maskings):
        raise DistillError("masking is for models of one stack: an encoder–decoder has noise=… in its place")
    labelled = [phase for phase in phases if phase.masking is None]
    examples = read_examples(data, any(phase.labels for phase in labelled), exclude, writes)
    check_labels(examples.labels if labelled else None, student)
    unpack(student)
    outcome = Outcome(student, environment=environment())
    read: dict[tuple, TokenisedTexts] = {}
    for number, phase in enumerate(phases, 1):
        key = phase.pieces, phase.max_length, phase.noise, phase.seed
        if key not in read:
            read[key] = tokens_of(examples, tokenizer, student, phase)
        folder = None if checkpoints is None else checkpoints / f"phase-{number}"
        masking = maskings[number - 1]
        history = _phase(teacher, student, read[key], phase, started, folder, resume, cache_teacher, masking)
        outcome.histories.append(history)
        outcome.phases.append(phase)
        outcome.data = {
            "name": data_name or "unnamed", "texts": len(read[key]), "tokens": int(read[key].offsets[-1]),
            "held_out": held_out_count(len(read[key]), phase), "excluded": examples.excluded,
        }  # fmt: skip
        started = time.perf_counter()
    note_recovery(student, outcome)
    return outcome


def tokens_of(examples: Examples, tokenizer: Any, student: Any, config: DistillConfig) -> TokenisedTexts:
    """All texts tokenised, cut into pieces first where that is asked for and they stand alone."""
    if config.pieces and len(examples.columns) == 1 and examples.labels is None:
        examples = Examples(cut_to_pieces(examples.texts, config.seed))
    start = decoder_start(student) if is_seq2seq(student) else None
    length = clipped_length(student.config, config.max_length)
    return tokenise(examples, tokenizer, length, start, config.noise, config.seed)


def _phase(
    teacher: Any,
    student: Any,
    tokens: TokenisedTexts,
    config: DistillConfig,
    started: float,
    checkpoints: Path | None,
    resume: bool,
    cache: Path | None,
    masking: BatchMasking | None,
) -> History:
    from fewfold.distill.pupil import Pupil, training
    from fewfold.distill.trainer import DistillTrainer
    from fewfold.distill.watch import Watch

    learned, held_out = split_off(tokens, config)
    clock = Clock(planned_steps(config, len(learned)), config.minutes, started)
    check_data(learned, config, clock.steps)
    objective = Objective(config, student, teacher)
    objective.to(next(student.parameters()).device)
    first = learned.batch(list(range(min(TEXTS, len(learned)))))
    begun = {
        name: sketch(model, first, objective.needs(side))
        for side, (name, model) in enumerate((("student", student), ("teacher", teacher)))
    }
    objective.sparse = masking is not None and all(masking.sparse(model, learned) for model in (teacher, student))
    live: Teacher = LiveTeacher(teacher, objective.needs(1))
    with training(teacher, student, config), _folder(checkpoints) as folder:
        # what is sharded is no plain model any more: a copy is, and its numbers come back
        pupil = Pupil(copy.deepcopy(student) if is_sharded() else student, objective, live)
        trainer = DistillTrainer(pupil, learned, config, clock, folder, masking)
        if cache is not None:
            sentences_only = not config.hidden and config.sentence is not None
            with trainer.args.main_process_first():
                pupil.teacher = cached_teacher(cache, teacher, objective.needs(1), sentences_only, learned)
        key = run_key(config, learned.fingerprint(), _shapes(student))
        watch = Watch(trainer, key, held_out, live, saves=checkpoints is not None, begun=begun)
        found = last_checkpoint(folder, key, begun) if resume else None
        if found is not None:
            watch.restore(found[1], found[0])
            if watch.has_stalled or clock.is_over(watch.history.steps):
                trainer._load_from_checkpoint(str(found[0]))
                watch.finish(watch.history.steps)
                return _given_back(pupil, student, watch.history)
        trainer.add_callback(watch)
        with quick_on_processors(config.bf16):
            trainer.train(resume_from_checkpoint=None if found is None else str(found[0]))
        return _given_back(pupil, student, watch.history)


def _given_back(pupil: Any, student: Any, history: History) -> History:
    """The trained numbers are the student's."""
    if pupil.student is not student:
        load_exact(student, exact_state(pupil.student))
    return history


def planned_steps(config: DistillConfig, texts: int) -> int | None:
    """The steps of a run, None where only the clock ends it."""
    if config.steps is not None:
        return config.steps
    if config.minutes is not None and config.epochs is None:
        return None
    return max(1, round((config.epochs or 1.0) * (texts // config.batch_size)))


def held_out_count(texts: int, config: DistillConfig) -> int:
    """How many texts are held out: as asked, but never more than a tenth."""
    return min(config.validation, texts // 10)


def split_off(tokens: TokenisedTexts, config: DistillConfig) -> tuple[TokenisedTexts, TokenisedTexts | None]:
    """Texts to learn on, and texts to measure on."""
    count = held_out_count(len(tokens), config)
    if not count:
        return tokens, None
    order = np.random.default_rng(config.seed).permutation(len(tokens))
    return tokens.part(np.sort(order[count:]).tolist()), tokens.part(np.sort(order[:count]).tolist())


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
