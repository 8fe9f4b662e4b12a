"""Recovery as a step of compression: the dense model is kept as the teacher."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewfold.distill.checks import check_models, vocabularies_of
from fewfold.distill.config import DistillConfig
from fewfold.distill.presets import phases_of
from fewfold.distill.reading import Reading
from fewfold.distill.rehearsal import rehearse
from fewfold.distill.stacks import is_seq2seq
from fewfold.errors import DistillError


@dataclass(frozen=True)
class Recovery:
    """Where a recovery after compression takes its texts from, and keeps what it writes.

    :param data: as of :func:`fewfold.distill` (None: the calibration texts).
    :param exclude: evaluation sentences to keep out.
    :param folder: for checkpoints while it runs; in the end ``distill.json`` and ``distill.png`` stand there.
    :param name: what records call the data.
    """

    data: Any = None
    exclude: Iterable[str] = ()
    folder: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class Distillation:
    """A planned recovery, teacher and texts included."""

    teacher: Any
    phases: list[DistillConfig]
    tokenizer: Any
    recovery: Recovery
    reading: Reading

    def run(self, student: Any) -> None:
        """Let the compressed model learn from the dense one."""
        from fewfold.distill.records import write_history
        from fewfold.distill.run import distil

        folder = self.recovery.folder
        outcome = distil(
            self.teacher, student, self.recovery.data, config=self.phases, tokenizer=self.tokenizer,
            checkpoints=folder, data_name=self.recovery.name, reading=self.reading,
        )  # fmt: skip
        if folder is not None:
            write_history(outcome, folder)


def prepare(
    model: Any, recover: Any, recovery: Recovery | None, calibration: Any, tokenizer: Any, replaced: Collection[str]
) -> Distillation | None:
    """Plan a recovery before anything is compressed; None where none is asked for.

    :param recover: phases, or what :func:`phases_of` reads as such.
    :param replaced: modules that are to be compressed.
    :raises DistillError: if there are no texts to distil on, too few or too short ones, a loss asks for what the
        model does not give, or the folder holds another run's checkpoints.
    """
    if recover is None or recover == []:
        return None
    phases, recovery = phases_of(recover), recovery or Recovery()
    data = calibration if recovery.data is None else recovery.data
    if data is None:
        raise DistillError("recovery needs texts: pass calibration=texts, or recovery=Recovery(data=texts)")
    if recovery.data is None and isinstance(data, Iterator):
        raise DistillError("compression and recovery both read these texts: pass a list, not an iterator")
    teacher = copy.deepcopy(model)
    check_models(teacher, model, vocabularies_of(tokenizer) if is_seq2seq(model) else tokenizer)
    reading = rehearse(teacher, data, phases, tokenizer, recovery.exclude, recovery.folder, replaced)
    return Distillation(teacher, phases, tokenizer, replace(recovery, data=data), reading)
