"""Hidden layers carved out of the embeddings, task by task, beside a dense twin and one block for all layers.

Same data, steps, sizes and seed in every column. The claim (Hu et al. 2024 and 2025): at least 95.5 % of the dense
twin's quality with next to no numbers in the hidden layers. Quality is the task's figure on its test data with a
bootstrap interval over examples; the ratio's interval resamples the examples of both models together.

    python benchmarks/embedding_sharing_tasks.py [--tasks lstm …] [--kinds dense …] [--seed 0] [--scale 1] [--threads 2]

About 12 to 20 minutes a cell on two cores at `--scale 1`, by which all step counts are multiplied. Without names the
first four tasks and three kinds are measured; further names add to the table. A cell is written as soon as it is
measured and not measured again; a training that was stopped goes on from its last checkpoint. Below `--scale 0.1`
the data is cut too, and results go to `--results` (a try of the program).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import check, publish_checks
from embedding_sharing_cells import FLOORS, TASKS, Cell

from fewfold import EmbeddingSharing, SharedLayers
from fewfold.calibration.cache import cache_folder
from fewfold.measure.environment import environment

CLAIM, RESAMPLES = 0.955, 2000
SHORT = {name.split(",")[0].split()[0].lower(): name for name in TASKS}  # masked, lstm, translation, captioning, …
STD = {"masked": 0.02}  # of fresh tables; else 1/√256, so that carved weights have variance 1/256
KINDS = ("dense", "shared", "veps", "veps-own", "veps-int8")
WITHOUT = {("gated-conv", "shared")}  # SharedLayers serves linear maps alone
LABELS = {
    "dense": "dense twin", "shared": "one block for all layers", "veps": "VEPS, shared by all layers",
    "veps-own": "VEPS, each layer's own columns", "veps-int8": "VEPS, shared, int8",
}  # fmt: skip


def recipe_of(kind: str, task: str) -> Any:
    """The method of a column; None for the dense twin."""
    if kind == "dense":
        return None
    if kind == "shared":
        return SharedLayers(map="all", norms_and_biases="private", delta_rank=0)
    return EmbeddingSharing(
        share="none" if kind == "veps-own" else "all", init_std=STD.get(task, 256**-0.5),
        stored_dtype="int8" if kind == "veps-int8" else "fp32",
    )  # fmt: skip


def interval(units: Any, task: str, seed: int = 0) -> tuple[float, float, float]:
    """A task's figure and its bootstrap interval."""
    units, figure = np.asarray(units), TASKS[task][2]
    drawn = _resampled(units, seed, figure)
    return float(figure(units.sum(0, keepdims=True))[0]), *np.percentile(drawn, [2.5, 97.5]).tolist()


def ratio(dense: Any, small: Any, task: str, seed: int = 0) -> tuple[float, float, float]:
    """What is kept of the dense twin's figure (of a perplexity: dense over small), with its paired interval."""
    figure, more_is_better = TASKS[task][2:]
    pairs = [np.asarray(units) for units in (dense, small)]
    if pairs[0].shape != pairs[1].shape:
        raise SystemExit(f"{task}: cells were judged on different examples; remove one of them and measure it again")
    values = [float(figure(units.sum(0, keepdims=True))[0]) for units in pairs]
    drawn = [_resampled(units, seed, figure) for units in pairs]
    top, bottom = (1, 0) if more_is_better else (0, 1)
    low, high = np.percentile(drawn[top] / np.maximum(drawn[bottom], 1e-9), [2.5, 97.5])
    return values[top] / max(values[bottom], 1e-9), float(low), float(high)


def _resampled(units: np.ndarray[Any, Any], seed: int, figure: Any) -> np.ndarray[Any, Any]:
    """The figure of resamples; the same seed and number of examples draw the same examples."""
    rng = np.random.default_rng(seed)
    sums = [units[rng.integers(len(units), size=len(units))].sum(0) for _ in range(RESAMPLES)]
    return np.asarray(figure(np.array(sums)))


def verdict(kept: tuple[float, float, float], dense_counts: bool) -> str:
    """What a row says of the claim."""
    if not dense_counts:
        return "dense twin below its floor"
    if kept[1] >= CLAIM:
        return "reproduced"
    return "at this scale" if kept[0] >= CLAIM else "not reached"


def main() -> None:
    """Measure what is missing, then draw the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="*", choices=list(SHORT), default=list(SHORT)[:4])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS[:3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, help="folder for results, in place of the repository's")
    wanted = parser.parse_args()
    if wanted.scale < 0.1 and wanted.results is None:
        parser.error("--scale below 0.1 only tries the program: give --results FOLDER too")
    if wanted.results is not None:
        common.RESULTS = common.TABLES = wanted.results
    torch.set_num_threads(wanted.threads)
    file = common.RESULTS / "embedding_sharing_tasks.rows.json"
    kept: dict[str, Cell] = json.loads(file.read_text()) if file.exists() else {}
    for short in wanted.tasks:
        task = SHORT[short]
        floor = f"{task} | floor | {wanted.scale:g}"
        if task in FLOORS and floor not in kept:
            kept[floor] = {"floor": FLOORS[task][1](wanted.scale)}
        for kind in wanted.kinds:
            key = f"{task} | {kind} | {wanted.scale:g} | {wanted.seed}"
            if key in kept or (short, kind) in WITHOUT:
                continue
            folder = Path(cache_folder().parent) / "embedding-sharing" / key.replace(" | ", "-").replace(" ", "-")
            start = time.perf_counter()
            cell = TASKS[task][0](recipe_of(kind, short), wanted.seed, wanted.scale, folder)
            minutes = (time.perf_counter() - start) / 60
            kept[key] = {**cell, "minutes": minutes, "threads": wanted.threads, "environment": environment()}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(kept), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{key}: {TASKS[task][1]} {interval(cell['units'], task)[0]:.4f}, {minutes:.1f} min", flush=True)
    draw(kept, wanted.scale, wanted.seed)


def draw(kept: dict[str, Cell], scale: float, seed: int) -> None:
    """The table and the claims of what is measured so far."""
    lines = [
        "| task | weights | unique parameters | in hidden layers | quality | 95 % interval | kept of dense | interval "
        "| training tokens/s | minutes | |",
        "|---" * 11 + "|",
    ]
    checks, floors, rows = [], [], []
    for task, (_, name, _, more_is_better) in TASKS.items():
        cells = {kind: kept.get(f"{task} | {kind} | {scale:g} | {seed}") for kind in KINDS}
        dense = cells["dense"]
        bar = kept.get(f"{task} | floor | {scale:g}", {}).get("floor")
        counts = False
        if dense is not None:
            value = interval(dense["units"], task)[0]
            counts = bool(dense.get("above_floor", False) if bar is None else (value > bar) == more_is_better)
            what = FLOORS[task][0] if task in FLOORS else "the same model shown shuffled images"
            bar = dense.get("floor") if bar is None else bar
            floors.append(
                f"- {task}: dense twin {value:.4g}, {what} {bar:.4g} – " + ("cleared" if counts else "**not cleared**")
            )
        for kind, cell in cells.items():
            if cell is None:
                continue
            value, low, high = interval(cell["units"], task)
            row: list[str] = [
                task, LABELS[kind], f"{cell['parameters']:,}", f"{cell['hidden']:,}", f"{name} {value:.4g}",
                f"{low:.4g}–{high:.4g}",
            ]  # fmt: skip
            if kind == "dense" or dense is None:
                row += ["", ""]
            else:
                share = ratio(dense["units"], cell["units"], task)
                row += [f"{share[0]:.3f}", f"{share[1]:.3f}–{share[2]:.3f}"]
            row += [f"{cell['tokens_a_second']:,.0f}", f"{cell['minutes']:.1f}"]
            if kind == "dense" or dense is None:
                row.append("")
            else:
                row.append(verdict(share, counts))
                if kind.startswith("veps") and counts:
                    checks.append(check(f"{task}, {LABELS[kind]}: kept of dense", share[0], CLAIM, digits=3))
            facts = {name: fact for name, fact in cell.items() if name != "units"}
            rows.append({"task": task, "kind": kind, "cell": facts, "row": row})
            lines.append(f"| {' | '.join(row)} |")
    lines += [
        "", f"Seed {seed}, steps × {scale:g}. Kept of dense: the figure over the dense twin's, of perplexities dense "
        "over it. 'reproduced': the interval's lower end is at least 0.955; 'at this scale': the figure is, the "
        "lower end is not; 'not reached': neither. Tokens/s are of training here.", "", "Floors:", "",
        *floors, "",
    ]  # fmt: skip
    publish_checks(
        "embedding_sharing_tasks", "Hidden layers out of the embeddings, task by task", checks, {"rows": rows}, lines
    )


if __name__ == "__main__":
    main()
