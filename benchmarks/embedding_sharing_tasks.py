"""Hidden layers carved out of the embeddings, task by task, beside a dense twin and one block for all layers.

Same data, steps, sizes and seed in every column. The claim (Hu et al. 2024 and 2025): at least 95.5 % of the dense
twin's quality with next to no numbers in the hidden layers. Quality is the task's figure on its test data with a
bootstrap interval over examples; the ratio's interval resamples the examples of both models together.

    python benchmarks/embedding_sharing_tasks.py [--only 'masked/*' lstm/veps …] [--list] [--seed 0] [--scale 1]
    python benchmarks/embedding_sharing_tasks.py --choices    # what the publication leaves open

Without names the first four tasks and three kinds are measured, and VEPS with int8 and with distillation on the masked
language model; further names add to the table. A cell is written as soon as it is measured and not measured again; one
that was killed goes on from its last checkpoint. `--scale` multiplies all step counts. Below 0.1 the data is cut too,
and results go to `--results` (a try of the program).
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import common
import torch
from common import BF16, check, publish_checks
from embedding_sharing_cells import TASKS
from embedding_sharing_masked import MEASURES, bags_of_words
from embedding_sharing_parts import LABELS, TRY, Cell, Wish, add_row, read_rows

from fewfold.measure.environment import environment

CLAIM = 0.955
ON_MASKED = ("veps-int8", "veps-distilled")  # kinds that only the masked language model has
KEPT = ("dense", "veps")  # kinds of it whose models others start from
MINUTES = {"veps-own": 1.1, "veps-int8": 0.1, "veps-distilled": 1.2}  # times those of VEPS
ROWS = "embedding_sharing_tasks.rows.json"


def cells(seed: int, scale: float) -> list[Wish]:
    """Every cell that there is, the first table's first."""
    found = [
        Wish(task, kind, seed, scale)
        for task in TASKS
        for kind in LABELS
        if not (kind in ON_MASKED and task != "masked")
        and (task, kind) != ("gated-conv", "shared")  # SharedLayers serves linear maps alone
    ]
    return sorted(found, key=lambda wish: not is_first(wish))


def is_first(wish: Wish) -> bool:
    """Whether a cell stands in the first table."""
    return wish.task in list(TASKS)[:4] and wish.kind != "veps-own"


def minutes(wish: Wish) -> float:
    """How long a cell may take."""
    carved = TASKS[wish.task].carving if wish.kind.startswith("veps") else 1.0
    return TASKS[wish.task].minutes * carved * MINUTES.get(wish.kind, 1.0) * wish.scale


def chosen(given: Sequence[Wish], patterns: Sequence[str]) -> list[Wish]:
    """The cells that patterns name.

    :raises SystemExit: for a pattern that names none.
    """
    for pattern in patterns:
        if not any(fnmatch(wish.name, pattern) for wish in given):
            raise SystemExit(f"--only {pattern}: no such cell; there are {', '.join(wish.name for wish in given)}")
    return [wish for wish in given if any(fnmatch(wish.name, pattern) for pattern in patterns)]


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
    parser.add_argument(
        "--only", nargs="+", metavar="TASK/KIND", help="cells (of --choices, trainings) by name, also with * and ?"
    )
    parser.add_argument("--list", action="store_true", help="show all cells and which are measured, and stop")
    parser.add_argument("--choices", action="store_true", help="measure what the publication leaves open instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, help="folder for results, in place of the repository's")
    wanted = parser.parse_args()
    if wanted.scale < TRY and wanted.results is None and not wanted.list:
        parser.error("--scale below 0.1 only tries the program: give --results FOLDER too")
    if wanted.results is not None:
        common.RESULTS = common.TABLES = wanted.results
    torch.set_num_threads(wanted.threads)
    if wanted.choices:
        from embedding_sharing_choices import measure

        return measure(wanted.scale, wanted.threads, wanted.list, wanted.only or ["*"])
    known = cells(wanted.seed, wanted.scale)
    kept = read_rows(common.RESULTS / ROWS)
    if wanted.list:
        for wish in known:
            state = "measured" if wish.key in kept else f"about {minutes(wish):.0f} min on two quiet cores"
            print(f"{wish.name:28} {state}" + ("" if is_first(wish) else "  (further)"))
        return
    for wish in chosen(known, wanted.only) if wanted.only else [wish for wish in known if is_first(wish)]:
        if wish.key not in kept:
            measure_cell(wish, kept, wanted.threads)
    draw(kept, wanted.scale, wanted.seed)


def measure_cell(wish: Wish, kept: dict[str, Cell], threads: int) -> None:
    """Measure a cell, and its task's floor; each is written at once."""
    task, file = TASKS[wish.task], common.RESULTS / ROWS
    floor = f"{wish.task} | floor | {wish.scale:g}"
    if task.floor is not None and floor not in kept:
        kept.update(add_row(file, floor, {"floor": task.floor[1](wish.scale)}))
        if wish.task == "masked":
            words = {"more": bags_of_words(wish.scale)}
            kept.update(add_row(file, f"masked | bags of words | {wish.scale:g}", words))
    goes_on, start = wish.folder.exists(), time.perf_counter()
    print(f"{wish.name}: " + ("goes on" if goes_on else "begins") + f", about {minutes(wish):.0f} min", flush=True)
    cell = task.run(wish)
    spent = (time.perf_counter() - start) / 60
    facts = {"minutes": spent, "went_on": goes_on, "threads": threads, "bf16": BF16, "environment": environment()}
    kept.update(add_row(file, wish.key, {**cell, **facts}))
    if not (wish.task == "masked" and wish.kind in KEPT):
        shutil.rmtree(wish.folder, ignore_errors=True)
    value = task.measure.interval(cell["units"])[0]
    print(f"{wish.name}: {task.measure.name} {value:.4f}, {spent:.1f} min", flush=True)


def draw(kept: dict[str, Cell], scale: float, seed: int) -> None:
    """The tables and the claims of what is measured so far."""
    lines = [
        "| task | weights | unique parameters | in hidden layers | quality | 95 % interval | kept of dense | interval "
        "| training tokens/s | minutes | |",
        "|---" * 11 + "|",
    ]
    checks, floors, rows = [], [], []
    for short, task in TASKS.items():
        found = {kind: kept.get(Wish(short, kind, seed, scale).key) for kind in LABELS}
        dense = found["dense"]
        counts = False
        if dense is not None:
            counts, line = cleared(short, dense, kept.get(f"{short} | floor | {scale:g}", {}))
            floors.append(line)
        for kind, cell in found.items():
            if cell is None:
                continue
            value, low, high = task.measure.interval(cell["units"])
            row: list[str] = [
                task.title, LABELS[kind], f"{cell['parameters']:,}", f"{cell['hidden']:,}",
                f"{task.measure.name} {value:.4g}", f"{low:.4g}–{high:.4g}",
            ]  # fmt: skip
            pace = "–" if cell["tokens_a_second"] is None else f"{cell['tokens_a_second']:,.0f}"
            spent = ("at least " if cell["went_on"] else "") + f"{cell['minutes']:.1f}"
            if kind == "dense" or dense is None:
                row += ["", "", pace, spent, ""]
            else:
                share = task.measure.ratio(dense["units"], cell["units"])
                row += [f"{share[0]:.3f}", f"{share[1]:.3f}–{share[2]:.3f}", pace, spent, verdict(share, counts)]
                if kind.startswith("veps") and counts:
                    checks.append(check(f"{task.title}, {LABELS[kind]}: kept of dense", share[0], CLAIM, digits=3))
            facts = {name: fact for name, fact in cell.items() if name not in ("units", "more")}
            rows.append({"task": task.title, "kind": kind, "cell": facts, "row": row})
            lines.append(f"| {' | '.join(row)} |")
    lines += [
        "", f"Seed {seed}, steps × {scale:g}. Kept of dense: the figure over the dense twin's, of perplexities dense "
        "over it. 'reproduced': the interval's lower end is at least 0.955; 'at this scale': the figure is, the "
        f"lower end is not; 'not reached': neither. Tokens/s are of training{in_bf16(kept)}; cells were measured on "
        "different days, machines and beside other work, so that neither they nor minutes compare.", "", "Floors:", "",
        *floors, "", *masked_table(kept, scale, seed),
    ]  # fmt: skip
    publish_checks(
        "embedding_sharing_tasks", "Hidden layers out of the embeddings, task by task", checks, {"rows": rows}, lines
    )


def in_bf16(kept: dict[str, Cell]) -> str:
    """In what the cells computed while they learned."""
    found = {cell["bf16"] for cell in kept.values() if "bf16" in cell}
    return {(True,): ", in bfloat16", (False, True): ", part of the cells in bfloat16"}.get(tuple(sorted(found)), "")


def cleared(short: str, dense: Cell, floor: Cell) -> tuple[bool, str]:
    """Whether a dense twin counts, and the line that says so."""
    task = TASKS[short]
    value = task.measure.interval(dense["units"])[0]
    if task.floor is None:
        bar, counts, what = dense["floor"], bool(dense["above_floor"]), "the same model shown shuffled images"
    else:
        bar, what = floor["floor"], task.floor[0]
        counts = bool((value > bar) == task.measure.more_is_better)
    said = "cleared" if counts else "**not cleared**"
    gain = dense.get("also", {}).get("its interval")
    more = f" (95 % interval of what the right image adds: {gain[0]:.3g} … {gain[1]:.3g})" if gain else ""
    return counts, f"- {task.title}: dense twin {value:.4g}, {what} {bar:.4g} – {said}{more}"


def masked_table(kept: dict[str, Cell], scale: float, seed: int) -> list[str]:
    """The masked language model in all its figures, each with its interval and what is kept of dense."""
    found: dict[str, Any] = {kind: kept.get(Wish("masked", kind, seed, scale).key) for kind in LABELS}
    if found["dense"] is None:
        return []
    floor = kept.get(f"masked | bags of words | {scale:g}", {}).get("more", {})
    units = {kind: {**cell["more"], "sst2": cell["units"]} for kind, cell in found.items() if cell is not None}
    lines = [
        "## The masked language model",
        "",
        f"| weights | bytes | {' | '.join(m.name for m in MEASURES.values())} |",
    ]
    lines.append("|---" * (2 + len(MEASURES)) + "|")
    for kind, of_kind in {"floor": floor, **units}.items():
        row = ["bag of words", ""] if kind == "floor" else [LABELS[kind], f"{found[kind]['bytes']:,}"]
        for name, measure in MEASURES.items():
            if name not in of_kind:
                row.append("–")
                continue
            value, low, high = measure.interval(of_kind[name])
            text = f"{value:.4g} ({low:.4g}–{high:.4g})"
            if (
                kind not in ("floor", "dense") and measure.interval(units["dense"][name])[1] > 0
            ):  # shares of 0 say nothing
                share = measure.ratio(units["dense"][name], of_kind[name])
                text += f", kept {share[0]:.3f} ({share[1]:.3f}–{share[2]:.3f})"
            row.append(text)
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
