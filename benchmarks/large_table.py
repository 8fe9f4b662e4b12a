"""Compressing a table of 250,000 × 1,024 numbers: memory at the peak, time, and going on after a stop.

A multilingual encoder's table of random numbers of falling energy (what they are does not matter here) with one small
layer behind it, compressed in a process of its own by ``embedding-default`` to a tenth and by the auto-encoder. Memory
is the most resident above what the process held before the table was there. The codes are made a second time, killed
halfway, and started once more.

    python benchmarks/large_table.py [--rows 250000] [--columns 1024]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
from typing import Any

from common import check, publish_checks
from processes import in_a_process

RATIO = 10
CONFIGS = ("codes", "auto-encoder")
STARTING = 15.0  # seconds that a process takes before it compresses


def one(kind: str, rows: int, columns: int) -> dict[str, float]:
    """Compress the table here and say what that took."""
    import torch
    from transformers import BertConfig, BertModel

    import fewfold
    from fewfold import Budget, EmbeddingAutoencoder, SubvectorCodes
    from fewfold.measure.memory import peak_resident_bytes, resident_bytes

    torch.set_num_threads(1)
    before = resident_bytes()
    with torch.device("meta"):
        model = BertModel(
            BertConfig(
                vocab_size=rows, hidden_size=columns, num_hidden_layers=1, intermediate_size=columns,
                num_attention_heads=16, max_position_embeddings=64,
            ),
            add_pooling_layer=False,
        )  # fmt: skip
    model = model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator)
        falling = torch.linspace(0, -2, columns).exp()
        model.embeddings.word_embeddings.weight.mul_(falling)
        model.embeddings.position_ids.copy_(torch.arange(64)[None])
        model.embeddings.token_type_ids.zero_()
    held = resident_bytes()
    config: Any = SubvectorCodes(targets="embeddings", weighting="none")
    if kind == "auto-encoder":
        config = EmbeddingAutoencoder(targets="embeddings", weighting="none")
    start = time.perf_counter()
    fewfold.compress(model, config, budget=Budget(bytes=f"1/{RATIO} of embeddings"))
    return {
        "seconds": time.perf_counter() - start,
        "before": before,
        "held": held,
        "peak": peak_resident_bytes(),
        "table": rows * columns * 4,
    }


def measured(kind: str, rows: int, columns: int, folder: str, limit: float | None = None) -> dict[str, float]:
    """The same in a process of its own, whose cache is ``folder``; killed after ``limit`` seconds."""
    found: dict[str, float] = in_a_process(
        __file__, "--kind", kind, "--rows", str(rows), "--columns", str(columns),
        environment={"FEWFOLD_CACHE": folder}, limit=limit,
    )  # fmt: skip
    return found


def main(rows: int, columns: int) -> None:
    """Both ways, and the codes once more after they were stopped."""
    found = {}
    for kind in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = measured(kind, rows, columns, folder)
            print(kind, found[kind], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        half = STARTING + found["codes"]["seconds"] / 2
        with contextlib.suppress(subprocess.TimeoutExpired):
            measured("codes", rows, columns, folder, limit=half)
        found["codes, after a kill halfway"] = measured("codes", rows, columns, folder)
    lines = ["| fit | seconds | peak above the start | of the table's bytes |", "|---|---|---|---|"]
    for kind, row in found.items():
        peak = row["peak"] - row["before"]
        lines.append(f"| {kind} | {row['seconds']:.0f} | {peak / 1e9:.2f} GB | {peak / row['table']:.2f}× |")
    lines += [
        "", f"Table: {rows:,} × {columns:,} fp32, {rows * columns * 4 / 1e9:.2f} GB, to 1/{RATIO}, on one thread. The "
        "peak holds the table itself.", "",
    ]  # fmt: skip
    checks = [
        check(f"{kind}: peak over the table's bytes", (row["peak"] - row["before"]) / row["table"], 2.0, False, 2)
        for kind, row in found.items()
    ]
    stopped, whole = found["codes, after a kill halfway"]["seconds"], found["codes"]["seconds"]
    checks.append(check("after a kill halfway: share of the whole time", stopped / whole, 0.75, False, 2))
    publish_checks("large_table", "A table of a multilingual model", checks, {"rows": found}, lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--kind", choices=CONFIGS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(one(options.kind, options.rows, options.columns)))
    else:
        main(options.rows, options.columns)
