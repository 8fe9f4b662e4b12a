"""Recovery under one rule: every compressed all-MiniLM-L6-v2 gets the same minutes of distillation on the same texts.

Methods at 1/4, 1/7 and 1/48 of the linears' numbers (codes, low rank and shared layers in few bits: of their bytes),
whole models by stored bytes, and rivals with the same minutes: the model cut to 1, 2 and 3 of its layers, and few-bit
storage. Every run is one record in ``benchmarks/runs/recover``; what is there is not run again, and a run that was
killed goes on from its checkpoint. The page also says how our best stands beside every rival that is no smaller and,
with tasks measured, how far runs at 1/7 and 1/48 are from 99 % and 96.7 % of dense.

    python benchmarks/recover.py                                   the ten-minute grid, then the table
    python benchmarks/recover.py --minutes 60 --only "low rank, 1/7"
    python benchmarks/recover.py --tasks --only "low rank, 1/7"    fine-tune what was recovered
    python benchmarks/recover.py --list                            what is there and what is missing
    python benchmarks/recover.py --draw                            the table and the curves alone

Minutes are wall time of the machine that the first run had: a run gets the minutes in which this one, now, does as many
steps. One run at a time, or, with ``OMP_NUM_THREADS=1``, one a core. Records say how many threads they had. Checkpoints
and recovered models stand below fewfold's cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import Bench, publish, row_of
from pace import slowness
from recover_claims import claims, task_table
from recover_curves import draw_curves, order
from recover_plans import TEXT, Plan, plans
from recover_tasks import JUDGED, SETTINGS, TITLES
from recover_texts import excluded, recovery_phases, recovery_texts

import fewfold
from fewfold.calibration.cache import cache_folder
from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.folders import write_whole
from fewfold.measure.quality import quality_row
from fewfold.report.runs import RunRecord, read_run, read_runs, run_file, write_run
from fewfold.tasks import evaluate

RUNS = Path(__file__).parent / "runs"
WORK = cache_folder().parent / "recover"
PICTURE = Path(__file__).parent.parent / "docs" / "results" / "recover.png"
KIND, MODEL, DENSE = "recover", "all-MiniLM-L6-v2", "dense"


def label(name: str, minutes: float) -> str:
    """What a run is called."""
    return f"{name}, {minutes:g} min"


def work(name: str, minutes: float) -> Path:
    """Where a run's recovered model stands, or will stand."""
    return WORK / run_file(KIND, label(name, minutes), ".").stem


def recover(bench: Bench, name: str, plan: Plan, minutes: float, texts: list[str]) -> None:
    """Compress, measure, distil, measure what was saved, and write the record; goes on where a kill ended it."""
    folder = work(name, minutes)
    start, end = folder.with_name(f"{folder.name}.before.json"), folder / "distill.json"
    if not (start.is_file() and end.is_file()):
        student = plan(bench)
        if not start.is_file():
            here = minutes * slowness(bench)
            structure = structure_of(student)
            steps = structure.provenance.get("steps", []) if structure is not None else []
            _keep({"row": _judge(bench, student, name, "before"), "recipe": steps, "here": here}, start)
        if not end.is_file():
            here = json.loads(start.read_text(encoding="utf-8"))["here"]
            fewfold.distill(
                bench.model, student, texts, config=recovery_phases(), tokenizer=bench.tokenizer, minutes=here,
                exclude=excluded(), out=folder, data_name="mixed sentences",
            )  # fmt: skip
    before = json.loads(start.read_text(encoding="utf-8"))
    history = json.loads(end.read_text(encoding="utf-8"))
    after = _judge(bench, fewfold.load(folder).eval(), name, "after")  # what is kept in few bits is rounded there
    write_run(
        RunRecord(
            label(name, minutes), KIND, MODEL, recipe=before["recipe"], budget=plan.budget, seed=0,
            data={"calibration": TEXT, "recovery": history["data"]},
            settings={
                "plan": name, "minutes": minutes, "minutes here": before["here"],
                "phases": [phase["config"] for phase in history["phases"]],
            },
            numbers={"before": before["row"], "after": after}, minutes=history["minutes"], tokens=history["tokens"],
            series={key: history["phases"][0][key] for key in ("curve", "held_out")},
        ),
        RUNS,
    )  # fmt: skip


def _keep(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content))


def _judge(bench: Bench, model: Any, name: str, when: str) -> dict[str, Any]:
    row = quality_row(name, model, bench.reference, bench.pairs, TEXT)
    spearman = row.sts.spearman if row.sts else float("nan")
    print(f"{name}, {when}: STS-B {spearman:.4f}, nn10 {row.neighbour_overlap:.3f}", flush=True)
    return asdict(row)


def dense(bench: Bench) -> None:
    """The record that tasks are compared with."""
    row = _judge(bench, bench.model, DENSE, "as it is")
    settings = {"plan": DENSE, "minutes": 0.0}
    write_run(RunRecord(DENSE, KIND, MODEL, seed=0, settings=settings, numbers={"after": row}), RUNS)


def gone(run: RunRecord) -> bool:
    """Whether tasks are missing and the model to fine-tune stands on another machine: it is recovered again."""
    missing = set(TITLES) - set(run.numbers.get("tasks", {}))
    return bool(missing) and not (work(run.settings["plan"], run.settings["minutes"]) / "distill.json").is_file()


def finetune(bench: Bench, run: RunRecord) -> None:
    """Add scores of tasks to a record, one after another: the model is fine-tuned on each."""
    for task in TITLES:
        if task in run.numbers.get("tasks", {}):
            continue
        plan = run.settings["plan"]
        model = bench.fresh() if plan == DENSE else fewfold.load(work(plan, run.settings["minutes"]))
        kept = work(plan, run.settings["minutes"])
        kept = kept.with_name(f"{kept.name}.{task}.checkpoints")
        settings = {"finetune": SETTINGS[task], "checkpoints": kept, **JUDGED.get(task, {})}
        result = evaluate(model, task, tokenizer=bench.tokenizer, **settings).to_dict()
        run.numbers.setdefault("tasks", {})[task] = result
        write_run(run, RUNS)
        shutil.rmtree(kept)
        print(f"{run.name}, {task}: {result['metrics']}", flush=True)


def draw(bench: Bench) -> None:
    """The table of all records, those of one ratio together, and the picture of their curves."""
    runs = read_runs([RUNS / KIND]) if (RUNS / KIND).exists() else []
    if not runs:
        return print("no run is recorded yet")
    rows = list(bench.rivals)
    runs.sort(key=order)
    for run in runs:
        plan, minutes = run.settings["plan"], run.settings["minutes"]
        titles = {"before": f"{plan}: not recovered", "after": f"{plan}: {minutes:g} min"}
        for when, title in titles.items():
            if plan != DENSE and all(row.name != title for row in rows):
                rows.append(row_of(run.numbers[when], title))
    draw_curves(runs, PICTURE)
    picture = f"![Losses over minutes, training and held-out texts](../results/{PICTURE.name})"
    extra = {"runs": [run.name for run in runs], "checks": claims(runs)}
    publish("recover", "Recovery with equal minutes", rows, extra, lines=[*task_table(runs), picture, ""])


def main() -> None:
    """Run what is missing, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", action="append", help="a run's name; may be given again")
    parser.add_argument("--tasks", action="store_true", help="fine-tune the recovered models too")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    chosen = {name: plan for name, plan in plans().items() if not options.only or name in options.only}
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
        if options.tasks:
            path = run_file(KIND, DENSE, RUNS)
            if not path.exists():
                dense(bench)
            finetune(bench, read_run(path))
        for name, plan in chosen.items():
            path = run_file(KIND, label(name, options.minutes), RUNS)
            if not path.exists() or (options.tasks and gone(read_run(path))):
                recover(bench, name, plan, options.minutes, texts)
            if options.tasks:
                finetune(bench, read_run(path))
    draw(bench)


if __name__ == "__main__":
    main()
