"""From shared layers to layers of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from fewfold.checkpoint.config import carry, structure_of
from fewfold.checkpoint.densify import densify
from fewfold.errors import TargetError
from fewfold.surgery.replace import restore_modules
from fewfold.surgery.wrappers import unwrapped

METHOD = "shared_layers"


def unshare(model: nn.Module) -> Any:
    """Give every layer that runs through a shared block plain weights of its own, in place; outputs stay equal.

    Differences are added to the blocks, and what neurons and heads were put in another order stays so. Whatever
    another method replaced (tables in int8) stays replaced; ``fewfold.densify`` restores that as well.

    :return: ``model``.
    :raises TargetError: if no layer of the model is shared.
    """
    given, model = model, unwrapped(model)
    structure = structure_of(model)
    shared = {} if structure is None else {r.module: r for r in structure.targets if r.method == METHOD}
    if structure is None or not shared:
        raise TargetError(f"no layer of this {type(model).__name__} is shared: there is nothing to unshare")
    kept = [record for record in structure.targets if record.module not in shared]
    if not kept:
        densify(model)
        return given
    restore_modules(model, only=list(shared))
    used = {record.store for record in kept}
    left = structure.model_copy(
        update={"targets": kept, "stores": [store for store in structure.stores if store.name in used]}
    )
    carry(model, left)
    return given
