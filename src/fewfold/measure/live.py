"""Numbers that a forward reads: what sharing does not save."""

from __future__ import annotations

from torch import nn

from fewfold.assembled import Assembled
from fewfold.models.sharebert.layers import CarvedMap
from fewfold.surgery.ties import TiedHead


def live_parameters(model: nn.Module) -> int:
    """Count the numbers that one forward reads, a shared tensor once for every weight assembled from it.

    A weight that runs rebuilt is read as the dense one it is; one that runs chained reads its own and its shared
    tensors. What several modules outside of replaced weights have in common (a tied head) counts for each. So a dense
    model has as many as its layers hold, and a model that shares its layers has as many as the dense one, however few
    are stored. What weights are only carved out of (an expansion) is read by no layer.

    :return: Number of scalars.
    """
    total, inside = 0, set()
    for module in model.modules():
        if isinstance(module, Assembled):
            inside |= {id(leaf) for child in (module, *module.leaves()) for leaf in child.modules()}
            total += _read(module)
        elif isinstance(module, TiedHead):
            total += _read(module.table)
        elif isinstance(module, CarvedMap):
            total += module.store.slots[module.slot].numel
            inside.add(id(module.store.expansion))
    for module in model.modules():
        if id(module) not in inside:
            total += sum(parameter.numel() for parameter in module._parameters.values() if parameter is not None)
    return total


def _read(module: Assembled) -> int:
    """Numbers of the tensors that one assembled weight runs through, its bias among them."""
    if module.running_form != "rebuilt":
        held = {id(leaf): leaf for child in (module, *module.leaves()) for leaf in child.modules()}
        parameters = {id(p): p for leaf in held.values() for p in leaf._parameters.values() if p is not None}
        return sum(parameter.numel() for parameter in parameters.values())
    shells = [weight for shell in module.original for weight in shell._parameters.values() if weight is not None]
    if shells:
        return sum(weight.numel() for weight in shells)
    biases = 0 if getattr(module, "bias", None) is None else module.out_features  # a part of a fused projection
    return module.in_features * module.out_features + biases
