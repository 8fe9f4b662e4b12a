"""What each part of the preset ``general`` brings: the same students, texts and steps, one part after another added.

Students of all-MiniLM-L6-v2 of four kinds learn hidden states alone, then also texts' vectors, then also texts'
similarities to anchors, and at last with learning rates by the size of a tensor's numbers; one that begins near its
teacher also with smaller steps, which the preset gives to such students. Measured on STS-B dev, whose sentences are
kept out of the texts. Rows that stand in the results are not run again.

    python benchmarks/recovery_losses.py [--steps 600] [--only "codes, 1/48"]
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import json
from dataclasses import asdict
from typing import Any

from common import BF16, RESULTS, Bench, publish, row_of
from recover_plans import TEXT, plans
from recover_texts import excluded, recovery_phases, recovery_texts

from fewfold.distill.run import distil
from fewfold.measure.quality import quality_row

NAME, TEXTS, BEFORE = "recovery_losses", 40_000, "not recovered"
NEAR = "int4, whole model"
STUDENTS = ("low rank, 1/48", "codes, 1/48", "low rank, int3, 1/48", "one block and differences, int8, 1/7", NEAR)
WAYS: dict[str, dict[str, Any]] = {  # changes of the preset
    "hidden states": {"sentence": None, "anchors": None, "rates": "equal", "whole_rate_loss": None},
    "and vectors": {"anchors": None, "rates": "equal", "whole_rate_loss": None},
    "and anchors": {"rates": "equal", "whole_rate_loss": None},
    "and rates by size": {"whole_rate_loss": None},
}
SMALLER = {"and smaller steps": dict[str, Any]()}


def ways(student: str) -> dict[str, dict[str, Any] | None]:
    """What a student is trained with, one after another; None is not at all."""
    return {BEFORE: None, **WAYS, **(SMALLER if student == NEAR else {})}


def main() -> None:
    """Run what is missing, and draw after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", action="append", choices=STUDENTS, help="a student; may be given again")
    wanted = parser.parse_args()
    bench, texts = Bench(), recovery_texts()[:TEXTS]
    for name in wanted.only or STUDENTS:
        if all(f"{name}: {way}" in known(wanted.steps) for way in ways(name)):
            continue
        start = plans()[name](bench)
        for way, changes in ways(name).items():
            title = f"{name}: {way}"
            if title in known(wanted.steps):
                continue
            student = copy.deepcopy(start)
            if changes is not None:
                config = [phase.changed(**changes) for phase in recovery_phases()]
                distil(
                    bench.model, student, texts, config=config, tokenizer=bench.tokenizer, steps=wanted.steps,
                    exclude=excluded(),
                )  # fmt: skip
            row = quality_row(title, student.eval(), bench.reference, bench.pairs, TEXT)
            bench.add(row)
            draw(bench, {title: asdict(row)}, wanted.steps)


def known(steps: int) -> dict[str, Any]:
    """Rows of earlier runs of so many steps, by name."""
    path = RESULTS / f"{NAME}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {row["name"]: row for row in content.get("rows", []) if content.get("steps") == steps}


def draw(bench: Bench, new: dict[str, Any], steps: int) -> None:
    """Add rows to the results and draw the table; several processes may do so."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f".{NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = known(steps) | new
        order = [f"{name}: {way}" for name in STUDENTS for way in ways(name)]
        rows = bench.rivals + [row_of(found[title]) for title in order if title in found]
        note = (
            f"{steps} steps of 32 texts each{', bfloat16 (autocast)' if BF16 else ''}; one seed. The last row of a "
            "student is the preset `general`, but for one block, which gets slightly smaller steps there."
        )
        publish(NAME, "What each part of recovery brings", rows, {"steps": steps, "bf16": BF16}, lines=[note, ""])


if __name__ == "__main__":
    main()
