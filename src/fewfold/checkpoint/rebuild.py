"""Rebuild the empty modules of a structure inside a plain model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from fewfold.assembled import Assembled
from fewfold.checkpoint.structure import Structure, TargetRecord, TieRecord
from fewfold.errors import CheckpointError
from fewfold.methods.registry import method_named
from fewfold.store import Store, stores_behind
from fewfold.stored import StoredDtype
from fewfold.stored.kept import Kept
from fewfold.surgery.layouts import Part, fused_parts
from fewfold.surgery.operators import describe_operator, tensor_of
from fewfold.surgery.replace import Replaced, replace_modules
from fewfold.surgery.targets import OPERATORS, Target, describe_names, find_targets
from fewfold.surgery.ties import EmbeddingAlias, Tie, TiedHead, declared_ties


def resolve(model: nn.Module, name: str) -> str | None:
    """The name that a recorded module has in this model: a head may be missing here, or stand around the body.

    :return: None where the recorded module lies outside of a model that was loaded without its head.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    candidates = [name]
    if prefix != ".":
        candidates += [name.removeprefix(prefix), prefix + name]
    for candidate in candidates:
        try:
            model.get_submodule(candidate)
        except AttributeError:
            continue
        return candidate
    return None


def _renamed(record: TargetRecord, module: str) -> TargetRecord:
    name = module if record.part is None else f"{module}:{record.part}"
    return record.model_copy(update={"name": name, "module": module})


def present(model: nn.Module, structure: Structure) -> Structure:
    """What a structure says of the weights that are replaced in this model, in the model's own names."""
    targets = []
    for record in structure.targets:
        module = resolve(model, record.module)
        if module is not None and isinstance(model.get_submodule(module), Replaced):
            targets.append(_renamed(record, module))
    ties = []
    for tie in structure.ties:
        module, table = resolve(model, tie.module), resolve(model, tie.table)
        if module and table and isinstance(model.get_submodule(module), TiedHead | EmbeddingAlias):
            ties.append(tie.model_copy(update={"module": module, "table": table}))
    used = {record.store for record in targets}
    stores = [store for store in structure.stores if store.name in used]
    return structure.model_copy(update={"targets": targets, "stores": stores, "ties": ties})


def resolve_structure(model: nn.Module, structure: Structure, stored: Collection[str] = ()) -> Structure:
    """The structure in this model's own names, without the records of heads that it does not have.

    :param stored: names of tensors in the checkpoint: what has a weight of its own there is not tied.
    """
    existing: dict[str, Target] | None = None
    targets, ties = [], []
    for record in structure.targets:
        module = resolve(model, record.module)
        if module is None:
            existing = existing or {target.module: target for target in find_targets(model)}
            if _may_be_missing(model, record.module):
                continue
            raise CheckpointError(
                f"the structure replaces {record.module}, which {type(model).__name__} does not have; "
                + describe_names(existing.values())
            )
        targets.append(_renamed(record, module))
    if not targets and any(piece.isdigit() for record in structure.targets for piece in record.module.split(".")):
        raise CheckpointError(
            f"{type(model).__name__} has none of the modules that the structure replaces, such as "
            f"{structure.targets[0].module}: config.json belongs to another model"
        )
    for tie in structure.ties:
        module, table = resolve(model, tie.module), resolve(model, tie.table)
        if module is None:
            continue
        if table is None:
            raise CheckpointError(f"the structure ties {tie.module} to {tie.table}, which the model does not have")
        ties.append(tie.model_copy(update={"module": module, "table": table}))
    ties += [tie for tie in _unrecorded_ties(model, targets, ties) if f"{tie.module}.weight" not in stored]
    return structure.model_copy(update={"targets": targets, "ties": ties})


def _unrecorded_ties(model: nn.Module, targets: list[TargetRecord], ties: list[TieRecord]) -> list[TieRecord]:
    """Ties that this model's class declares and the checkpoint's did not have: a head around a bare body."""
    known = {tie.module for tie in ties}
    found = declared_ties(model)
    return [
        TieRecord(module=tie.module, table=record.module, role=tie.role, scale=tie.scale)
        for record in targets
        if record.kind == "embedding"
        for tie in found.get(record.module, [])
        if tie.module not in known
    ]


def _may_be_missing(model: nn.Module, module: str) -> bool:
    """Whether a recorded module may be absent: a head or pooler that the class now asked for does not have."""
    saved_as = getattr(getattr(model, "config", None), "architectures", None)
    base = getattr(model, "base_model", model)
    if base is not model and (not saved_as or type(model).__name__ in saved_as):
        return False
    root = module.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.").split(".")[0]
    return all(getattr(owner, root, None) is None for owner in (base, model))


def _target(model: nn.Module, record: TargetRecord, ties: list[Tie]) -> Target:
    part: Part | None = None
    if record.part is not None:
        rows = _whole_rows(model, record)
        parts = {part.name: part for part in fused_parts(record.module, rows, model) or ()}
        if record.part not in parts:
            raise CheckpointError(f"{record.name}: {record.module} has no part {record.part!r} in this model")
        part = parts[record.part]
    return Target(
        record.name, record.module, record.kind, record.rows, record.columns, record.bias, record.transposed,
        part, record.scale, record.padding_idx, tuple(ties),
    )  # fmt: skip


def _whole_rows(model: nn.Module, record: TargetRecord) -> int:
    weight: Any = model.get_submodule(record.module).weight
    return weight.shape[1] if record.transposed else weight.shape[0]


def _check_shape(model: nn.Module, target: Target) -> None:
    """Compare a record with the dense module that stands in the model's skeleton."""
    module = model.get_submodule(target.module)
    weight = getattr(module, "weight", None)
    if target.kind in OPERATORS:
        found = describe_operator(target.module, module)
        if found is None or (found.kind, found.rows, found.columns) != (target.kind, target.rows, target.columns):
            raise CheckpointError(
                f"the structure replaces {target.module}, a {target.kind} weight of {target.rows}×{target.columns}, "
                f"but the model has a {type(module).__name__} there: config.json was altered, or is another model's"
            )
        return
    if target.kind == "norm" and weight is not None and weight.dim() == 1:
        weight = weight[:, None]
    if weight is None or weight.dim() != 2:
        raise CheckpointError(f"the structure replaces {target.module}, a {type(module).__name__} without a matrix")
    shape = tuple(weight.t().shape if target.transposed else weight.shape)
    expected = (shape[0] if target.part else target.rows, target.columns)
    wrong_part = target.part is not None and target.part.rows != target.rows
    if shape != expected or wrong_part:
        raise CheckpointError(
            f"the structure says that {target.name} is {target.rows}×{target.columns}, but the model's is "
            f"{shape[0]}×{shape[1]}: config.json was altered, or belongs to another model"
        )


def build_modules(model: nn.Module, structure: Structure) -> list[tuple[Target, Assembled]]:
    """The empty assembled modules of a structure (already in this model's names), not yet put in place."""
    ties: dict[str, list[Tie]] = defaultdict(list)
    for tie in structure.ties:
        ties[tie.table].append(Tie(tie.module, tie.role, tie.scale))
    built, stores = [], _build_stores(model, structure)
    for record in structure.targets:
        target = _target(model, record, ties[record.module])
        _check_shape(model, target)
        like = tensor_of(model.get_submodule(record.module))
        try:
            method, stored = method_named(record.method), StoredDtype(record.stored_dtype, record.group_size)
            with torch.device(like.device):
                module = method.build(target, record.settings, stored, stores.get(record.store or ""))
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{record.name}: {record.method} cannot use {record.settings}: {error}") from error
        built.append((target, module.to(like.dtype)))
    return built


def _build_stores(model: nn.Module, structure: Structure) -> dict[str, Store]:
    """The empty stores that the structure's targets are assembled from."""
    stores: dict[str, Store] = {}
    for record in structure.stores:
        user = next((target for target in structure.targets if target.store == record.name), None)
        if user is None:
            continue
        like = tensor_of(model.get_submodule(user.module))
        try:
            with torch.device(like.device):
                store = method_named(record.method).build_store(
                    record.settings, StoredDtype(record.stored_dtype, record.group_size)
                )
        except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise CheckpointError(f"store {record.name}: {record.method} cannot use its settings: {error}") from error
        store.name = record.name
        stores[record.name] = store.to(like.dtype)
    return stores


def apply_structure(model: nn.Module, structure: Structure, stored: Collection[str] = ()) -> Structure:
    """Replace the modules that a structure names by empty assembled ones, in place.

    Applying a structure to a model that already carries it changes nothing.

    :param stored: names of the checkpoint's tensors, in this model's names.
    :return: the structure in this model's names.
    :raises CheckpointError: if the structure does not fit the model; the model is then as it was.
    """
    structure = resolve_structure(model, structure, stored)
    if structure.targets and all(
        isinstance(model.get_submodule(record.module), Replaced) for record in structure.targets
    ):
        return structure
    built = build_modules(model, structure)
    modules = [module for _, module in built]
    for owner in (*modules, *stores_behind(modules)):
        for leaf in owner.modules():
            if isinstance(leaf, Kept):
                leaf.pack_()
    replace_modules(model, built)
    return structure


def record_of(
    target: Target, method: str, settings: dict, stored: StoredDtype, store: str | None = None
) -> TargetRecord:
    """What the structure says of one replaced target."""
    return TargetRecord(
        name=target.name, module=target.module, part=target.part.name if target.part else None, kind=target.kind,
        rows=target.rows, columns=target.columns, bias=target.bias, transposed=target.transposed,
        scale=target.scale, padding_idx=target.padding_idx, method=method, settings=dict(settings),
        store=store, stored_dtype=stored.name, group_size=stored.group,
    )  # fmt: skip


def ties_of(targets: list[Target]) -> list[TieRecord]:
    """What the structure says of the modules that point at replaced tables."""
    return [
        TieRecord(module=tie.module, table=target.module, role=tie.role, scale=tie.scale)
        for target in targets
        for tie in target.ties
    ]
