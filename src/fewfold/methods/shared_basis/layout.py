"""Which targets share a basis, and on which of their sides."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewfold.linalg.shared_basis import Side
from fewfold.methods.shared_basis.config import SharedBasis
from fewfold.surgery.roles import family_of, writes_residual
from fewfold.surgery.targets import Target


@dataclass(frozen=True)
class BasisLayout:
    """Sizes of a group.

    :param side: of the weights on which the basis lies.
    :param width: of the basis: inputs of every weight, or outputs.
    :param private: the weights' other sides, summed.
    """

    side: Side
    width: int
    private: int

    @property
    def full(self) -> int:
        """The rank at which nothing is lost."""
        return min(self.width, self.private)

    def numbers(self, rank: int) -> int:
        """Stored numbers at a rank."""
        return rank * (self.width + self.private)


def basis_groups(config: SharedBasis, targets: Sequence[Target]) -> list[tuple[tuple[Target, ...], BasisLayout]]:
    """Targets of one kind in runs of neighbouring layers, in the model's order of their first members.

    A kind is a name with its layer's number folded, and a size of the shared side. What lies in no layer stays alone.
    """
    kinds: dict[tuple[Any, ...], list[Target]] = defaultdict(list)
    for target in targets:
        side = _side(config, target)
        read = config.families and side == "in" and not writes_residual(target)
        name = family_of(target) if read else target.name
        alone = target.name if target.layer is None else ""
        folded = re.sub(r"(?<=\.)\d+(?=[.:])", "*", f".{name}", count=1)
        kinds[(folded, alone, side, target.columns if side == "in" else target.rows)].append(target)
    groups = []
    for (_, _, side, width), members in kinds.items():
        layers = sorted({target.layer or 0 for target in members})
        size = 1 if config.writers == "apart" and writes_residual(members[0]) else config.group
        runs: dict[int, list[Target]] = defaultdict(list)
        for target in members:
            runs[layers.index(target.layer or 0) // size].append(target)
        for run in runs.values():
            private = sum(target.rows if side == "in" else target.columns for target in run)
            groups.append((tuple(run), BasisLayout(side, width, private)))
    order = {target.name: number for number, target in enumerate(targets)}
    return sorted(groups, key=lambda group: order[group[0][0].name])


def _side(config: SharedBasis, target: Target) -> Side:
    return "out" if config.writers == "outputs" and writes_residual(target) else "in"
