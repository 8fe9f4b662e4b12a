"""Tokens a second of distilling compressed models on a processor, without and with what this library does for them.

Two of its trainings differ from PyTorch's own. Codes of sub-vectors are trained with gradients that are summed where
they go, by kept lists of who uses which row, instead of PyTorch's gradient of look-ups. Models whose matrices have many
shapes, as low rank with a rank of its own for every layer, are fed lengths of multiples of 8 in bfloat16, so that
generated code is found again. Every figure is the median of processes of their own, which run in turns.

    python benchmarks/distill_speed.py [--rounds 3] [--steps 120]
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from common import BF16, Bench, publish_checks
from processes import in_a_process
from recover_texts import recovery_phases
from torch import Tensor
from torch.nn import functional as F

import fewfold
from fewfold import LowRank, SubvectorCodes
from fewfold.calibration.inputs import cut_to_pieces
from fewfold.distill.run import distil
from fewfold.linalg.chosen_rows import ChosenRows
from fewfold.tasks.data import calibration_texts
from fewfold.training import lengths

TEXT = "mixed-512"
PLAIN = "plain"
WORKS: dict[str, tuple[str, Any, str]] = {  # what is trained: our way, the recipe, its budget
    "codes, 1/7": ("sums by kept users", SubvectorCodes(weighting="none"), "bytes=1/7 of linears"),
    "low rank, 1/7": ("lengths of multiples of 8", LowRank(weighting="none"), "parameters=1/7 of linears"),
}


def as_pytorch_does() -> None:
    """Take both ways of ours out of this process."""

    def choose(chosen: ChosenRows, table: Tensor) -> Tensor:
        return F.embedding(chosen.numbers, table)

    ChosenRows.__call__ = choose  # type: ignore[method-assign]
    lengths.STRIDE = 1


def timed(work: str, way: str, steps: int) -> float:
    """Tokens a second after the first half of the steps, in which code is generated."""
    if way == PLAIN:
        as_pytorch_does()
    bench = Bench()
    _, recipe, budget = WORKS[work]
    student = fewfold.compress(bench.fresh(), recipe, budget=budget)
    config = [phase.changed(log_steps=1, validation=0) for phase in recovery_phases()]
    texts = cut_to_pieces(calibration_texts(TEXT))
    done = distil(bench.model, student, texts, tokenizer=bench.tokenizer, config=config, steps=steps)
    first, last = (done.histories[0].curve[place] for place in (steps // 2, -1))
    return float((last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"]))


def main() -> None:
    """Start one process a figure, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "WAY"), help="be a process that times one")
    wanted = parser.parse_args()
    if wanted.one:
        print(json.dumps(timed(*wanted.one, wanted.steps)))
        return
    found: dict[str, dict[str, list[float]]] = {work: {PLAIN: [], ours: []} for work, (ours, *_) in WORKS.items()}
    for number in range(wanted.rounds):
        for work, ways in found.items():
            for way, taken in ways.items():
                taken.append(in_a_process(__file__, "--steps", str(wanted.steps), "--one", work, way))
                print(f"round {number + 1}, {work}, {way}: {taken[-1]:,.0f} tokens/s", flush=True)
    draw(found, wanted)


def draw(found: dict[str, dict[str, list[float]]], wanted: argparse.Namespace) -> None:
    """Write results and table."""
    lines = [
        "| student | way | tokens a second, median | lowest | highest | times plain's speed |",
        "|---|---|---:|---:|---:|---:|",
    ]
    rows: list[dict[str, Any]] = []
    for work, ways in found.items():
        plain = statistics.median(ways[PLAIN])
        for way, taken in ways.items():
            faster = statistics.median(taken) / plain
            rows.append({"student": work, "way": way, "tokens a second": taken, "faster": faster})
            lines.append(
                f"| {work} | {way} | {statistics.median(taken):,.0f} | {min(taken):,.0f} | {max(taken):,.0f} | "
                f"{faster:.2f} |"
            )
    numbers = "bfloat16 (autocast)" if BF16 else "fp32"
    lines += [
        "",
        f"{wanted.rounds} processes each, in turns, {wanted.steps} steps, of which the second half counts, "
        f"{torch.get_num_threads()} threads, {numbers}.",
        "",
    ]
    extra = {"rows": rows, "bf16": BF16, "steps": wanted.steps}
    publish_checks("distill_speed", "Distilling compressed models on a processor", [], extra, lines)


if __name__ == "__main__":
    main()
