"""The state of a training run on disk: everything that the next step depends on, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewfold.errors import TaskError
from fewfold.tasks.translation.batching import Pair
from fewfold.tasks.translation.settings import TranslationTraining
from fewfold.training.identity import config_of

FILE = "training.safetensors"
_LIMITS = ("checkpoint_minutes", "evaluate_steps")


def run_key(model: nn.Module, pairs: list[Pair], settings: TranslationTraining) -> str:
    """What has to be the same for a run to go on: model, data and settings, but for when it looks and saves."""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in _tensors(model)]
    chosen = {name: value for name, value in asdict(settings).items() if name not in _LIMITS}
    described = (type(model).__name__, shapes, chosen, config_of(model))
    digest = hashlib.blake2b(repr(described).encode(), digest_size=16)
    for pair in pairs:
        digest.update(repr(tuple(pair)).encode())
    return digest.hexdigest()


def save_state(
    folder: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    """Write the state in one step: a killed save leaves the one before.

    :param folder: Made where it is not there.
    :param key: Of the run.
    :param model: Its parameters and buffers are saved.
    :param optimizer: Its moments are saved.
    :param record: What else the run knows, ready for JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(model)}
    for number, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{number}.{name}": value.detach().cpu().clone() for name, value in state.items()})
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    partial = folder / f"{FILE}.partial"
    save_file(tensors, partial, metadata={"key": key, "record": json.dumps(record)})
    os.replace(partial, folder / FILE)


def load_state(folder: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Bring model, optimizer and random numbers to where a run was.

    :param folder: Where `save_state` wrote.
    :param key: Of this run.
    :return: The record, or None where nothing was saved.
    :raises TaskError: If the state belongs to another run, or the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as handle:
            about = handle.metadata()
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TaskError(f"{file} is damaged ({error}): remove {folder}, or start anew with resume=False") from error
    if about.get("key") != key:
        raise TaskError(
            f"{folder} holds the state of a run with another model, other data or settings: remove it, or start anew "
            "with resume=False (--fresh)"
        )
    with torch.no_grad():
        for name, tensor in _tensors(model):
            tensor.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, field = name.split(".", 2)
            state.setdefault(int(number), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return json.loads(about["record"])


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once, those that hold no number left out."""
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if buffer.numel())
