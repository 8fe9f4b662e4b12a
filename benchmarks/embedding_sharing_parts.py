"""What the cells of the embedding-sharing table are made of: what is asked for, sizes, figures and their intervals."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import fewfold
from fewfold import EmbeddingSharing, SharedLayers
from fewfold.calibration.cache import cache_folder

Array = np.ndarray[Any, Any]
Cell = dict[str, Any]
Figure = Callable[[Array], Array]
RESAMPLES, TRY = 2000, 0.1  # below that scale the data is cut too
LABELS = {
    "dense": "dense twin", "shared": "one block for all layers", "veps": "VEPS, shared by all layers",
    "veps-own": "VEPS, each layer's own columns", "veps-int8": "VEPS, shared, stored in int8 after its training",
    "veps-distilled": "VEPS, shared, distilled from the dense twin",
}  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """One cell that is asked for.

    :param task: its short name.
    :param kind: a key of `LABELS`.
    :param scale: what all step counts are multiplied by.
    """

    task: str
    kind: str
    seed: int
    scale: float

    @property
    def name(self) -> str:
        """As `--only` knows it."""
        return f"{self.task}/{self.kind}"

    @property
    def key(self) -> str:
        """Under which the cell is kept."""
        return f"{self.task} | {self.kind} | {self.scale:g} | {self.seed}"

    @property
    def folder(self) -> Path:
        """Where checkpoints and models stand while, and of some cells after, it is measured."""
        name = f"{self.task}-{self.kind}-{self.scale:g}-{self.seed}"
        return Path(cache_folder().parent) / "embedding-sharing" / name

    @property
    def trial(self) -> bool:
        """Whether the data is cut too, because only the program is tried."""
        return self.scale < TRY

    @property
    def recipe(self) -> Any:
        """The methods that its model is built from; None for the dense twin."""
        if self.kind == "dense":
            return None
        if self.kind == "shared":
            return SharedLayers(map="all", norms_and_biases="private", delta_rank=0)
        return EmbeddingSharing(
            share="none" if self.kind == "veps-own" else "all",
            stored_dtype="int8" if self.kind == "veps-int8" else "fp32",
        )  # fmt: skip

    def steps(self, full: int) -> int:
        """A step count of the full scale, at this one."""
        return max(4, round(full * self.scale))

    def of(self, kind: str) -> Wish:
        """The same of another kind."""
        return replace(self, kind=kind)


def sizes_of(model: Any) -> Cell:
    """Numbers of the model, and those beside token table and vocabulary head."""
    rows = {int(model.config.vocab_size), int(getattr(model.config, "decoder_vocab_size", None) or 0)}
    parameters = [parameter for parameter in model.parameters() if parameter.numel()]
    hidden = sum(parameter.numel() for parameter in parameters if parameter.shape[:1].numel() not in rows)
    return {"parameters": sum(parameter.numel() for parameter in parameters), "hidden": hidden}


def read_rows(file: Path) -> dict[str, Cell]:
    """What is measured."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def add_row(file: Path, key: str, cell: Cell) -> dict[str, Cell]:
    """Add to the file of what is measured, which other starts of the program may have added to; all that is in it."""
    kept = {**read_rows(file), key: cell}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(_shortened(kept), separators=(",", ":")), encoding="utf-8")
    os.replace(partial, file)
    return kept


def _shortened(content: Any) -> Any:
    """Numbers in seven digits at most, whole ones as such: a few cells hold thousands of examples."""
    if isinstance(content, dict):
        return {name: _shortened(part) for name, part in content.items()}
    if isinstance(content, list):
        return [_shortened(part) for part in content]
    if isinstance(content, float) and math.isfinite(content):
        return int(content) if content.is_integer() else float(f"{content:.7g}")
    return content


def loaded(folder: Path) -> tuple[Any, Any]:
    """A saved model and its tokenizer."""
    from transformers import AutoTokenizer

    return fewfold.load(folder), AutoTokenizer.from_pretrained(folder)


@dataclass(frozen=True)
class Measure:
    """A figure that is computed from sums over examples.

    :param name: in the table.
    :param figure: of sums `(resamples, columns)`.
    :param more_is_better: else, as of perplexities, what is kept is the dense twin's figure over the other's.
    """

    name: str
    figure: Figure
    more_is_better: bool = True

    def interval(self, units: Any, seed: int = 0) -> tuple[float, float, float]:
        """The figure and its 95 % bootstrap interval over examples, `units` `(examples, columns)`."""
        units = np.asarray(units)
        low, high = np.percentile(self._resampled(units, seed), [2.5, 97.5]).tolist()
        return self._of_all(units), low, high

    def ratio(self, dense: Any, small: Any, seed: int = 0) -> tuple[float, float, float]:
        """What is kept of the dense twin's figure, with its interval over examples resampled for both together.

        :raises SystemExit: if they were judged on different examples.
        """
        pair = [np.asarray(units) for units in ((small, dense) if self.more_is_better else (dense, small))]
        if pair[0].shape != pair[1].shape:
            raise SystemExit(f"{self.name}: judged on different examples; remove one of the cells and measure it again")
        values, drawn = [self._of_all(units) for units in pair], [self._resampled(units, seed) for units in pair]
        low, high = np.percentile(drawn[0] / np.maximum(drawn[1], 1e-9), [2.5, 97.5]).tolist()
        return values[0] / max(values[1], 1e-9), low, high

    def _of_all(self, units: Array) -> float:
        return float(self.figure(units.sum(0, keepdims=True))[0])

    def _resampled(self, units: Array, seed: int) -> Array:
        """The figure of resamples; the same seed and number of examples draw the same examples."""
        rng = np.random.default_rng(seed)
        sums = [units[rng.integers(len(units), size=len(units))].sum(0) for _ in range(RESAMPLES)]
        return np.asarray(self.figure(np.array(sums)))


def mean(sums: Array) -> Array:
    """Of sums and counts."""
    return np.asarray(sums[:, 0] / sums[:, 1])


def perplexity(sums: Array) -> Array:
    """Of summed losses and counts."""
    return np.asarray(np.exp(np.minimum(mean(sums), 700)))


def matthews(sums: Array) -> Array:
    """Matthews' correlation of counts: true positives, false positives, false negatives, true negatives."""
    hits, alarms, missed, rest = sums.astype(float).T
    below = (hits + alarms) * (hits + missed) * (rest + alarms) * (rest + missed)
    return np.where(below > 0, (hits * rest - alarms * missed) / np.sqrt(np.maximum(below, 1)), 0.0)


def pearson(sums: Array) -> Array:
    """Pearson's correlation of sums of a, b, a², b², ab and 1."""
    a, b, aa, bb, ab, count = sums.astype(float).T
    spread = np.maximum(count * aa - a * a, 0) * np.maximum(count * bb - b * b, 0)
    return np.where(spread > 0, (count * ab - a * b) / np.sqrt(np.maximum(spread, 1e-30)), 0.0)


def units_of(task: str, judged: list[dict[str, Any]]) -> list[list[float]]:
    """Predictions of a task of GLUE as rows of sums, for `mean`, `matthews` (CoLA) or `pearson` (STS-B)."""
    pairs = [(float(item["label"]), float(item["prediction"])) for item in judged]
    if task == "cola":
        return [[a * b, (1 - a) * b, a * (1 - b), (1 - a) * (1 - b)] for a, b in pairs]
    if task == "stsb":
        return [[a, b, a * a, b * b, a * b, 1.0] for a, b in pairs]
    return [[float(a == b), 1.0] for a, b in pairs]
