"""Tokens a second of distillation, against a bare loop of the same forward and backward passes.

Both train the same low-rank student of all-MiniLM-L6-v2 on the same batches with AdamW: the bare loop runs teacher,
student, loss, backward and step on batches that are ready, and does nothing else. fp32 and bf16 autocast of the
distillation stand beside each other. All contenders run in turns.

    python benchmarks/distill_throughput.py
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from common import Bench, check, publish_checks

import fewfold
from fewfold import DistillConfig, LowRank
from fewfold.calibration.inputs import cut_to_pieces
from fewfold.distill.batches import GroupedBatches
from fewfold.distill.examples import Examples
from fewfold.distill.losses import hidden_relative
from fewfold.distill.pupil import dense_tables
from fewfold.distill.run import distil
from fewfold.distill.tokens import tokenise
from fewfold.tasks.data import calibration_texts

TEXT, STEPS, ROUNDS, BATCH = "mixed-512", 12, 5, 32
CONFIG = DistillConfig(
    hidden=[{"kind": "relative"}], batch_size=BATCH, steps=STEPS, validation=0, freeze_tables=True, name="throughput"
)


def bare(bench: Bench, student: torch.nn.Module, texts: list[str]) -> float:
    """Tokens a second of the passes alone."""
    tokens = tokenise(Examples(texts), bench.tokenizer, CONFIG.max_length)
    batches = [tokens.batch(places) for places in GroupedBatches(tokens.lengths, BATCH, STEPS)]
    for table in dense_tables(student):
        table.requires_grad_(False)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer, seen = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.0, fused=True), 0
    names = ("input_ids", "attention_mask")
    start = time.perf_counter()
    for batch in batches:
        inputs = {name: batch[name] for name in names}
        with torch.no_grad():
            wanted = bench.model(**inputs).last_hidden_state
        mask = batch["attention_mask"].bool()
        hidden_relative(student(**inputs).last_hidden_state, wanted, mask).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += int(mask.sum())
    return seen / (time.perf_counter() - start)


def distilled(bench: Bench, student: torch.nn.Module, texts: list[str], bf16: bool) -> float:
    """Tokens a second that a run reports of its training steps."""
    config = CONFIG.changed(bf16=bf16)
    return distil(bench.model, student, texts, config=config, tokenizer=bench.tokenizer).histories[0].tokens_a_second


def main() -> None:
    """Measure in turns, then write results and table."""
    bench = Bench()
    small = fewfold.compress(bench.fresh(), LowRank(weighting="none"), budget="parameters=1/4 of linears").eval()
    texts = cut_to_pieces(calibration_texts(TEXT))
    contenders: dict[str, Callable[[torch.nn.Module], float]] = {
        "bare loop": lambda student: bare(bench, student, texts),
        "fewfold.distill, fp32": lambda student: distilled(bench, student, texts, False),
        "fewfold.distill, bf16 autocast": lambda student: distilled(bench, student, texts, True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, contender in contenders.items():
            speed = contender(copy.deepcopy(small))
            if turn:  # the first turn warms up
                speeds[name].append(speed)
                print(f"{name}: {speed:,.0f} tokens/s", flush=True)
    ratios = [own / loop for own, loop in zip(speeds["fewfold.distill, fp32"], speeds["bare loop"], strict=True)]
    lines = ["| contender | tokens a second, median | lowest | highest |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {statistics.median(values):,.0f} | {min(values):,.0f} | {max(values):,.0f} |"
        for name, values in speeds.items()
    ]
    claim = check("tokens a second of distillation over those of the bare loop", statistics.median(ratios), 0.8)
    publish_checks(
        "distill_throughput", "Throughput of distillation", [claim],
        {"text": TEXT, "steps": STEPS, "batch": BATCH, "tokens_a_second": speeds, "ratios": ratios}, [*lines, ""],
    )  # fmt: skip


if __name__ == "__main__":
    main()
