"""Student, teacher and losses as one module, whose forward pass gives the losses of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.distill.config import DistillConfig
from fewfold.distill.objective import Objective
from fewfold.distill.outputs import run
from fewfold.distill.teachers import Teacher
from fewfold.measure.modes import evaluating
from fewfold.store import Store
from fewfold.stored import StoredEmbedding
from fewfold.training.rounding import Rounding


class Pupil(nn.Module):
    """What is trained: the student and the objective's projections.

    :param teacher: no module, so that its weights are neither trained nor saved nor sent to other processes.
    """

    def __init__(self, student: Any, objective: Objective, teacher: Teacher) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        self.rounding = Rounding(student if objective.config.quantization_aware else nn.Module(), self)
        self.needs = objective.needs(0)
        self.teacher = teacher

    def forward(
        self, batch: Mapping[str, Tensor], shares: Mapping[str, float], teacher: Teacher | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses by name.

        :param shares: as of :class:`Objective`.
        :param teacher: another teacher than the usual.
        """
        wanted = (teacher or self.teacher)(batch)
        return self.objective(run(self.student, batch, self.needs), wanted, batch, shares)

    def train(self, mode: bool = True) -> Pupil:
        """As every module's, but the student's dropout stays off unless it is asked for."""
        super().train(mode)
        if not self.objective.config.dropout:
            self.student.eval()
        return self

    @property
    def _no_split_modules(self) -> list[str]:
        """The blocks that accelerate shards apart; transformers' name for them."""
        named = self.student._no_split_modules or ()
        there = {type(module).__name__ for module in self.student.modules()}
        return sorted(there & set(named))


@contextmanager
def training(teacher: nn.Module, student: nn.Module, config: DistillConfig) -> Iterator[None]:
    """Freeze what is not to be trained while the block runs; modes and flags are as before afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in student.parameters()}
    if config.freeze_tables:
        for table in dense_tables(student):
            table.requires_grad_(False)
    try:
        with evaluating(teacher, student):
            yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def dense_tables(model: nn.Module) -> list[nn.Module]:
    """Look-up tables that hold a dense weight: those that are assembled, kept in another dtype, or stored for others
    to be assembled from, are not.
    """
    from fewfold.assembled import AssembledEmbedding

    holders = [module for module in model.modules() if isinstance(module, AssembledEmbedding | Store)]
    inside = {id(part) for holder in holders for part in holder.modules()}
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding) and not isinstance(module, StoredEmbedding) and id(module) not in inside
    ]


def finite(losses: Mapping[str, Tensor]) -> bool:
    """Whether every loss is a number."""
    return bool(torch.stack([loss.detach() for loss in losses.values()]).isfinite().all())
