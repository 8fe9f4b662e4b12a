"""Full-vocabulary logits from a coded table: partial dot products against the dense product, on two cores and on one.

Random codes and words (speed does not depend on them), V = 33,278, fp32, all contenders of a shape in turns. ``codes``
never assembles the table; ``rebuilt`` assembles it at every call, as training does; ``dense`` is ``F.linear(h, E)``.
Fewer numbers: those of the table over words and codes together, a code counted as one number; fewer bytes: of fp32 on
disk. The system hands out fresh pages for every large result by default; 34 MB of logits cost every contender more
there than the sums: the judged run lets the allocator keep them, as servers do; the default stands beside it. In turns
means that every contender finds the caches full of another's numbers. One section has each run by itself, as many times
in a row: what is small enough stays in the cache there.

    python benchmarks/head_speed.py
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import check, publish_checks
from processes import in_a_process
from torch import Tensor
from torch.nn import functional as F

from fewfold.progress import track
from fewfold.stored.codes import CodedMatrix
from fewfold.stored.stages import StageSpec

ROWS = 33278
# glibc keeps freed memory instead of giving it back to the system
REUSED = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
REUSED["MALLOC_TOP_PAD_"] = "268435456"
SETTINGS: dict[str, tuple[int, dict[str, str], bool]] = {  # name: threads, environment, in turns
    "2 threads, memory kept": (2, REUSED, True),
    "2 threads, memory kept, each by itself": (2, REUSED, False),
    "2 threads, fresh memory": (2, {}, True),
    "1 thread, memory kept": (1, REUSED, True),
}
SETTING = next(iter(SETTINGS))
WIDTHS, BATCHES = (512, 1024), (1, 32, 256)
FORMATS = {"32 × 1,024": StageSpec(32, 1024), "64 × 1,024": StageSpec(64, 1024), "64 × 256": StageSpec(64, 256)}
JUDGED, ASKED = "64 × 1,024", {1: 12.0, 32: 10.0, 256: 4.5}
REPEATS = {1: 40, 32: 20, 256: 10}


def timed(runs: dict[str, Callable[[], Tensor]], repeats: int, turns: bool) -> dict[str, list[float]]:
    """Milliseconds of every run, in turns or one contender after the other, after three rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    rounds = range(repeats + 3)
    order = [(number, name) for number in rounds for name in runs]
    for number, name in order if turns else sorted(order, key=lambda one: list(runs).index(one[1])):
        start = time.perf_counter()
        runs[name]()
        if number >= 3:
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def shape(columns: int, batch: int, turns: bool) -> list[dict[str, Any]]:
    """The rows of one hidden size and batch."""
    states, dense = torch.randn(batch, columns), torch.randn(ROWS, columns)
    runs: dict[str, Callable[[], Tensor]] = {"dense": lambda: F.linear(states, dense)}
    facts: dict[str, dict[str, float]] = {"dense": {"fewer numbers": 1.0, "fewer bytes": 1.0, "error": 0.0}}
    for name, stage in FORMATS.items():
        coded = CodedMatrix(ROWS, columns, [stage])
        coded.reset_parameters()
        wanted, found = F.linear(states, coded()), coded(states)
        facts[name] = {
            "fewer numbers": ROWS * columns / (stage.codebook_numbers(columns) + coded.gathers),
            "fewer bytes": ROWS * columns * 4 / coded.bytes,
            "error": float((found - wanted).norm() / wanted.norm()),
        }
        runs[name] = lambda coded=coded: coded(states)  # type: ignore[misc]
        if name == JUDGED:
            runs["rebuilt"] = lambda coded=coded: F.linear(states, coded())  # type: ignore[misc]
    facts["rebuilt"] = facts[JUDGED]
    times = timed(runs, REPEATS[batch], turns)
    rows, reference = [], statistics.median(times["dense"])
    for name, values in times.items():
        quarters = statistics.quantiles(values, n=4, method="inclusive")
        median = statistics.median(values)
        rows.append(
            {
                "hidden": columns, "batch": batch, "name": name, **facts[name], "median": median, "low": quarters[0],
                "high": quarters[2], "least": min(values), "faster": reference / median,
                "faster at best": min(times["dense"]) / min(values),
            }
        )  # fmt: skip
    return rows


def measure(setting: str) -> list[dict[str, Any]]:
    """The rows of every shape in this process."""
    threads, _, turns = SETTINGS[setting]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shapes = [(columns, batch) for columns in WIDTHS for batch in BATCHES]
    with torch.inference_mode():
        return [row for pair in track(shapes, "shapes") for row in shape(*pair, turns)]


def measured(setting: str) -> list[dict[str, Any]]:
    """The same in a process of its own: the allocator reads its settings once."""
    _, environment, _ = SETTINGS[setting]
    return [{"setting": setting, **row} for row in in_a_process(__file__, setting, environment=environment)]


def main() -> None:
    """Every setting and shape, the claims, and the table."""
    load = os.getloadavg()[0]
    rows = [row for setting in SETTINGS for row in measured(setting)]
    checks = []
    for row in (row for row in rows if row["name"] == JUDGED and row["setting"] == SETTING):
        what = f"codes of {JUDGED}, {SETTING}, H = {row['hidden']}, batch {row['batch']}"
        checks.append(check(f"{what}: times faster than dense", row["faster"], ASKED[row["batch"]], digits=1))
        checks.append(check(f"{what}: relative error", row["error"], 1e-5, at_least=False, digits=8))
    lines = [f"Load average of the machine when the run began: {load:.1f} (what else runs slows two threads down)."]
    head = "| H | batch | contender (width × words) | fewer numbers | fewer bytes | ms | faster | at best |"
    for setting in SETTINGS:
        lines += ["", f"## {setting[0].upper()}{setting[1:]}", "", head, "|---|---|---|---|---|---|---|---|"]
        for row in (row for row in rows if row["setting"] == setting):
            name = row["name"] if row["name"] != "rebuilt" else f"rebuilt from {JUDGED}"
            lines.append(
                f"| {row['hidden']} | {row['batch']} | {name} | {row['fewer numbers']:.1f}× | "
                f"{row['fewer bytes']:.1f}× | {row['median']:.2f} ({row['low']:.2f}–{row['high']:.2f}) | "
                f"{row['faster']:.1f}× | {row['faster at best']:.1f}× |"
            )
    extra = {"settings": {name: threads for name, (threads, _, _) in SETTINGS.items()}, "load": load}
    publish_checks("head_speed", "Logits from coded tables", checks, {**extra, "rows": rows}, [*lines, ""])
    print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
