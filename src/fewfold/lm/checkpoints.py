"""Checkpoints of a running training: whole or not there, without pickles, and of this run or refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewfold.errors import CheckpointError

STATE, TENSORS = "state.json", "tensors.safetensors"


def write_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a checkpoint beside the ones that stand, then put it in their place.

    :param tensors: everything that is a tensor, by name.
    :param state: everything else, ready for JSON.
    :return: its folder, ``checkpoint-STEP``.
    """
    target, partial = folder / f"checkpoint-{step}", folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, partial / TENSORS)
    (partial / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for other in folder.glob("checkpoint-*"):
        if other != target:
            shutil.rmtree(other)
    return target


def remove_checkpoints(folder: Path) -> None:
    """Let go of every checkpoint, one that is half written too."""
    for found in (*folder.glob("checkpoint-*"), *folder.glob("partial")):
        shutil.rmtree(found)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the newest checkpoint of a folder: tensors and state, or None where there is none.

    :raises CheckpointError: if it is damaged.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    if not found:
        return None
    try:
        with safe_open(found[-1] / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        return tensors, json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
    except Exception as error:
        raise CheckpointError(f"{found[-1]} cannot be read ({error}): remove it, or start anew (--fresh)") from error


def check_same_run(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to go on with other settings.

    :param there: settings of the checkpoint.
    :param here: settings of this run.
    :raises CheckpointError: naming each that differs, with both values.
    """
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if names:
        listed = ", ".join(f"{name} was {there.get(name)!r} and is {here.get(name)!r}" for name in names[:6])
        more = f", and {len(names) - 6} more" if len(names) > 6 else ""
        raise CheckpointError(
            f"{folder} holds a training with other settings: {listed}{more}. Give the same ones to go on, or start "
            "anew (--fresh)"
        )


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once; the tensors themselves."""
    return dict([*model.named_parameters(), *model.named_buffers()])


def take_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Write values into a model's tensors."""
    with torch.no_grad():
        for name, tensor in own_tensors(model).items():
            tensor.copy_(tensors[name])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter and kind: ``NAME:exp_avg``."""
    return {
        f"{name}:{kind}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def take_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Write back what `optimizer_tensors` gave."""
    parameters = dict(model.named_parameters())
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for key, value in tensors.items():
        name, kind = key.rsplit(":", 1)
        group = groups[id(parameters[name])]
        # Adam counts its steps on the CPU, unless it is fused.
        beside = kind != "step" or group.get("fused") or group.get("capturable")
        place = parameters[name].device if beside else torch.device("cpu")
        optimizer.state[parameters[name]][kind] = value.to(place)


def flattened(state: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a carried state of tuples, lists and dictionaries, by path."""
    if isinstance(state, Tensor):
        yield prefix, state
    elif isinstance(state, dict):
        for name, part in state.items():
            yield from flattened(part, f"{prefix}.{name}")
    elif isinstance(state, list | tuple):
        for place, part in enumerate(state):
            yield from flattened(part, f"{prefix}.{place}")


def skeleton(state: Any) -> Any:
    """A carried state with True in place of its tensors, ready for JSON."""
    if isinstance(state, Tensor):
        return True
    if isinstance(state, dict):
        return {name: skeleton(part) for name, part in state.items()}
    return [skeleton(part) for part in state] if isinstance(state, list | tuple) else None


def rebuilt(shape: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """A carried state out of its skeleton and its tensors; what was a list comes back as a tuple."""
    if shape is True:
        return tensors[prefix]
    if isinstance(shape, dict):
        return {name: rebuilt(part, tensors, f"{prefix}.{name}") for name, part in shape.items()}
    if isinstance(shape, list):
        return tuple(rebuilt(part, tensors, f"{prefix}.{place}") for place, part in enumerate(shape))
    return None
