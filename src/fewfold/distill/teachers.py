"""Where the teacher's outputs come from: the model, in the same step, or a cache on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fewfold.calibration.cache import model_fingerprint
from fewfold.distill.losses import mean_pooled
from fewfold.distill.outputs import Needs, Outputs, run
from fewfold.distill.tokens import TokenisedTexts
from fewfold.errors import DistillError, FewfoldWarning
from fewfold.progress import track

SURE_AFTER = 5.0  # seconds of running the teacher


class Teacher(Protocol):
    """Gives outputs for a batch."""

    def __call__(self, batch: Mapping[str, Tensor]) -> Outputs:
        """Outputs for a batch of token ids."""
        ...


class LiveTeacher:
    """Runs the dense model, in eval mode and without gradients."""

    def __init__(self, model: Any, needs: Needs) -> None:
        self.model, self.needs = model, needs

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> Outputs:
        """The model's outputs for a batch; it is on the batch's device afterwards."""
        move(self.model, batch["input_ids"].device)
        return ask(self.model.eval(), batch, self.needs)


def ask(model: Any, batch: Mapping[str, Tensor], needs: Needs) -> Outputs:
    """A teacher's outputs for a batch; one in half precision stays in it, whatever the student is cast to."""
    parameter = next(model.parameters())
    is_half = parameter.dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(parameter.device.type, enabled=False) if is_half else nullcontext():
        return run(model, batch, needs)


def move(model: Any, device: torch.device) -> None:
    """Bring a model to a device, unless it is there."""
    if next(model.parameters()).device != device:
        model.to(device)


class CachedTeacher:
    """Last hidden states, or only their means, and logits of every text, in fp16, memory-mapped.

    :param arrays: ``last`` ``(tokens, width)``, ``sentence`` ``(texts, width)``, ``logits`` ``(texts, classes)``.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], tokens: TokenisedTexts) -> None:
        self.arrays, self.tokens = arrays, tokens

    def __call__(self, batch: Mapping[str, Tensor]) -> Outputs:
        """Outputs of the texts whose numbers stand in ``batch["index"]``; padding is 0."""
        places, mask = batch["index"].cpu().numpy(), batch["attention_mask"]
        found: dict[str, Any] = {}
        for name, array in self.arrays.items():
            if name == "last":
                offsets = self.tokens.offsets
                rows = np.concatenate([array[offsets[place] : offsets[place + 1]] for place in places])
                values = torch.from_numpy(rows).float().to(mask.device)
                found[name] = values.new_zeros(*mask.shape, values.shape[-1])
                found[name][mask.bool()] = values
            else:
                found[name] = torch.from_numpy(array[places]).float().to(mask.device)
        return Outputs(**found)


def check_cacheable(needs: Needs, outputs: Outputs) -> None:
    """Whether a cache keeps what is asked of a teacher.

    :param outputs: what it gave for a few texts.
    :raises DistillError: if a loss asks for what is not kept.
    """
    if needs.encoder is not None:
        raise DistillError("cache_teacher keeps outputs of models with one stack: leave it out for encoder–decoders")
    if needs.hidden or needs.attention:
        raise DistillError(
            "cache_teacher keeps last hidden states, sentence vectors and logits of classes; leave the losses on "
            "other layers and on attention out, or the cache"
        )
    if needs.logits and (outputs.logits is None or outputs.logits.dim() != 2):
        raise DistillError(
            "cache_teacher keeps logits of classes, and this teacher gives some for every token: leave out the cache"
        )


def cached_teacher(
    folder: str | os.PathLike[str],
    model: Any,
    needs: Needs,
    sentences_only: bool,
    tokens: TokenisedTexts,
    seconds: float | None = None,
    reads: int | None = None,
) -> CachedTeacher:
    """Read the cache of these texts, or run the teacher over them once and write it.

    :param sentences_only: sentence vectors are enough, whole hidden states are not asked for.
    :param seconds: that may be spent on it; None for any.
    :param reads: how many texts the run will read, each time counted; None where that is not known.
    :raises DistillError: if there is no room for it, or no time.
    """
    names = (["sentence" if sentences_only else "last"] if needs.last else []) + (["logits"] if needs.logits else [])
    key = f"{model_fingerprint(model)}-{tokens.fingerprint()}-{'-'.join(names)}"
    place = Path(folder) / key
    if names and not place.is_dir():
        if reads is not None and reads < len(tokens):
            warnings.warn(
                f"cache_teacher runs the teacher over all {len(tokens)} texts, and this run reads {reads} of them: "
                "without it it costs less, unless other runs follow",
                FewfoldWarning,
                stacklevel=2,
            )
        _write(place, LiveTeacher(model, needs), names, tokens, seconds)
    return CachedTeacher({name: np.load(place / f"{name}.npy", mmap_mode="r") for name in names}, tokens)


def _write(
    place: Path, teacher: LiveTeacher, names: list[str], tokens: TokenisedTexts, seconds: float | None = None
) -> None:
    """Put a complete cache into its place; where another run was faster, its cache stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".partial-") as partial:
        made = Path(partial) / place.name
        made.mkdir()
        _fill(made, teacher, names, tokens, seconds)
        try:
            os.replace(made, place)
        except OSError:
            if not place.is_dir():
                raise


def _fill(
    folder: Path,
    teacher: LiveTeacher,
    names: list[str],
    tokens: TokenisedTexts,
    seconds: float | None = None,
    batch_size: int = 64,
) -> None:
    """Run the teacher over all texts and write down what it gives, an array a name.

    :raises DistillError: as soon as it is known that there is no room for all, or no time.
    """
    begun, read = time.perf_counter(), 0
    order = np.argsort(tokens.lengths, kind="stable")[::-1]  # the longest first: what they need is told at once
    arrays: dict[str, np.ndarray] = {}
    device = next(teacher.model.parameters()).device
    for start in track(range(0, len(order), batch_size), "running the teacher"):
        places = order[start : start + batch_size].tolist()
        batch = {name: tensor.to(device) for name, tensor in tokens.batch(places).items()}
        outputs, mask = teacher(batch), batch["attention_mask"].bool()
        given = {name: _values(name, outputs, mask) for name in names}
        if not arrays:
            rows = {name: int(tokens.offsets[-1]) if name == "last" else len(tokens) for name in names}
            _check_room(folder, sum(2 * rows[name] * values.shape[-1] for name, values in given.items()))
            for name, values in given.items():
                shape = (rows[name], values.shape[-1])
                arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, shape)
        read += int(mask.sum())
        _check_time(time.perf_counter() - begun, read / int(tokens.offsets[-1]), seconds)
        for name, values in given.items():
            numbers = values.half().cpu().numpy()
            if name == "last":
                spots = [np.arange(tokens.offsets[p], tokens.offsets[p + 1]) for p in places]
                arrays[name][np.concatenate(spots)] = numbers
            else:
                arrays[name][places] = numbers
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DistillError(
            f"cache_teacher would write {size / 1e9:,.1f} GB and {folder.parent.parent} has {free / 1e9:,.1f} GB left: "
            "give fewer texts or another folder, or leave it out"
        )


def _check_time(spent: float, share: float, seconds: float | None) -> None:
    """Whether a pass of which this share is done ends in time; short looks tell little."""
    if seconds is not None and spent > min(SURE_AFTER, seconds) and spent / share > seconds:
        raise DistillError(
            f"cache_teacher: running the teacher over all texts takes about {spent / share / 60:,.3g} minutes, and "
            f"{seconds / 60:,.3g} are left for everything: give fewer texts or more minutes, or leave it out"
        )


def _values(name: str, outputs: Outputs, mask: Tensor) -> Tensor:
    if name == "logits":
        assert outputs.logits is not None
        return outputs.logits
    assert outputs.last is not None
    return outputs.last[mask] if name == "last" else mean_pooled(outputs.last, mask)
