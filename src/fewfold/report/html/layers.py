"""A compressed folder under the glass: ranks, sizes, errors and spectra, weight by weight."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.densify import densify
from fewfold.checkpoint.save import load
from fewfold.progress import step, track
from fewfold.summary import summary
from fewfold.surgery.targets import find_targets, read_weight, split_fused

SPECTRUM_POINTS = 96


@dataclass(frozen=True)
class Layer:
    """One replaced weight.

    :param role: the name without its layer's number, such as ``attention.self.query``.
    :param layer: 0-based; None outside of layers.
    :param rank: None where the method has none.
    :param parameters: numbers stored for this weight alone; what a store holds for many counts there.
    :param bytes: stored bytes of this weight alone.
    :param dense: numbers of the dense weight.
    :param error: relative Frobenius error of the assembled weight to the dense one; None where that is not known.
    :param spectrum: singular values of the assembled weight over the largest, at most 96 of them, evenly spaced.
    """

    name: str
    role: str
    layer: int | None
    method: str
    settings: str
    stored: str
    rank: int | None
    parameters: int
    bytes: int
    dense: int
    error: float | None = None
    spectrum: tuple[float, ...] = ()


@dataclass(frozen=True)
class Study:
    """A compressed folder: its weights, its stores and how it came about."""

    folder: str
    architecture: str
    parameters: int
    dense_parameters: int
    bytes: int
    layers: list[Layer]
    stores: list[dict[str, Any]]
    provenance: dict[str, Any]
    notes: list[str]


def study(folder: Path, dense: Path | None = None) -> Study:
    """Look into a compressed folder.

    :param dense: the dense model's folder, to which errors are taken.
    :raises CheckpointError: if one of the folders holds no model.
    """
    with step(f"loading {folder.name}"):
        model = load(folder)
    structure = structure_of(model)
    assert structure is not None
    told = summary(model)
    assembled = _weights(densify(copy.deepcopy(model)))
    originals = _weights(load(dense)) if dense is not None else {}
    records = {record.name: record for record in structure.targets}
    rows = [row for row in told.rows if row.target in records]
    places = roles_of([row.target for row in rows])
    layers = []
    for row in track(rows, "spectra and errors"):
        record, weight = records[row.target], assembled.get(row.target)
        original = originals.get(row.target)
        rank = record.settings.get("rank")
        role, place = places[row.target]
        error = None
        if weight is not None and original is not None and original.shape == weight.shape:
            error = relative_error(weight, original)
        layers.append(
            Layer(
                row.target, role, place, row.method, row.rank, row.stored, rank if isinstance(rank, int) else None,
                row.parameters, row.bytes, row.dense,
                error=error, spectrum=spectrum(weight) if weight is not None else (),
            )
        )  # fmt: skip
    stores = [
        {"name": row.target.strip("()"), "method": row.method, "settings": row.rank, "stored": row.stored,
         "parameters": row.parameters, "bytes": row.bytes}
        for row in told.rows if row.target not in records
    ]  # fmt: skip
    return Study(
        str(folder), type(model).__name__, told.parameters, told.dense_parameters, told.bytes, layers, stores,
        structure.provenance, told.notes,
    )  # fmt: skip


def roles_of(names: Sequence[str]) -> dict[str, tuple[str, int | None]]:
    """Roles and layers by name; a role that an encoder's and a decoder's layer both have is told by its whole path."""
    short = {name: role_of(name) for name in names}
    common = {role for (role, _), times in Counter(short.values()).items() if times > 1}
    return {
        name: (re.sub(r"(?:(?<=\.)|^)\d+\.", "", name, count=1), layer) if role in common else (role, layer)
        for name, (role, layer) in short.items()
    }


def role_of(name: str) -> tuple[str, int | None]:
    """A weight's part in its layer, and the layer: ``encoder.layer.3.output.dense`` is ``output.dense`` of layer 3."""
    found = re.match(r"(?:.*?\.)??(\d+)\.(.+)$", name)
    return (found[2], int(found[1])) if found else (name, None)


def relative_error(weight: Tensor, original: Tensor) -> float:
    """Frobenius norm of the difference over that of the original, in float64 and slice by slice."""
    lost = kept = 0.0
    for ours, theirs in zip(weight.split(4096), original.split(4096), strict=True):
        lost += float((ours.double() - theirs.double()).square().sum())
        kept += float(theirs.double().square().sum())
    return (lost / kept) ** 0.5 if kept else 0.0


def spectrum(weight: Tensor, points: int = SPECTRUM_POINTS) -> tuple[float, ...]:
    """Singular values over the largest one, from the smaller Gram matrix in float64; long spectra are thinned out.

    :param weight: ``(rows, columns)``.
    :return: at most so many values, largest first; none for a weight of zeros.
    """
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for rows in tall.split(4096):
        gram += rows.double().T @ rows.double()
    values = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()
    if float(values[0]) == 0:
        return ()
    places = torch.linspace(0, len(values) - 1, min(points, len(values))).round().long()
    return tuple(float(value) for value in (values / values[0])[places])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The matrices of a plain model by target name, parts of fused ones apart."""
    found = {}
    for target in find_targets(model):
        if target.refusal is not None:
            continue
        for one in {target, *split_fused(model, target)}:
            found[one.name] = read_weight(model, one).detach()
    return found
