"""What a module keeps between calls while nothing that it depends on changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fewfold.assembled import must_be_called
from fewfold.methods.slices.products import Step
from fewfold.seen import Seen
from fewfold.stored import StoredMatrix

if TYPE_CHECKING:
    from fewfold.methods.slices.modules import SlicedLinear


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
        self.seen = self._look(member)

    def holds(self, member: SlicedLinear) -> bool:
        """Whether the steps are still right."""
        if self.form != member.form or torch.is_grad_enabled() or self.autocast != _autocast():
            return False
        for modules, name, leaf in self.leaves:
            if modules[name] is not leaf or has_hooks(leaf):
                return False
        return (
            self.seen == self._look(member)
            and not has_hooks(self.store)
            and self.members == len(member.reading.members)
        )

    def _look(self, member: SlicedLinear) -> Seen:
        return Seen([*(leaf._parameters["weight"] for _, _, leaf in self.leaves), member._parameters["bias"]])


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
