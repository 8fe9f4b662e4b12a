"""Everything that models cost, side by side: one call behind `fewfold measure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fewfold.measure.activations import activation_bytes
from fewfold.measure.disk import file_bytes, folder_bytes
from fewfold.measure.latency import latency
from fewfold.measure.live import live_parameters
from fewfold.measure.macs import macs_per_token
from fewfold.measure.memory import load_cost
from fewfold.measure.parameters import stored_bytes, unique_parameters
from fewfold.progress import step


@dataclass(frozen=True)
class Costs:
    """What one model costs apart from time.

    :param parameters: Unique numbers.
    :param live_parameters: Numbers that a forward reads, shared ones at every use.
    :param stored_bytes: Bytes of the stored tensors.
    :param weight_file_bytes: Bytes of the weight files.
    :param folder_bytes: Bytes of the whole folder.
    :param macs_per_token: Multiply-accumulates, at the first batch and length of the grid.
    :param activation_bytes: Most memory of intermediate results, at the largest batch and length of the grid.
    :param load_seconds: Time to load, in a process of its own, imports not included.
    :param resident_bytes: Memory that the loaded model takes there.
    :param peak_bytes: The most that loading takes there.
    """

    parameters: int
    live_parameters: int
    stored_bytes: int
    weight_file_bytes: int
    folder_bytes: int
    macs_per_token: float
    activation_bytes: int
    load_seconds: float
    resident_bytes: int
    peak_bytes: int


def costs_of(folder: Path, model: nn.Module, batches: Sequence[int] = (1,), lengths: Sequence[int] = (128,)) -> Costs:
    """Measure one saved model apart from time.

    :param folder: Where it is saved.
    :param model: The same model, loaded.
    :param batches: Sequences per forward, of the grid that is timed.
    :param lengths: Tokens per sequence.
    :return: The figures.
    """
    with step(f"loading {folder.name} in a new process"):
        load = load_cost(folder)
    return Costs(
        parameters=unique_parameters(model),
        live_parameters=live_parameters(model),
        stored_bytes=stored_bytes(model),
        weight_file_bytes=file_bytes(folder),
        folder_bytes=folder_bytes(folder),
        macs_per_token=macs_per_token(model, batch=batches[0], length=lengths[0]).total,
        activation_bytes=activation_bytes(model, batch=max(batches), length=max(lengths)),
        load_seconds=load.seconds,
        resident_bytes=load.resident_after_bytes - load.resident_before_bytes,
        peak_bytes=load.peak_bytes - load.resident_before_bytes,
    )


def time_grid(
    models: Mapping[str, nn.Module],
    batches: Sequence[int],
    lengths: Sequence[int],
    repeats: int = 20,
    warmup: int = 3,
    threads: int | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Time every model at every batch and length, the models in turns.

    :param models: Models by name.
    :param batches: Sequences per forward.
    :param lengths: Tokens per sequence; models with fewer positions run fewer.
    :param repeats: Timed rounds at each point.
    :param warmup: Rounds before those.
    :param threads: CPU threads; torch's present number where not given.
    :return: For each model the fields of `Timing` at each point, and ``sequences_per_second`` of the median.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for batch in batches:
        for length in lengths:
            for name, timing in latency(models, batch, length, repeats, warmup, threads).items():
                found[name].append({**asdict(timing), "sequences_per_second": 1e3 * batch / timing.median})
    return found
