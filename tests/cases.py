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
from tiny_models import MODELS, make, outputs

import fewfold
from fewfold import (
    Dense,
    EmbeddingAutoencoder,
    EmbeddingSharing,
    LowRank,
    SharedBasis,
    SharedFactors,
    SharedLayers,
    SubvectorCodes,
    TensorTrain,
    Tucker,
)
from fewfold.checkpoint.structure import StoreRecord, TargetRecord
from fewfold.linalg.tensor_train import balanced_factors
from fewfold.methods.shared_basis.layout import basis_groups
from fewfold.methods.slices.layout import group_targets
from fewfold.surgery.targets import find_targets, select, split_fused

STORED = ("fp32", "fp16", "bf16", "int8", "int4")
GROUP = 8  # columns that share a scale in int4: several groups a row, the last one short


@dataclass(frozen=True)
class MethodCase:
    """One method.

    :param config: its config.
    :param full: config values by target name under which it loses nothing, given these targets.
    :param small: config values under which it stores fewer numbers (at least: loses something) on the tiny models.
    :param parameters: stored numbers of one replaced weight, from its record, biases left out.
    :param assemble: the dense weight of one record in numpy, from its module's float64 tensors by name (and, where it
        has a store, the store's record and tensors).
    :param store_parameters: stored numbers of one store, from its record.
    :param tables: whether it replaces embeddings.
    :param linears: whether it replaces linear maps.
    :param heads: whether it also replaces linear maps outside of the layers.
    :param rounded: whether saving rounds some of its numbers in every stored dtype.
    :param scratch: whether it only serves training from scratch: it has no full size, and no row of a table goes.
    """

    config: type
    full: Callable[[list[Any]], dict[str, dict[str, Any]]]
    small: dict[str, Any]
    parameters: Callable[[TargetRecord], int]
    assemble: Callable[..., np.ndarray]
    store_parameters: Callable[[StoreRecord], int] = lambda record: 0
    tables: bool = True
    linears: bool = True
    heads: bool = True
    rounded: bool = False
    scratch: bool = False


def _low_rank_weight(record: TargetRecord, tensors: dict[str, np.ndarray]) -> np.ndarray:
    if record.kind == "embedding":
        return np.einsum("vr,dr->vd", tensors["latents.weight"], tensors["up.weight"])
    return np.einsum("or,ri->oi", tensors["up.weight"], tensors["down.weight"])


def _autoencoder_weight(record: TargetRecord, tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.einsum("vr,dr->vd", tensors["latents.weight"], tensors["up.weight"]) + tensors["up.bias"]


def _coded_columns(record: TargetRecord) -> int:
    """Columns of the coded matrix: a table's short rows."""
    return record.settings.get("rank") or record.columns


def _coded_parameters(record: TargetRecord) -> int:
    columns, settings = _coded_columns(record), record.settings
    books = [s["words"] * s["width"] * (1 if s["shared"] else -(-columns // s["width"])) for s in settings["stages"]]
    tail = record.columns * (settings["rank"] + settings["mean_row"]) if record.kind == "embedding" else 0
    return sum(books) + (record.rows if settings["scales"] else 0) + tail


def _coded_weight(record: TargetRecord, tensors: dict[str, np.ndarray]) -> np.ndarray:
    columns, weight = _coded_columns(record), np.zeros((record.rows, _coded_columns(record)))
    for number, stage in enumerate(record.settings["stages"]):
        codes, words = tensors[f"coded.codes_{number}"].astype(int), tensors[f"coded.codebooks.{number}.weight"]
        pools = words.reshape(-1, stage["words"], stage["width"])
        chains = [pools[0 if stage["shared"] else place][codes[:, place]] for place in range(codes.shape[1])]
        weight += np.concatenate(chains, axis=1)[:, :columns]
    if record.settings["scales"]:
        weight *= tensors["coded.scales"][:, None]
    return weight @ tensors["up.weight"].T + tensors["up.bias"] if record.kind == "embedding" else weight


def _full_codes(target: Any) -> dict[str, Any]:
    """A word for every sub-vector: of the matrix, or of a table's column block."""
    width = min(4, target.columns)
    return {"width": width, "words": target.rows if target.kind == "embedding" else target.numel // width}


def _join(record: TargetRecord, slices: list[np.ndarray]) -> np.ndarray:
    """Slices back into the weight, ``(out, in)``."""
    blocks = [part if record.settings["rows"] == "out" else part.T for part in slices]
    return np.concatenate(blocks, axis=1 if record.settings["tiled"] == "in" else 0)


def _factored_weight(
    record: TargetRecord, tensors: dict[str, np.ndarray], store: StoreRecord, shared: dict[str, np.ndarray]
) -> np.ndarray:
    bank = store.settings["banks"][record.settings["bank"]]
    left, right = (shared[f"factors.{bank[side]}.weight"] for side in ("left", "right"))
    cores = shared[f"cores.{record.settings['bank']}.weight"].reshape(-1, len(left), len(right))
    slices = []
    for number in range(record.settings["first"], record.settings["first"] + record.settings["tiles"]):
        if bank["size"] is None:
            core = cores[number]
        else:
            mix = shared[f"mixes.{record.settings['bank']}.weight"][number]
            core = sum(weight * one for weight, one in zip(mix, cores, strict=True))
        slices.append(left.T @ core @ right)
    return _join(record, slices)


def _factored_parameters(store: StoreRecord) -> int:
    factors, total = store.settings["factors"], 0
    for bank in store.settings["banks"].values():
        size = bank["size"] or bank["slices"]
        total += size * factors[bank["left"]][0] * factors[bank["right"]][0]
        total += 0 if bank["size"] is None else bank["size"] * bank["slices"]
    return total + sum(rank * width for rank, width in factors.values())


def _basis_weight(
    record: TargetRecord, tensors: dict[str, np.ndarray], store: StoreRecord, shared: dict[str, np.ndarray]
) -> np.ndarray:
    own, basis = tensors["coefficients.weight"], shared["basis.weight"]
    if record.settings["side"] == "in":
        return np.einsum("ok,ki->oi", own, basis)
    return np.einsum("ko,ki->oi", basis, own)


def _basis_coefficients(record: TargetRecord) -> int:
    return record.settings["rank"] * (record.rows if record.settings["side"] == "in" else record.columns)


def _full_bases(targets: list[Any]) -> dict[str, dict[str, Any]]:
    groups = basis_groups(SharedBasis(), targets)
    return {target.name: {"rank": layout.full} for members, layout in groups for target in members}


def _train_ranks(rows: list[int], columns: list[int], rank: int, slices: int) -> list[int]:
    modes = [i * j for i, j in zip(rows, columns, strict=True)]
    cut = [
        min(rank, int(np.prod(modes[p + 1 :])), slices * int(np.prod(modes[: p + 1]))) for p in range(len(modes) - 1)
    ]
    return [*cut, 1]


def _train_parameters(store: StoreRecord) -> int:
    shape = store.settings
    ranks = _train_ranks(shape["rows"], shape["columns"], shape["rank"], shape["slices"])
    total = (shape["size"] or shape["slices"]) * shape["rows"][0] * shape["columns"][0] * ranks[0]
    for place in range(1, len(ranks)):
        total += ranks[place - 1] * shape["rows"][place] * shape["columns"][place] * ranks[place]
    return total + (0 if shape["size"] is None else shape["size"] * shape["slices"])


def _train_weight(
    record: TargetRecord, tensors: dict[str, np.ndarray], store: StoreRecord, shared: dict[str, np.ndarray]
) -> np.ndarray:
    shape = store.settings
    ranks = _train_ranks(shape["rows"], shape["columns"], shape["rank"], shape["slices"])
    heads = shared["heads.weight"] if shape["size"] is None else shared["mix.weight"] @ shared["heads.weight"]
    slices = []
    for number in range(record.settings["first"], record.settings["first"] + record.settings["tiles"]):
        weight = heads[number].reshape(shape["rows"][0], shape["columns"][0], ranks[0])
        for place in range(1, len(ranks)):
            core = shared[f"cores.{place - 1}.weight"]
            core = core.reshape(ranks[place - 1], shape["rows"][place], shape["columns"][place], ranks[place])
            weight = np.einsum("ijr,rklq->ikjlq", weight, core)
            weight = weight.reshape(weight.shape[0] * weight.shape[1], weight.shape[2] * weight.shape[3], -1)
        slices.append(weight[:, :, 0])
    return _join(record, slices)


def _carved_parameters(store: StoreRecord) -> int:
    shape = store.settings
    return (shape["rows"] + shape["columns"]) * shape["width"] + shape["columns"] * shape["bias"]


def _normed(rows: np.ndarray, tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = rows - rows.mean(1, keepdims=True)
    centred /= np.sqrt(centred.var(1, keepdims=True) + 1e-5)
    return centred * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _carved_weight(
    record: TargetRecord, tensors: dict[str, np.ndarray], store: StoreRecord, shared: dict[str, np.ndarray]
) -> np.ndarray:
    table = shared["table.weight"]
    if record.kind == "embedding":
        rows = _normed(table, tensors, "before") @ tensors["up.weight"].T + tensors["up.bias"]
        return _normed(rows, tensors, "after")
    whole = table[: store.settings["vocab_rows"]] @ shared["expansion.weight"].T + shared["expansion.bias"]
    ((shape, first, width),) = (slot[1:] for slot in store.settings["slots"] if slot[0] == record.settings["slot"])
    numbers = [whole[k // width, first + k % width] for k in range(int(np.prod(shape)))]
    return np.array(numbers).reshape(shape).T


def _layer_weight(
    record: TargetRecord, tensors: dict[str, np.ndarray], store: StoreRecord, shared: dict[str, np.ndarray]
) -> np.ndarray:
    if not record.settings["rank"]:
        return shared["matrix.weight"]
    return shared["matrix.weight"] + np.einsum("or,ri->oi", tensors["up.weight"], tensors["down.weight"])


def _each(values: Callable[[Any], dict[str, Any]]) -> Callable[[list[Any]], dict[str, dict[str, Any]]]:
    return lambda targets: {target.name: found for target in targets if (found := values(target))}


def _full_slices(values: Callable[[Any], dict[str, Any]]) -> Callable[[list[Any]], dict[str, dict[str, Any]]]:
    return lambda targets: {
        target.name: values(group) for group in group_targets(targets, 16) for target in group.targets
    }


METHODS: dict[str, MethodCase] = {
    "low_rank": MethodCase(
        LowRank,
        full=_each(lambda target: {"rank": min(target.rows, target.columns)}),
        small={"rank": 3, "weighting": "none"},
        parameters=lambda record: record.settings["rank"] * (record.rows + record.columns),
        assemble=_low_rank_weight,
    ),
    "shared_factors": MethodCase(
        SharedFactors,
        full=_full_slices(lambda group: {"rank": group.shape}),
        small={"rank": (3, 2), "weighting": "none"},
        parameters=lambda record: 0,
        assemble=_factored_weight,
        store_parameters=_factored_parameters,
        tables=False,
    ),
    "shared_basis": MethodCase(
        SharedBasis,
        full=_full_bases,
        small={"rank": 3, "weighting": "none"},
        parameters=_basis_coefficients,
        assemble=_basis_weight,
        store_parameters=lambda record: record.settings["rank"] * record.settings["width"],
        tables=False,
    ),
    "tucker": MethodCase(
        Tucker,
        full=_full_slices(lambda group: {"rank": group.shape, "bank": group.count}),
        small={"rank": 3, "bank": 1, "weighting": "none"},
        parameters=lambda record: 0,
        assemble=_factored_weight,
        store_parameters=_factored_parameters,
        tables=False,
    ),
    "tensor_train": MethodCase(
        TensorTrain,
        full=_full_slices(lambda group: {"rank": _full_train_rank(group)}),
        small={"rank": 2},
        parameters=lambda record: 0,
        assemble=_train_weight,
        store_parameters=_train_parameters,
        tables=False,
    ),
    "shared_layers": MethodCase(
        SharedLayers,
        full=_each(lambda target: {"delta_rank": 16}),
        small={"delta_rank": 2, "weighting": "none"},
        parameters=lambda record: record.settings["rank"] * (record.rows + record.columns),
        assemble=_layer_weight,
        store_parameters=lambda store: store.settings["rows"] * store.settings["columns"],
        tables=False,
        heads=False,
    ),
    "embedding_autoencoder": MethodCase(
        EmbeddingAutoencoder,
        full=_each(lambda target: {"rank": min(target.rows, target.columns)}),
        small={"rank": 3, "weighting": "none"},
        parameters=lambda record: record.settings["rank"] * (record.rows + record.columns) + record.columns,
        assemble=_autoencoder_weight,
        linears=False,
    ),
    "subvector_codes": MethodCase(
        SubvectorCodes,
        full=_each(_full_codes),
        small={"width": 4, "words": 8, "weighting": "none"},
        parameters=_coded_parameters,
        assemble=_coded_weight,
        rounded=True,
    ),
    "embedding_sharing": MethodCase(
        EmbeddingSharing,
        full=lambda targets: {},
        small={"factor_size": 6, "share": 2, "init_std": 0.3},
        parameters=lambda record: (6 + 3) * record.columns + 2 * 6 if record.kind == "embedding" else 0,
        assemble=_carved_weight,
        store_parameters=_carved_parameters,
        scratch=True,
    ),
    "dense": MethodCase(
        Dense,
        full=_each(lambda target: {}),
        small={},
        parameters=lambda record: record.rows * record.columns,
        assemble=lambda record, tensors: tensors["full.weight"],
    ),
}


def _full_train_rank(group: Any) -> int:
    rows, columns = (balanced_factors(width, 2) for width in group.shape)
    return max(_train_ranks(rows, columns, 10**9, group.count))


def serves(name: str, method: str) -> bool:
    """Whether a tiny model has weights that a method replaces."""
    case = METHODS[method]
    return (case.linears and not case.scratch) or MODELS[name].kind != "image"


def targets_of(name: str, method: str) -> list[str]:
    """Pattern list that takes everything that a method replaces of a tiny model: body, tables and heads.

    Vocabulary heads change their number of rows, which factors that others share cannot. A test of a method for tables
    and a model without one is skipped.
    """
    if not serves(name, method):
        pytest.skip("the model has no table")
    if not METHODS[method].linears:
        return ["embeddings"]
    if not METHODS[method].heads:
        return ["linears"]
    if METHODS[method].tables:
        return ["all", *MODELS[name].head]
    return ["linears", *(head for head in MODELS[name].head if head not in ("lm_head", "embed_out"))]


def full_config(name: str, method: str, model: Any) -> Any:
    """The config under which ``method`` loses nothing on ``model``; of a method without one, a small config."""
    case = METHODS[method]
    if case.scratch:
        return small_config(name, method, "fp32")
    targets = [part for target in find_targets(model) for part in split_fused(model, target)]
    if case.config.model_fields["fused"].default == "whole":
        targets = find_targets(model)
    chosen = {t.name: t for pattern in targets_of(name, method) for t in select(model, targets, pattern)}
    ordered = [t for t in targets if t.name in chosen]
    extra = {key: value for key, value in case.small.items() if key in ("weighting", "rank", "bank")}
    return case.config(
        targets=targets_of(name, method), stored_dtype="fp32", overrides=case.full(ordered),
        **{**extra, **({"rank": 1} if "rank" in extra else {})},
    )  # fmt: skip


def small_config(name: str, method: str, stored: str) -> Any:
    """The lossy config of ``method`` in a stored dtype."""
    case = METHODS[method]
    return case.config(targets=targets_of(name, method), stored_dtype=stored, group_size=GROUP, **case.small)


def compressed(name: str, method: str, stored: str) -> Any:
    """A freshly compressed tiny model."""
    return fewfold.compress(make(name), small_config(name, method, stored), fit=not METHODS[method].scratch)


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


def pairwise(
    *axes: Sequence[Any],
    allowed: Callable[..., bool] = lambda *row: True,
    owed: Callable[[int, Any, Any], bool] = lambda *pair: True,
) -> set[tuple[Any, ...]]:
    """A small set of rows of the cross product in which every pair of values of two axes occurs.

    :param allowed: leaves out the rows for which it is false, and the pairs that occur in such rows only.
    :param owed: pairs of a value of the first axis and one of another (its number is given first) for which it is false
        need not occur.
    """
    rows = [row for row in product(*axes) if allowed(*row)]
    columns = list(combinations(range(len(axes)), 2))

    def pairs(row: tuple[Any, ...]) -> set[tuple[int, int, Any, Any]]:
        return {(a, b, row[a], row[b]) for a, b in columns if a or owed(b, row[0], row[b])}

    missing = set().union(*(pairs(row) for row in rows))
    chosen: set[tuple[Any, ...]] = set()
    while missing:
        best = max(rows, key=lambda row: len(pairs(row) & missing))
        chosen.add(best)
        missing -= pairs(best)
    return chosen


# One of every shape of model: what an ordinary run crosses with every method.
CORE = ("bert_mlm", "gpt2_lm", "t5_lm")


def matrix(*axes: Sequence[str]) -> list[Any]:
    """Combinations as pytest parameters: pairwise coverage always, more of them in the full matrix.

    An ordinary run has every pair of a core model with a method and all else, and a few of the other models' pairs. In
    the full matrix every pair of model and method meets half of all the rest, in turns.
    """
    names = list(axes[0])

    def owed(axis: int, name: str, value: str) -> bool:
        return name in CORE or (names.index(name) + list(axes[axis]).index(value)) % (8 if axis == 1 else 5) == 0

    chosen = pairwise(*axes, allowed=lambda name, method, *rest: serves(name, method), owed=owed)
    heads, rests = list(product(*axes[:2])), list(product(*axes[2:]))
    rows = [
        (*head, *rest)
        for turn, head in enumerate(heads)
        for place, rest in enumerate(rests)
        if serves(*head) and (len(rests) == 1 or (turn + place) % 2 == 0 or (*head, *rest) in chosen)
    ]
    return [pytest.param(*row, id="-".join(row), marks=() if row in chosen else pytest.mark.full) for row in rows]


def spread(*axes: Sequence[str]) -> list[Any]:
    """All combinations as pytest parameters; in an ordinary run, few in which every value occurs."""
    longest = max(len(axis) for axis in axes)
    chosen = {tuple(axis[turn % len(axis)] for axis in axes) for turn in range(longest)}
    return [
        pytest.param(*row, id="-".join(row), marks=() if row in chosen else pytest.mark.full) for row in product(*axes)
    ]
