"""Fine-tuning with a compressed token table: SST-2, CoLA and SQuAD v1.1, at 2.5, 5 and 10 times fewer bytes.

all-MiniLM-L6-v2's body with its table as truncated SVD, as the direction auto-encoder (trained as published) and as
ours (``embedding-default``); all stored tensors train alike, with the same examples, steps and seed.

    python benchmarks/finetune_tables.py [sst2|cola|squad …] [--only ROW …]

Hours on two cores. Every cell is written as soon as it is measured, and one that is there is not measured again: a run
that was stopped goes on, and two may run side by side on different rows. Training subsets are stated in the table.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from typing import Any

from common import RESULTS, Bench, check, publish_checks

import fewfold
from fewfold import Budget, EmbeddingAutoencoder, LowRank, SubvectorCodes
from fewfold.calibration.cache import cache_folder
from fewfold.tasks import FineTuning, evaluate
from fewfold.tasks.data import calibration_texts

TEXT = "mixed-512"
RATIOS = (2.5, 5, 10)
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"finetune": FineTuning(learning_rate=5e-5, epochs=1, limit=4000), "metric": "accuracy"},
    "cola": {"finetune": FineTuning(learning_rate=5e-5, epochs=3, limit=4000), "metric": "mcc"},
    "squad": {
        "finetune": FineTuning(learning_rate=2e-4, epochs=2, limit=2000), "metric": "f1", "max_length": 192,
        "stride": 64, "eval_limit": 500,
    },
}  # fmt: skip
CELLS, KEPT = RESULTS / "finetune_tables.rows.json", RESULTS / "finetune_tables.json"


def tables() -> dict[str, tuple[Any, float | None]]:
    """The rows: a config, and by how much the table shrinks."""
    only = {"targets": "embeddings"}
    found: dict[str, tuple[Any, float | None]] = {"dense": (None, None)}
    for ratio in RATIOS:
        found[f"SVD, {ratio:g}×"] = (LowRank(weighting="none", **only), ratio)
        found[f"auto-encoder as published, {ratio:g}×"] = (EmbeddingAutoencoder(solver="published", **only), ratio)
        found[f"ours (embedding-default), {ratio:g}×"] = (SubvectorCodes(**only), ratio)
    return found


def student(bench: Bench, name: str, config: Any, ratio: float | None) -> Any:
    """The model of a row, out of the cache where it was compressed before."""
    if config is None:
        return bench.fresh()
    folder = cache_folder().parent / "finetune_tables" / re.sub(r"[^a-z0-9.]+", "-", name.lower())
    if not folder.exists():
        model = fewfold.compress(
            bench.fresh(), config, budget=Budget(bytes=f"1/{ratio} of embeddings"), calibration=calibration_texts(TEXT),
            tokenizer=bench.tokenizer, calibration_name=TEXT,
        )  # fmt: skip
        fewfold.save(model, folder)
    return fewfold.load(folder)


def measure(bench: Bench, name: str, config: Any, ratio: float | None, tasks: list[str]) -> None:
    """One row on some tasks, fine-tuned anew for each; written cell by cell."""
    model = student(bench, name, config, ratio)
    for task in tasks:
        settings = {key: value for key, value in TASKS[task].items() if key != "metric"}
        found = evaluate(copy.deepcopy(model), task, tokenizer=bench.tokenizer, **settings).to_dict()
        cells = read()  # another process may have written other rows
        cells.setdefault(name, {})[task] = found
        CELLS.write_text(json.dumps(cells), encoding="utf-8")
        print(name, task, mean(found, TASKS[task]["metric"]), flush=True)


def main() -> None:
    """Measure what is missing, then draw the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], help="which tasks (all)")
    parser.add_argument("--only", action="append", help="rows whose name holds this; may be given again")
    wanted = parser.parse_args()
    bench = Bench()
    for name, (config, ratio) in tables().items():
        if wanted.only and not any(part in name for part in wanted.only):
            continue
        missing = [task for task in wanted.tasks or TASKS if task not in read().get(name, {})]
        if missing:
            measure(bench, name, config, ratio, missing)
    draw(read())
    CELLS.unlink(missing_ok=True)  # what it held is in the results


def read() -> dict[str, dict[str, Any]]:
    """What is measured already: by row, then by task."""
    if CELLS.exists():
        return json.loads(CELLS.read_text(encoding="utf-8"))
    return json.loads(KEPT.read_text(encoding="utf-8"))["cells"] if KEPT.exists() else {}


def mean(cell: dict[str, Any], metric: str) -> float:
    """A metric's mean over the seeds."""
    return float(cell["metrics"][metric]["mean"])


def draw(cells: dict[str, dict[str, Any]]) -> None:
    """The table of what is measured so far."""
    lines = [f"| table | {' | '.join(TASKS)} |", "|---" * (1 + len(TASKS)) + "|"]
    for name in tables():
        row = cells.get(name, {})
        texts = []
        for task, settings in TASKS.items():
            if task not in row:
                texts.append("not yet")
                continue
            value = row[task]["runs"][0]["metrics"][settings["metric"]]
            texts.append(f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})")
        lines.append(f"| {name} | {' | '.join(texts)} |")
    for task, settings in TASKS.items():
        tuning = settings["finetune"]
        lines.append("")
        lines.append(
            f"{task}: {settings['metric']}, trained on the first {tuning.limit} examples, {tuning.epochs} epochs, "
            f"learning rate {tuning.learning_rate:g}, batch {tuning.batch_size}"
            + (f", judged on the first {settings['eval_limit']}" if "eval_limit" in settings else "")
            + "."
        )
    checks = []
    for ratio in RATIOS:
        for task, settings in TASKS.items():
            rows = [cells.get(f"{kind}, {ratio:g}×", {}) for kind in ("auto-encoder as published", "SVD")]
            if all(task in row for row in rows):
                ours, rival = (mean(row[task], settings["metric"]) for row in rows)
                checks.append(check(f"{task}, {ratio:g}×: auto-encoder above SVD", ours - rival, 0.0))
    publish_checks(
        "finetune_tables", "Fine-tuning with a compressed token table", checks, {"cells": cells}, [*lines, ""]
    )


if __name__ == "__main__":
    main()
