"""Statistics on disk: an interrupted calibration goes on, and the next recipe need not calibrate again."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewfold.calibration.statistics import Moments, Statistics
from fewfold.errors import FewfoldWarning
from fewfold.training.identity import config_of

VERSION = "3"


def cache_folder() -> Path:
    """Where statistics are kept: ``FEWFOLD_CACHE``, else ``~/.cache/fewfold``."""
    return Path(os.environ.get("FEWFOLD_CACHE") or Path.home() / ".cache" / "fewfold") / "calibration"


def model_fingerprint(model: nn.Module) -> str:
    """A hash of all that a model computes with: class, config, and every name, shape and number."""
    digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=16)
    if hasattr(getattr(model, "config", None), "to_diff_dict"):
        digest.update(repr(config_of(model)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        data = tensor.detach().cpu().contiguous()
        if data.numel():
            digest.update(data.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def kept_if_possible(partial: Path) -> Iterator[None]:
    """Warn, and go on without, where the cache's folder cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"{partial.parent} cannot be written ({error}): a second try will start anew. Name another folder in "
            "FEWFOLD_CACHE",
            FewfoldWarning,
            stacklevel=4,
        )
        with suppress(OSError):
            partial.unlink(missing_ok=True)


class Cache:
    """One file of statistics, written in steps.

    :param key: everything the statistics depend on: model, data, targets, settings.
    :param every: seconds between two partial writes.
    """

    def __init__(self, key: str, folder: Path | None = None, every: float = 20.0) -> None:
        name = hashlib.blake2b(f"{VERSION}:{key}".encode(), digest_size=16).hexdigest()
        self.path = (folder or cache_folder()) / f"{name}.safetensors"
        self.every, self._written = every, time.monotonic()

    def load(self) -> tuple[Statistics, int] | None:
        """The statistics so far and how many batches they cover; None if there are none that can be read."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = json.loads(file.metadata()["fewfold"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            return None
        return _unpack(header, tensors), int(header["batches"])

    def save(self, statistics: Statistics, batches: int, final: bool) -> None:
        """Write if the last write is long enough ago, or if this is the end; atomic."""
        if not final and time.monotonic() - self._written < self.every:
            return
        header, tensors = _pack(statistics)
        header["batches"] = batches
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        with kept_if_possible(partial):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata={"fewfold": json.dumps(header)})
            partial.replace(self.path)
        self._written = time.monotonic()


def _pack(statistics: Statistics) -> tuple[dict, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    counts: dict[str, dict[str, int]] = {"inputs": {}, "gradients": {}}
    for kind, group in (("inputs", statistics.inputs), ("gradients", statistics.gradients)):
        for name, moments in group.items():
            counts[kind][name] = moments.count
            tensors[f"{kind}|{name}|total"] = moments.total
            tensors[f"{kind}|{name}|product"] = moments.product
    for name, value in statistics.token_counts.items():
        tensors[f"tokens|{name}"] = value
    header = {
        "leader": statistics.leader, "counts": counts, "texts": statistics.texts, "tokens": statistics.tokens,
    }  # fmt: skip
    return header, {name: tensor.contiguous() for name, tensor in tensors.items()}


def _unpack(header: dict, tensors: dict[str, Tensor]) -> Statistics:
    groups: dict[str, dict[str, Moments]] = {"inputs": {}, "gradients": {}}
    for kind, group in groups.items():
        for name, count in header["counts"][kind].items():
            group[name] = Moments.of(count, tensors[f"{kind}|{name}|total"], tensors[f"{kind}|{name}|product"])
    tokens = {name.split("|", 1)[1]: value for name, value in tensors.items() if name.startswith("tokens|")}
    return Statistics(
        inputs=groups["inputs"],
        leader=header["leader"],
        gradients=groups["gradients"],
        token_counts=tokens,
        texts=header["texts"],
        tokens=header["tokens"],
    )
