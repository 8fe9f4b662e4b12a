"""Recovery under one rule: every compressed all-MiniLM-L6-v2 gets the same minutes of distillation on the same texts.

Methods at 1/4, 1/7 and 1/48 of the linears' numbers (codes: of their bytes), whole models by stored bytes, and rivals
with the same minutes: the model cut to 1, 2 and 3 of its layers, and few-bit storage. Every run is one record in
``benchmarks/runs/recover``; what is there is not run again, and a run that was killed goes on from its checkpoint.

    python benchmarks/recover.py                                   the ten-minute grid, then the table
    python benchmarks/recover.py --minutes 60 --only "low rank, 1/7"
    python benchmarks/recover.py --tasks --only "low rank, 1/7"    fine-tune what was recovered
    python benchmarks/recover.py --list                            what is there and what is missing
    python benchmarks/recover.py --draw                            the table alone

One run at a time: minutes are wall time on all cores. Checkpoints and recovered models stand below fewfold's cache.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import Bench, publish
from recover_texts import excluded, recovery_texts

import fewfold
from fewfold import Budget, LowRank, SharedFactors, SubvectorCodes
from fewfold.calibration.cache import cache_folder
from fewfold.measure.quality import QualityRow, floor_rows, quality_row
from fewfold.report.runs import RunRecord, read_run, read_runs, run_file, write_run
from fewfold.tasks import FineTuning, evaluate
from fewfold.tasks.data import calibration_texts
from fewfold.tasks.sts import StsScore

RUNS = Path(__file__).parent / "runs"
WORK = cache_folder().parent / "recover"
KIND, TEXT, MODEL = "recover", "mixed-512", "all-MiniLM-L6-v2"
RATIOS, WHOLE = (4, 7, 48), (8, 16, 32)
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"finetune": FineTuning(learning_rate=5e-5, epochs=1, limit=8000)},
    "cola": {"finetune": FineTuning(learning_rate=5e-5, epochs=3, limit=8551)},
    "squad": {
        "finetune": FineTuning(learning_rate=2e-4, epochs=2, limit=3000), "max_length": 192, "stride": 64,
        "eval_limit": 500,
    },
}  # fmt: skip

Make = Callable[[Bench], Any]


def plans() -> dict[str, Make]:
    """What is recovered, by name: functions from the dense model to the student."""
    found: dict[str, Make] = {}
    for ratio in RATIOS:
        numbers, size = f"parameters=1/{ratio} of linears", f"bytes=1/{ratio} of linears"
        found[f"low rank, 1/{ratio}"] = _compress(LowRank(), numbers)
        found[f"shared factors, 1/{ratio}"] = _compress(SharedFactors(), numbers)
        found[f"codes, 1/{ratio}"] = _compress(SubvectorCodes(), size)
    for layers in (3, 2, 1):
        found[f"cut to {layers} layers"] = lambda bench, layers=layers: cut(bench.fresh(), layers)
    for times in WHOLE:
        found[f"codes-default, whole model {times}×"] = _compress("codes-default", f"bytes={_whole(times)}")
    for name in ("int4", "int3"):
        found[f"{name}, whole model"] = _compress(name, None)
    return found


def _whole(times: int) -> str:
    return f"{90_852_864 / times / 1e6:.3f}MB"


def _compress(config: Any, budget: str | None) -> Make:
    def make(bench: Bench) -> Any:
        return fewfold.compress(
            bench.fresh(), config, budget=None if budget is None else Budget.parse(budget),
            calibration=calibration_texts(TEXT), tokenizer=bench.tokenizer, calibration_name=TEXT,
        )  # fmt: skip

    return make


def cut(model: Any, layers: int) -> Any:
    """Keep so many layers, evenly spaced, the last one among them."""
    blocks = model.encoder.layer
    kept = [round((place + 1) * len(blocks) / layers) - 1 for place in range(layers)]
    model.encoder.layer = torch.nn.ModuleList(blocks[place] for place in kept)
    model.config.num_hidden_layers = layers
    return model


def label(name: str, minutes: float) -> str:
    """What a run is called."""
    return f"{name}, {minutes:g} min"


def recover(bench: Bench, name: str, make: Make, minutes: float, texts: list[str]) -> None:
    """Compress, measure, distil, measure, and write the record."""
    run_name = label(name, minutes)
    folder = WORK / run_file(KIND, run_name, ".").stem
    student = make(bench)
    before = _judge(bench, student, name, "before")
    fewfold.distill(
        bench.model, student, texts, config="general", tokenizer=bench.tokenizer, minutes=minutes, exclude=excluded(),
        out=folder, data_name="mixed sentences",
    )  # fmt: skip
    history = json.loads((folder / "distill.json").read_text(encoding="utf-8"))
    after = _judge(bench, student, name, "after")
    structure = getattr(student.config, "quantization_config", None)
    steps = getattr(structure, "provenance", {}).get("steps", []) if structure is not None else []
    write_run(
        RunRecord(
            run_name, KIND, MODEL, recipe=steps, data={"calibration": TEXT, "recovery": history["data"]}, seed=0,
            settings={"plan": name, "minutes": minutes, "phases": [phase["config"] for phase in history["phases"]]},
            numbers={"before": before, "after": after}, minutes=history["minutes"], tokens=history["tokens"],
            series={key: history["phases"][0][key] for key in ("curve", "held_out")},
        ),
        RUNS,
    )  # fmt: skip


def _judge(bench: Bench, model: Any, name: str, when: str) -> dict[str, Any]:
    row = quality_row(name, model, bench.reference, bench.pairs, TEXT)
    spearman = row.sts.spearman if row.sts else float("nan")
    print(f"{name}, {when}: STS-B {spearman:.4f}, nn10 {row.neighbour_overlap:.3f}", flush=True)
    return asdict(row)


def finetune(bench: Bench, run: RunRecord) -> None:
    """Add scores of tasks to a record: the recovered model is fine-tuned on each."""
    from transformers import AutoModel

    folder = WORK / run_file(KIND, run.name, ".").stem
    for task, settings in TASKS.items():
        if task in run.numbers.get("tasks", {}):
            continue
        model = AutoModel.from_pretrained(folder)
        result = evaluate(model, task, tokenizer=bench.tokenizer, **settings).to_dict()
        run.numbers.setdefault("tasks", {})[task] = result
        write_run(run, RUNS)
        print(f"{run.name}, {task}: {result['metrics']}", flush=True)


def draw(bench: Bench | None = None) -> None:
    """The table of all records, best neighbours first within a ratio."""
    runs = read_runs([RUNS / KIND]) if (RUNS / KIND).exists() else []
    if not runs:
        return print("no run is recorded yet")
    rows: list[QualityRow] = []
    if bench is not None:
        rows.append(quality_row("dense", bench.model, bench.reference, bench.pairs))
        rows += floor_rows(bench.model, bench.tokenizer, bench.reference, bench.pairs)
    for run in sorted(runs, key=lambda run: (run.settings["plan"].split(", ")[-1], run.settings["minutes"])):
        for when in ("before", "after"):
            kept = run.numbers[when]
            title = f"{run.settings['plan']}: " + ("not recovered" if when == "before" else f"{run.minutes:.0f} min")
            if when == "before" and any(row.name == title for row in rows):
                continue
            rows.append(QualityRow(**{**kept, "name": title, "sts": StsScore(**kept["sts"])}))
    publish("recover", "Recovery with equal minutes", rows, {"runs": [run.name for run in runs]})


def main() -> None:
    """Run what is missing, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", action="append", help="a run's name; may be given again")
    parser.add_argument("--tasks", action="store_true", help="fine-tune the recovered models too")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    chosen = {name: make for name, make in plans().items() if not options.only or name in options.only}
    unknown = set(options.only or ()) - set(chosen)
    if unknown:
        parser.error(f"no run is called {', '.join(sorted(unknown))}; there are: {'; '.join(plans())}")
    if options.list:
        for name in chosen:
            there = run_file(KIND, label(name, options.minutes), RUNS).exists()
            print(("done     " if there else "missing  ") + label(name, options.minutes))
        return
    bench = Bench()
    if not options.draw:
        texts = recovery_texts()
        for name, make in chosen.items():
            path = run_file(KIND, label(name, options.minutes), RUNS)
            if not path.exists():
                recover(bench, name, make, options.minutes, texts)
            if options.tasks:
                finetune(bench, read_run(path))
    draw(bench)


if __name__ == "__main__":
    main()
