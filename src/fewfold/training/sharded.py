"""Training under FSDP2: tensors that are spread over processes, read and written as wholes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


def is_sharded() -> bool:
    """Whether accelerate was told to shard what is trained (``accelerate launch --use_fsdp``)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1", "yes")


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, which all have to ask for it; a plain one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_again(module: nn.Module) -> None:
    """Let every process keep its own part of the parameters alone: a forward pass without a backward gathers them."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def exact_state(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor by name, stored leaves as the floats that they train as: copies on the CPU, whole in all processes.

    ``state_dict`` would round what is kept in integers.
    """
    return {name: whole(tensor.detach()).cpu().clone() for name, tensor in _named(module).items()}


@torch.no_grad()
def load_exact(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write what :func:`exact_state` gave back into a module, sharded or not.

    :raises KeyError: if a tensor is missing.
    """
    for name, tensor in _named(module).items():
        value = state[name].to(tensor.device)
        if isinstance(tensor, DTensor):
            value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
        tensor.copy_(value)


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state with whole tensors; parameters that never had a gradient have none."""
    return tree_map(lambda value: whole(value) if isinstance(value, Tensor) else value, optimizer.state_dict())


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Read what :func:`optimizer_state` gave; tensors of a parameter's shape are spread as it is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def spread(value: Any, parameter: Tensor) -> Any:
        if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
            return value
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)

    moments = {
        place: {name: spread(value, parameters[place]) for name, value in kept.items()}
        for place, kept in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _named(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, tied ones under all their names."""
    spread_again(module)
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, buffer in part.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in part._non_persistent_buffers_set:
                found[name] = buffer
    return found
