"""What a module keeps between calls while nothing that it depends on changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fewfold.assembled import must_be_called
from fewfold.methods.slices.products import Step
from fewfold.stored import StoredMatrix

if TYPE_CHECKING:
    from fewfold.methods.slices.modules import SlicedLinear


class Seen:
    """A tensor as it was. Writes through ``.data`` are invisible to this."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.pointer = tensor, tensor.data_ptr()
        self.version = None if tensor.is_inference() else tensor._version

    def holds(self, tensor: Tensor | None) -> bool:
        """Whether this is the very same tensor, unchanged."""
        return (
            tensor is self.tensor
            and tensor.data_ptr() == self.pointer
            and (self.version is None or tensor._version == self.version)
        )


class Prepared:
    """The steps of one module on the tensors that it was prepared with, and what has to stay as it was for them.

    Checking is cheap, as it happens at every call: the same leaves with the same, unchanged weights, no hooks, no
    gradients, the same bias, the same autocast, the same wish of a form.

    :param read: from the input to what a family shares, or None where nothing is shared.
    :param finish: from that to the output.
    """

    def __init__(self, member: SlicedLinear, read: Step | None, finish: Step) -> None:
        self.read, self.finish = read, finish
        self.form, self.members = member.form, len(member.reading.members)
        self.autocast = _autocast()
        self.store = member.store
        self.leaves = [(owner._modules, name, leaf) for owner, name, leaf in member.store.places(member.bank)]
        held = [(leaf._parameters, "weight") for _, _, leaf in self.leaves] + [(member._parameters, "bias")]
        self.no_bias = member.bias is None
        self.tensors = [
            (parameters, name, Seen(tensor)) for parameters, name in held if (tensor := parameters[name]) is not None
        ]

    def holds(self, member: SlicedLinear) -> bool:
        """Whether the steps are still right."""
        if self.form != member.form or torch.is_grad_enabled() or self.autocast != _autocast():
            return False
        for modules, name, leaf in self.leaves:
            if modules[name] is not leaf or has_hooks(leaf):
                return False
        for parameters, name, seen in self.tensors:
            if not seen.holds(parameters[name]):
                return False
        return (
            self.no_bias is (member._parameters["bias"] is None)
            and not has_hooks(self.store)
            and self.members == len(member.reading.members)
        )


def can_prepare(member: SlicedLinear) -> bool:
    """Whether anything may be kept now: no gradient, no trace, and plain leaves that hold their floats."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or has_hooks(member.store):
        return False
    return all(
        type(leaf) is StoredMatrix and leaf._parameters.get("weight") is not None and not must_be_called(leaf)
        for leaf in member.leaves()
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _autocast() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
