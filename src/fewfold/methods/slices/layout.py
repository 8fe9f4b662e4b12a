"""How the weights of many layers fall into groups of slices of one shape, and back."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fewfold.surgery.roles import family_of, writes_residual
from fewfold.surgery.targets import Target

Side = Literal["in", "out"]


@dataclass(frozen=True)
class Cut:
    """How one target's weight ``(out, in)`` falls into slices.

    :param tiles: number of slices: blocks of the outputs or of the inputs.
    :param tiled: what is cut into blocks; None where the weight is one slice.
    :param rows: whether a slice's rows are outputs (as torch keeps weights) or inputs.
    """

    tiles: int = 1
    tiled: Side | None = None
    rows: Side = "in"

    def __post_init__(self) -> None:
        if self.tiles < 1 or (self.tiled is None) != (self.tiles == 1):
            raise ValueError(f"{self.tiles} tiles cut along {self.tiled}: one slice is not cut, several are")
        if self.rows not in ("in", "out") or self.tiled not in ("in", "out", None):
            raise ValueError(f"rows={self.rows!r}, tiled={self.tiled!r}: they are 'in' or 'out'")

    def block(self, target: Target) -> tuple[int, int]:
        """Outputs and inputs of one tile."""
        whole = target.rows if self.tiled == "out" else target.columns
        if whole % self.tiles:
            raise ValueError(f"{whole} {'outputs' if self.tiled == 'out' else 'inputs'} do not fall into {self.tiles}")
        outputs = target.rows // self.tiles if self.tiled == "out" else target.rows
        inputs = target.columns // self.tiles if self.tiled == "in" else target.columns
        return outputs, inputs

    def shape(self, target: Target) -> tuple[int, int]:
        """Rows and columns of one slice."""
        outputs, inputs = self.block(target)
        return (outputs, inputs) if self.rows == "out" else (inputs, outputs)


def cut_slices(weight: Tensor, cut: Cut) -> list[Tensor]:
    """The slices of a weight ``(out, in)``, views of it."""
    blocks = weight.chunk(cut.tiles, dim=1 if cut.tiled == "in" else 0)
    return [block if cut.rows == "out" else block.t() for block in blocks]


def join_slices(slices: Tensor, cut: Cut) -> Tensor:
    """The weight ``(out, in)`` that slices ``(tiles, rows, columns)`` were cut from."""
    blocks = slices if cut.rows == "out" else slices.transpose(1, 2)
    return torch.cat(list(blocks), dim=1 if cut.tiled == "in" else 0)


@dataclass(frozen=True)
class Group:
    """Targets whose slices have one shape and share a bank.

    :param name: of the bank.
    :param targets: in the model's order; a target's slices follow each other.
    :param cuts: by target name, in the orientation of the published system (see :func:`oriented`).
    :param shape: rows and columns of a slice.
    """

    name: str
    targets: tuple[Target, ...]
    cuts: Mapping[str, Cut]
    shape: tuple[int, int]

    @property
    def count(self) -> int:
        """How many slices."""
        return sum(self.cuts[target.name].tiles for target in self.targets)

    def first_slices(self) -> dict[str, int]:
        """By target name: the number of its first slice."""
        first, number = {}, 0
        for target in self.targets:
            first[target.name] = number
            number += self.cuts[target.name].tiles
        return first

    @property
    def families(self) -> list[str]:
        """What can be oriented by itself: kinds of targets that read the same input (q, k and v are one)."""
        return list(dict.fromkeys(kind_of(target) for target in self.targets))


def kind_of(target: Target) -> str:
    """A target's place in its layer: its family's name with the layer number folded to ``*``."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", f".{family_of(target)}.").strip(".")


def group_targets(
    targets: Sequence[Target], width: int, *, tile: bool = True, apart: bool = False, depth_groups: int = 1
) -> list[Group]:
    """Groups of targets whose slices have one shape.

    :param width: the model's, D (see :func:`fewfold.surgery.roles.model_width`).
    :param tile: cut weights of k·D × D (and D × k·D) into k slices of D × D.
    :param apart: attention and feed-forward weights in groups of their own.
    :param depth_groups: this many runs of layers, each with groups of its own.
    """
    layers = sorted({target.layer for target in targets if target.layer is not None})
    members: dict[tuple[Any, ...], list[tuple[Target, Cut]]] = defaultdict(list)
    for target in targets:
        cut = _cut(target, width, tile)
        outputs, inputs = cut.block(target)
        part = ("attention" if is_attention(target) else "feed_forward") if apart else ""
        depth = layers.index(target.layer) * depth_groups // len(layers) if target.layer is not None else 0
        members[(min(outputs, inputs), max(outputs, inputs), part, depth)].append((target, cut))
    groups = []
    for (small, large, part, depth), found in members.items():
        shape = found[0][1].shape(found[0][0])
        words = [f"{shape[0]}x{shape[1]}", part, f"part{depth + 1}" if depth_groups > 1 else ""]
        cuts = {target.name: cut for target, cut in found}
        assert sorted(shape) == [small, large]
        groups.append(Group("_".join(word for word in words if word), tuple(t for t, _ in found), cuts, shape))
    return groups


def oriented(group: Group, rows: Mapping[str, Side]) -> dict[str, Cut]:
    """The group's cuts with the rows of each family (see :attr:`Group.families`) as told; others stay."""
    cuts = {}
    for target in group.targets:
        cut = group.cuts[target.name]
        side = rows.get(kind_of(target), cut.rows)
        cuts[target.name] = Cut(cut.tiles, cut.tiled, side)
    return cuts


def orientations(group: Group) -> dict[str, dict[str, Side]]:
    """The two orientations with a name, as rows by family.

    ``published``: that of the paper's own code. ``residual``: the columns of every slice are the residual stream's
    side, so that one factor reads it and writes it everywhere. Where slices are not square there is only one.
    """
    published: dict[str, Side] = {}
    residual: dict[str, Side] = {}
    for target in group.targets:
        kind, cut = kind_of(target), group.cuts[target.name]
        published[kind] = cut.rows
        residual[kind] = cut.rows
        if group.shape[0] == group.shape[1] and cut.tiled is None:
            residual[kind] = "in" if writes_residual(target) else "out"
    return {"published": published, "residual": residual}


def is_attention(target: Target) -> bool:
    """Whether a target belongs to an attention block, by its name."""
    return any("att" in piece.lower() for piece in target.name.split("."))


def _cut(target: Target, width: int, tile: bool) -> Cut:
    """The published cut where there is one: wide and tall weights in blocks, with the blocks' side on rows.

    Other slices have the model's width on columns; square ones their inputs on rows, as the published.
    """
    rows, columns = target.rows, target.columns
    if tile and columns == width and rows > width and rows % width == 0:
        return Cut(rows // width, "out", "out")
    if tile and rows == width and columns > width and columns % width == 0:
        return Cut(columns // width, "in", "in")
    if rows in (columns, width):
        return Cut(rows="in")
    return Cut(rows="out" if columns == width or rows > columns else "in")
