"""all-MiniLM-L6-v2's six layers in three blocks and in one: starts with and without alignment, differences, rivals.

Strict sharing stores a block for several layers and nothing else but biases and norms; the relaxed form adds a low-rank
difference a layer. Rivals get the same bytes. All rows are calibrated on the same texts.

    python benchmarks/shared_layers_quality.py [--minutes 10 [--all]] [--only PART] [--fresh]

``--minutes`` distils the main rows as well (``--all``: every row), all and last hidden states, so long each. Machines
are faster and slower from day to day: one strict row gets these minutes, every other the steps that it came to (their
steps cost the same), and the rivals the minutes in which this machine does as many of them. Every row
goes into the results as soon as it is measured, and is not measured again: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from codes_quality import TEXT, begin
from common import BF16, check, publish
from pace import seconds_a_step
from recover_texts import excluded, recovery_phases, recovery_texts

import fewfold
from fewfold import Budget, LowRank, SharedLayers, Tucker
from fewfold.distill.run import distil
from fewfold.measure.quality import QualityRow

INITS = ("first", "stepwise", "mean", "weighted", "anchored")
INIT = "anchored"  # our default
ALIGN = {"as they are": "none", "aligned": "permute", "aligned and rotated": "rotate"}
OURS = "aligned and rotated"
BLOCKS = {3: "1/2", 2: "1/3", 1: "1/6"}  # blocks, and what part of the linears' bytes they keep
RELAXED = {  # of the bytes of as many blocks
    3: "2 blocks and differences, 1/2", 2: "1 block and differences, 1/3", 1: "1 block and differences, int8, 1/6",
}  # fmt: skip
ASKED = {"STS-B dev": 0.84, "nn10": 0.45}


def strict(blocks: int, init: str = INIT, align: str = "rotate", **values: Any) -> SharedLayers:
    """Blocks of neighbouring layers, no differences."""
    return SharedLayers(map="sequence", blocks=blocks, init=init, align=align, delta_rank=0, **values)


def name_of(blocks: int, init: str, words: str) -> str:
    """A strict row's name."""
    return f"{blocks} block{'s' if blocks > 1 else ''}, {init}, {words}"


def contenders() -> dict[str, tuple[Any, Budget | None]]:
    """Every row that is fitted without training."""
    found: dict[str, tuple[Any, Budget | None]] = {}
    for blocks in (3, 1):
        for init in INITS:
            for words, align in ALIGN.items():
                found[name_of(blocks, init, words)] = (strict(blocks, init, align), None)
    found[name_of(2, INIT, OURS)] = (strict(2), None)
    for words, config in (("cycle", {"map": "cycle", "blocks": 3}), ("cycle_rev", {"map": "cycle_rev", "blocks": 3})):
        found[f"3 blocks, {INIT}, {OURS}, {words}"] = (SharedLayers(delta_rank=0, **config), None)
    for blocks, share in BLOCKS.items():
        budget = Budget(bytes=f"{share} of linears")
        if blocks > 1:
            found[f"1 block and differences, {share}"] = (SharedLayers(map="all"), budget)
        if blocks == 3:
            found[f"2 blocks and differences, {share}"] = (SharedLayers(map="sequence", blocks=2), budget)
            found[f"1 block and differences, not aligned, {share}"] = (SharedLayers(map="all", align=False), budget)
        form = {"stored_dtype": "int8"}  # a smaller dtype pays for the differences at the size of one block
        if blocks < 3:
            found[f"3 blocks and differences, int8, {share}"] = (SharedLayers(**form), budget)
        if blocks == 1:
            found[f"1 block and differences, int8, {share}"] = (SharedLayers(map="all", **form), budget)
        found[f"low rank, {share}"] = (LowRank(), budget)
        found[f"Tucker, {share}"] = (Tucker(), budget)
    return found


MAIN = name_of(3, INIT, OURS)
TIMED = name_of(3, "weighted", OURS)  # the strict row that gets minutes; the others get its steps
TRAINED = (
    TIMED, MAIN, name_of(2, INIT, OURS), name_of(1, INIT, OURS), "2 blocks and differences, 1/2",
    "1 block and differences, 1/2", "1 block and differences, 1/3",
    "low rank, 1/2", "low rank, 1/3", "low rank, 1/6", "1 block and differences, int8, 1/6", "Tucker, 1/2",
    "Tucker, 1/6",
    *(
        name for words in ("as they are", OURS) for init in reversed(INITS) for blocks in (3, 1)
        if (name := name_of(blocks, init, words)) not in (TIMED, MAIN, name_of(1, INIT, OURS))
        and (blocks, init) != (1, "stepwise")  # of one block the same as first
    ),
)  # fmt: skip


def is_strict(name: str) -> bool:
    """Whether a row has nothing but blocks, so that its steps cost what those of our default cost."""
    return name in {name_of(blocks, init, words) for blocks in (3, 2, 1) for init in INITS for words in ALIGN}


def pace(rows: Any) -> float:
    """Seconds of a training step of a strict model, here and now."""
    model = fewfold.compress(rows.bench.fresh(), strict(3, "first", "none"), fit=False)
    return seconds_a_step(rows.bench, model, rows.texts)


def limit_of(rows: Any, name: str, minutes: float) -> dict[str, Any]:
    """As much training as one strict row gets in these minutes.

    :raises SystemExit: if it is not measured yet.
    """
    if name == TIMED:
        return {"minutes": minutes}
    timed = rows.facts.get(f"{TIMED}, {minutes:g} minutes")
    if timed is None:
        raise SystemExit(f"{name}: first measure {TIMED!r}, whose steps the others get")
    return {"steps": timed["steps"]} if is_strict(name) else {"minutes": minutes * pace(rows) / timed["pace"]}


def distilled(rows: Any, name: str, minutes: float, steps: int | None) -> None:
    """The row of a model that learned from the dense one for so long."""
    config, budget = contenders()[name]
    after = f"{name}, {steps} steps" if steps else f"{name}, {minutes:g} minutes"

    def make(model: torch.nn.Module) -> Any:
        fewfold.compress(
            model, config, budget=budget, calibration=rows.texts, tokenizer=rows.bench.tokenizer, calibration_name=TEXT
        )
        limit = {"steps": steps} if steps else limit_of(rows, name, minutes)
        done = distil(
            rows.bench.model, model, recovery_texts(), tokenizer=rows.bench.tokenizer, data_name="mixed sentences",
            exclude=excluded(), config=recovery_phases(), **limit,
        )  # fmt: skip
        rows.facts[after] = {
            "steps": sum(phase.steps for phase in done.histories),
            "tokens": sum(phase.tokens for phase in done.histories),
            "minutes": sum(phase.seconds for phase in done.histories) / 60, "limit": limit,
            "pace": pace(rows) if name == TIMED else None,
        }  # fmt: skip
        return model.eval()

    rows.add(after, lambda: rows.bench.row(after, make, TEXT))


def best(rows: list[QualityRow]) -> QualityRow:
    """By STS-B dev."""
    return max(rows, key=lambda row: row.sts.spearman if row.sts else 0.0)


def claims(rows: Any, minutes: float | None) -> list[dict[str, Any]]:
    """What was asked, of the rows that are there."""
    checks, there = [], {row.name: row for row in rows.bench.rows}
    strict_rows = [
        there[name]
        for blocks in (3, 1) for init in INITS for words in ALIGN if (name := name_of(blocks, init, words)) in there
    ]  # fmt: skip
    for blocks in (3, 1):
        ours, group = name_of(blocks, INIT, OURS), [r for r in strict_rows if r.name.startswith(str(blocks))]
        if ours in there and len(group) == len(INITS) * len(ALIGN):
            gap = best(group).sts.spearman - rows.sts(ours)  # type: ignore[union-attr]
            what = f"{blocks} blocks: STS-B dev of the best strict row ({best(group).name}) less that of our default"
            checks.append(check(what, gap, 0.0, at_least=False))
    if minutes:
        checks += after_training(rows, f", {minutes:g} minutes")
    for after in ("", *((f", {minutes:g} minutes",) if minutes else ())):
        for blocks, relaxed in RELAXED.items():
            ours, rival = relaxed + after, name_of(blocks, INIT, OURS) + after
            if ours in there and rival in there:
                apart = {
                    "STS-B dev": rows.sts(ours) - rows.sts(rival), "nn10": _nn10(there, ours) - _nn10(there, rival)
                }  # fmt: skip
                checks += [check(f"{what} of {ours} less that of {rival}", gap, 0.0) for what, gap in apart.items()]
    name = f"{MAIN}, {minutes:g} minutes" if minutes else ""
    if name in there:
        checks.append(check(f"{name}: STS-B dev", rows.sts(name), ASKED["STS-B dev"]))
        checks.append(check(f"{name}: nn10", _nn10(there, name), ASKED["nn10"]))
    return checks


def after_training(rows: Any, after: str) -> list[dict[str, Any]]:
    """Whether our default conversion is still the best strict one when all have learned for as long."""
    checks = []
    for blocks in (3, 1):
        names = [name_of(blocks, init, words) for init in INITS for words in ALIGN]
        group = [row for row in rows.bench.rows if row.name in {name + after for name in names}]
        ours = name_of(blocks, INIT, OURS) + after
        if len(group) > 1 and ours in {row.name for row in group}:
            gap = best(group).sts.spearman - rows.sts(ours)  # type: ignore[union-attr]
            what = f"{ours}: STS-B dev of the best of {len(group)} strict rows ({best(group).name}) less its own"
            checks.append(check(what, gap, 0.0, at_least=False))
    return checks


def _nn10(there: dict[str, QualityRow], name: str) -> float:
    return there[name].neighbour_overlap


def trained(rows: Any) -> list[str]:
    """How much each row learned."""
    if not rows.facts:
        return []
    lines = ["| trained | steps | tokens (M) | minutes |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {fact['steps']:,} | {fact['tokens'] / 1e6:.2f} | {fact['minutes']:.1f} |"
        for name, fact in sorted(rows.facts.items(), key=lambda item: place_of(item[0]))
    ]
    return [*lines, ""]


def place_of(name: str) -> tuple[bool, int]:
    """Where a row stands: references, then as they were named above, the trained ones last."""
    trained = name.endswith((" minutes", " steps"))
    known = name.rsplit(", ", 1)[0] if trained else name
    return trained, [*contenders()].index(known) if known in contenders() else -1


def main() -> None:
    """Measure what is missing, then draw the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, help="distil the main rows as well, so long each")
    parser.add_argument("--all", action="store_true", help="distil not only the main rows")
    parser.add_argument("--steps", type=int, help="instead of minutes, to try the program")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    wanted = parser.parse_args()
    rows = begin("shared_layers_quality", wanted.fresh)
    for name, (config, budget) in contenders().items():
        if wanted.only in name:
            rows.run(name, config, budget)
    if wanted.minutes or wanted.steps:
        for name in (name for name in (contenders() if wanted.all else TRAINED) if wanted.only in name):
            distilled(rows, name, wanted.minutes or 0.0, wanted.steps)
    extra = {
        "checks": claims(rows, wanted.minutes),
        "facts": rows.facts,
        "minutes": wanted.minutes,
        "threads": torch.get_num_threads(),
        "bf16": BF16,
    }
    ordered = sorted(rows.bench.rows, key=lambda row: place_of(row.name))
    publish("shared_layers_quality", "Six layers in three blocks and in one", ordered, extra, lines=trained(rows))


if __name__ == "__main__":
    main()
