"""The table of methods that the matrix runs over, and the choice of combinations for an ordinary run.

A new method is one entry of ``METHODS``.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import MODELS, make, outputs

import fewfold
from fewfold import Dense, LowRank
from fewfold.checkpoint.structure import TargetRecord
from fewfold.surgery.targets import find_targets, select

STORED = ("fp32", "fp16", "bf16", "int8", "int4")
GROUP = 8  # columns that share a scale in int4: several groups a row, the last one short


@dataclass(frozen=True)
class MethodCase:
    """One method.

    :param full: config values under which it loses nothing, given a target.
    :param small: config values under which it stores fewer numbers (at least: loses something) on the tiny models.
    :param parameters: stored numbers of one replaced weight, from its record, biases left out.
    :param assemble: the dense weight of one record from its module's float64 tensors by name, in numpy.
    """

    config: type
    full: Callable[[Any], dict[str, Any]]
    small: dict[str, Any]
    parameters: Callable[[TargetRecord], int]
    assemble: Callable[[TargetRecord, dict[str, np.ndarray]], np.ndarray]


def _low_rank_weight(record: TargetRecord, tensors: dict[str, np.ndarray]) -> np.ndarray:
    if record.kind == "embedding":
        return np.einsum("vr,dr->vd", tensors["latents.weight"], tensors["up.weight"])
    return np.einsum("or,ri->oi", tensors["up.weight"], tensors["down.weight"])


METHODS: dict[str, MethodCase] = {
    "low_rank": MethodCase(
        LowRank,
        full=lambda target: {"rank": min(target.rows, target.columns)},
        small={"rank": 3, "weighting": "none"},
        parameters=lambda record: record.settings["rank"] * (record.rows + record.columns),
        assemble=_low_rank_weight,
    ),
    "dense": MethodCase(
        Dense,
        full=lambda target: {},
        small={},
        parameters=lambda record: record.rows * record.columns,
        assemble=lambda record, tensors: tensors["full.weight"],
    ),
}


def targets_of(name: str) -> list[str]:
    """Pattern list that takes everything replaceable of a tiny model: body, tables and heads."""
    return ["all", *MODELS[name].head]


def full_config(name: str, method: str, model: Any) -> Any:
    """The config under which ``method`` loses nothing on ``model``."""
    case = METHODS[method]
    chosen = {t.name: t for pattern in targets_of(name) for t in select(model, find_targets(model), pattern)}
    overrides = {target: values for target, t in chosen.items() if (values := case.full(t))}
    extra = {"weighting": "none", "rank": 1} if case.config is LowRank else {}
    return case.config(targets=targets_of(name), stored_dtype="fp32", overrides=overrides, **extra)


def small_config(name: str, method: str, stored: str) -> Any:
    """The lossy config of ``method`` in a stored dtype."""
    case = METHODS[method]
    return case.config(targets=targets_of(name), stored_dtype=stored, group_size=GROUP, **case.small)


def compressed(name: str, method: str, stored: str) -> Any:
    """A freshly compressed tiny model."""
    return fewfold.compress(make(name), small_config(name, method, stored))


@cache
def _prototype(name: str, method: str, stored: str) -> Any:
    return compressed(name, method, stored)


def copied(name: str, method: str, stored: str) -> Any:
    """A copy of one freshly compressed model: quicker than to compress again."""
    return copy.deepcopy(_prototype(name, method, stored))


_FOLDERS = tempfile.TemporaryDirectory(prefix="fewfold-matrix-")  # removed when the tests end


@cache
def saved(name: str, method: str, stored: str) -> tuple[Path, Any]:
    """A saved compressed model: its folder, and the outputs that it had."""
    model = copied(name, method, stored)
    folder = Path(_FOLDERS.name) / f"{name}-{method}-{stored}"
    model.save_pretrained(folder)
    return folder, outputs(model, name)


def pairwise(*axes: Sequence[Any]) -> set[tuple[Any, ...]]:
    """A small set of rows of the cross product in which every pair of values of two axes occurs."""
    rows = list(product(*axes))
    columns = list(combinations(range(len(axes)), 2))

    def pairs(row: tuple[Any, ...]) -> set[tuple[int, int, Any, Any]]:
        return {(a, b, row[a], row[b]) for a, b in columns}

    missing = set().union(*(pairs(row) for row in rows))
    chosen: set[tuple[Any, ...]] = set()
    while missing:
        best = max(rows, key=lambda row: len(pairs(row) & missing))
        chosen.add(best)
        missing -= pairs(best)
    return chosen


def matrix(*axes: Sequence[str]) -> list[Any]:
    """Every combination as a pytest parameter; those beyond pairwise coverage run only in the full matrix."""
    chosen = pairwise(*axes)
    return [
        pytest.param(*row, id="-".join(row), marks=() if row in chosen else pytest.mark.full) for row in product(*axes)
    ]
