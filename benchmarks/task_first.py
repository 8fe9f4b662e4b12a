"""The other order: the dense model is fine-tuned on a task, then compressed, then distilled from on the task's texts.

Recovery with equal minutes fine-tunes what was recovered. Whoever has a fine-tuned model compresses that one instead:
calibrated on the task's training texts, then taught by it for the same few minutes a plan, labels unseen. All plans,
rivals too, have the same teachers, texts and minutes; tasks and fine-tuning are those of ``recover.py``. Every result
is one record in ``benchmarks/runs/task-first``; what is there is not run again, and what was killed goes on. Minutes
are those of the machine that ``recover.py`` ran on first.

    python benchmarks/task_first.py                           the usual plans, then the table
    python benchmarks/task_first.py --only "codes, 1/7"       one of recover.py's plans
    python benchmarks/task_first.py --draw                    the table alone
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import BF16, Bench, check, publish_checks
from pace import slowness
from recover_claims import BARS, OF_DENSE
from recover_curves import group_of
from recover_plans import BYTES, Plan, plans
from recover_tasks import JUDGED, LENGTHS, SETTINGS, TITLES, rows, texts

import fewfold
from fewfold.calibration.cache import cache_folder
from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.folders import write_whole
from fewfold.distill.config import DistillConfig, HiddenTerm, LogitsTerm
from fewfold.measure.parameters import unique_parameters
from fewfold.report.runs import RunRecord, read_runs, run_file, write_run
from fewfold.tasks import evaluate
from fewfold.tasks.evaluate import task_named
from fewfold.tasks.finetune import fine_tune
from fewfold.tasks.heads import with_head

RUNS = Path(__file__).parent / "runs"
WORK = cache_folder().parent / "task-first"
KIND, MODEL, DENSE, MINUTES = "task-first", "all-MiniLM-L6-v2", "dense", 4.0
USUAL = ("codes, 1/7", "low rank, 1/7", "low rank, int3, 1/48", "codes, 1/48", "cut to 3 layers", "int4, whole model")


def teacher(bench: Bench, task: str) -> Any:
    """The dense model, fine-tuned on a task; trained once."""
    folder = WORK / f"{DENSE}-{task}"
    if not folder.exists():
        work = task_named(task, bench.tokenizer, **JUDGED.get(task, {}))
        model = with_head(bench.fresh(), work.num_labels, work.kind, 0)
        found, examples = work.training_rows(model, SETTINGS[task].limit)
        fine_tune(model, bench.tokenizer, found, SETTINGS[task], 0, examples, checkpoints=folder.with_suffix(".fit"))
        fewfold.save(model, folder, tokenizer=bench.tokenizer)
    return fewfold.load(folder).eval()


def judge(model: Any, task: str, bench: Bench) -> float:
    """The task's main metric on its development examples."""
    result = evaluate(model, task, tokenizer=bench.tokenizer, **JUDGED.get(task, {})).to_dict()
    return float(next(iter(result["metrics"].values()))["mean"])


def phase(task: str) -> DistillConfig:
    """Ours for a task's texts: hidden states of all layers, and of classifiers the logits."""
    hidden = [HiddenTerm(layers="last", kind="relative"), HiddenTerm(layers="all", kind="relative")]
    return DistillConfig(
        hidden=hidden, logits=None if task == "squad" else LogitsTerm(temperature=2.0), learning_rate=5e-4,
        rates="by_size", whole_rate_loss=1.0, warmup=0.1, schedule="cosine", freeze_tables=True, bf16=BF16,
        max_length=LENGTHS.get(task, 128), minutes=MINUTES, name="task texts",
        source="ours: the last and all hidden states, and logits",
    )  # fmt: skip


def run(bench: Bench, name: str, plan: Plan, task: str) -> None:
    """Compress and distil on one task, and write the record."""
    dense, folder = teacher(bench, task), WORK / run_file(KIND, f"{name}, {task}", ".").stem
    start = folder.with_suffix(".before")
    if not (folder / "distill.json").is_file():
        student = plan.on(teacher(bench, task), texts(task)[:2048], bench.tokenizer, f"{task}-train").eval()
        write_whole(start, repr(judge(student, task, bench)))
        fewfold.distill(
            dense, student, rows(task), config=phase(task), tokenizer=bench.tokenizer, out=folder,
            minutes=MINUTES * slowness(bench), data_name=f"{task}, training texts",
        )  # fmt: skip
    student = fewfold.load(folder).eval()
    scores = {"dense": judge(dense, task, bench), "compressed": float(start.read_text(encoding="utf-8"))}
    scores["distilled"] = judge(student, task, bench)
    numbers = {"task": scores, "bytes": (folder / "model.safetensors").stat().st_size}
    settings = {
        "plan": name,
        "task": task,
        "minutes": MINUTES,
        "fine-tuning": asdict(SETTINGS[task]),
    }
    data = {"calibration": f"{task}-train", "distillation": f"{task}, training texts"}
    numbers["parameters"] = unique_parameters(student)
    history = json.loads((folder / "distill.json").read_text(encoding="utf-8"))
    settings["distillation"] = history["phases"][0]["config"]  # its minutes are those of this machine
    structure = structure_of(student)
    steps = structure.provenance.get("steps", []) if structure is not None else []
    write_run(
        RunRecord(
            f"{name}, {task}", KIND, MODEL, recipe=steps, budget=plan.budget, seed=0, data=data, settings=settings,
            numbers=numbers, minutes=history["minutes"], tokens=history["tokens"],
        ),
        RUNS,
    )  # fmt: skip
    print(f"{name}, {task}: " + ", ".join(f"{key} {value:.4f}" for key, value in scores.items()), flush=True)


def draw() -> None:
    """The table of plans whose tasks are all there, and how far those at published ratios are from dense."""
    found: dict[str, dict[str, RunRecord]] = {}
    for record in read_runs([RUNS / KIND]) if (RUNS / KIND).exists() else []:
        found.setdefault(record.settings["plan"], {})[record.settings["task"]] = record
    lines = [
        f"| plan | MB | {' | '.join(TITLES.values())} | mean | of dense |",
        f"| --- |{' ---: |' * (len(TITLES) + 3)}",
    ]
    checks: list[dict[str, Any]] = []
    for name in (one for one in plans() if set(found.get(one, ())) >= set(TITLES)):
        records = [found[name][task] for task in TITLES]
        whole = [record.numbers["task"]["dense"] for record in records]
        if len(lines) == 2:
            lines.append(_row("fine-tuned dense model", BYTES / 1e6, whole, whole))
        for when, title in (("compressed", f"{name}: compressed"), ("distilled", f"{name}: and distilled")):
            lines.append(
                _row(title, records[0].numbers["bytes"] / 1e6, [r.numbers["task"][when] for r in records], whole)
            )
        bar = BARS.get(group_of(name))
        if bar:
            share = sum(record.numbers["task"]["distilled"] for record in records) / sum(whole)
            what = f"{name} ({group_of(name)} of the {plans()[name].counted}): mean over {', '.join(TITLES.values())}"
            checks.append(check(f"{what}, as {OF_DENSE}", share, bar))
    note = (
        f"The dense model is fine-tuned on each task, compressed on 2,048 of its training texts, then distilled for "
        f"{MINUTES:g} minutes on all that it was fine-tuned on, labels unseen. One seed. MB hold the table in fp32 "
        "where a plan is about linear maps alone."
    )
    if checks or len(lines) > 2:
        publish_checks("task_first", "Compressed after fine-tuning", checks, {}, [*lines, "", note, ""])


def _row(title: str, size: float, scores: list[float], whole: list[float]) -> str:
    mean = sum(scores) / len(scores)
    cells = [f"{size:.2f}", *(f"{score:.3f}" for score in (*scores, mean)), f"{100 * sum(scores) / sum(whole):.1f} %"]
    return f"| {title} | {' | '.join(cells)} |"


def main() -> None:
    """Run what is missing, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a plan's name; may be given again")
    parser.add_argument("--task", action="append", choices=list(TITLES), help="a task; may be given again (all)")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    unknown = set(options.only or ()) - set(plans())
    if unknown:
        parser.error(f"no plan is called {', '.join(sorted(unknown))}; there are: {'; '.join(plans())}")
    if not options.draw:
        bench = Bench()
        WORK.mkdir(parents=True, exist_ok=True)
        for task in options.task or TITLES:
            for name in options.only or USUAL:
                if not run_file(KIND, f"{name}, {task}", RUNS).exists():
                    run(bench, name, plans()[name], task)
    draw()


if __name__ == "__main__":
    main()
