"""all-MiniLM-L6-v2 in 5 MB against its dense ONNX graphs, fp32 and int8: size, memory, load time, latency, quality.

The 5 MB stand there as graphs for speed, for memory, in between, and with products of int8.

    python benchmarks/minilm_5mb.py [--fresh]

Every graph is written once into ``benchmarks/.minilm_5mb`` and measured once: a run that was stopped goes on. Quality
is that of the ONNX graphs themselves, run by ONNX Runtime. Latency is measured in one process with the graphs in turns,
on one thread; memory and load time each in processes of their own.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import RESULTS, TABLES, Bench, check, claims, head, row_of
from processes import in_a_process

import fewfold
from fewfold.export.onnx import export_onnx, session_of
from fewfold.measure.environment import environment
from fewfold.measure.macs import macs_per_token
from fewfold.measure.parameters import unique_parameters
from fewfold.measure.quality import QualityRow, floor_rows, rows_to_markdown
from fewfold.tasks.data import calibration_texts, distinct_sentences
from fewfold.tasks.sts import score_embeddings

NAME, TEXT = "minilm_5mb", "mixed-512"
FOLDER, KEPT = Path(__file__).parent / f".{NAME}", RESULTS / f"{NAME}.json"
GRID = ((1, 16), (8, 128))
PROCESSES = 5  # a graph's memory and load time: the median of so many processes
ROUNDS = {(1, 16): 200, (8, 128): 15}
BUDGET = "bytes=4.97MB"

_LOAD = """
import json, sys, time
import numpy as np
import onnxruntime
from fewfold.measure.memory import peak_resident_bytes, resident_bytes
options = onnxruntime.SessionOptions()
options.log_severity_level, options.intra_op_num_threads = 3, 1
before, start = resident_bytes(), time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds, found = time.perf_counter() - start, {"loaded": resident_bytes() - before}
for batch, length in json.loads(sys.argv[2]):
    for _ in range(3):  # its plan for memory is made at the second run of a size
        session.run(None, {entry.name: np.ones((batch, length), np.int64) for entry in session.get_inputs()})
    found[f"resident {batch}×{length}"] = resident_bytes() - before
    found[f"peak {batch}×{length}"] = peak_resident_bytes() - before
sys.stdout.write(json.dumps(dict(load_seconds=seconds, **found)))
"""


class OnnxEncoder(torch.nn.Module):
    """A graph that answers like a transformers encoder."""

    def __init__(self, file: Path, config: Any) -> None:
        super().__init__()
        self.session, self.config = session_of(file), config

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        values = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": types}
        feed = {entry.name: values[entry.name].numpy() for entry in self.session.get_inputs()}
        return SimpleNamespace(last_hidden_state=torch.from_numpy(self.session.run(None, feed)[0]))


def compressed(bench: Bench) -> tuple[Any, float]:
    """The model in 5 MB, and the seconds that it took; kept in a folder of its own."""
    folder, seconds = FOLDER / "checkpoint", 0.0
    if not folder.exists():
        start = time.perf_counter()
        model = fewfold.compress(
            bench.fresh(), "codes-default", budget=BUDGET, calibration=calibration_texts(TEXT),
            tokenizer=bench.tokenizer, calibration_name=TEXT,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        fewfold.save(model, folder)
        (folder / "seconds.txt").write_text(str(seconds))
    return fewfold.load(folder).eval(), float((folder / "seconds.txt").read_text())


def graphs(bench: Bench) -> dict[str, tuple[Path, Any, str, float | None]]:
    """File, torch model, calibration and seconds of every contender, written where they are missing."""
    small, seconds = compressed(bench)
    wanted = {
        "dense fp32 ONNX": ("dense", bench.model, {}, "-", None),
        "dense int8 ONNX": ("dense-int8", bench.model, {"int8": True}, "-", None),
        "5 MB ONNX, speed": ("small-speed", small, {"optimize_for": "speed"}, TEXT, seconds),
        "5 MB ONNX, balance": ("small-balance", small, {"optimize_for": "balance"}, TEXT, seconds),
        "5 MB ONNX, memory": ("small-memory", small, {"optimize_for": "memory"}, TEXT, seconds),
        "5 MB ONNX, int8": ("small-int8", small, {"int8": True}, TEXT, seconds),
    }
    found = {}
    for name, (stem, model, options, calibration, took) in wanted.items():
        file = FOLDER / f"{stem}.onnx"
        if not file.exists():
            report = export_onnx(model, FOLDER / f"{stem}.new.onnx", **options)
            report.file.rename(file)
            print(f"{name}: {report.bytes:,} bytes, differs by {report.difference:.2e}", flush=True)
        found[name] = (file, model, calibration, took)
    return found


def quality(bench: Bench, name: str, file: Path, model: Any, calibration: str, seconds: float | None) -> QualityRow:
    """The common columns of a graph."""
    embeddings, hidden = bench.reference.encode(OnnxEncoder(file, bench.model.config))
    near = bench.reference.compare_encoded(embeddings, hidden)
    texts = distinct_sentences(bench.pairs)
    assert texts == bench.reference.texts
    return QualityRow(
        name, calibration, score_embeddings(embeddings, texts, bench.pairs), near.neighbour_overlap, near.cosine,
        near.hidden_error, file.stat().st_size, unique_parameters(model), macs_per_token(model).total, seconds,
    )  # fmt: skip


def load(file: Path) -> dict[str, float]:
    """Load time and resident memory: medians over fresh processes."""
    runs = [in_a_process("-c", _LOAD, str(file), json.dumps(GRID)) for _ in range(PROCESSES)]
    found = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    times = [run["load_seconds"] for run in runs]
    return {**found, "load_seconds_low": min(times), "load_seconds_high": max(times)}


def latencies(files: dict[str, Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of a forward, the graphs in turns: median, 10th and 90th percentile."""
    sessions = {name: session_of(file) for name, file in files.items()}
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in files}
    for batch, length in GRID:
        ids = np.random.default_rng(0).integers(1000, 29000, (batch, length))
        values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        times: dict[str, list[float]] = {name: [] for name in files}
        for turn in range(ROUNDS[batch, length] + 3):
            for name, session in sessions.items():
                feed = {entry.name: values[entry.name] for entry in session.get_inputs()}
                start = time.perf_counter()
                session.run(None, feed)
                if turn >= 3:
                    times[name].append(1e3 * (time.perf_counter() - start))
        for name, own in times.items():
            low, median, high = np.percentile(own, [10, 50, 90])
            found[name][f"{batch}×{length}"] = {"median": float(median), "low": float(low), "high": float(high)}
    return found


def kept(state: dict[str, Any], key: str, measure: Callable[[], Any]) -> Any:
    """A figure that is there already, or measured and written down now."""
    if key not in state:
        state[key] = measure()
        RESULTS.mkdir(exist_ok=True)
        state["environment"] = environment()
        KEPT.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return state[key]


def cost_table(state: dict[str, Any], names: list[str]) -> list[str]:
    """Bytes, memory and time."""
    points = [f"{batch}×{length}" for batch, length in GRID]
    titles = ["graph", "MB", "load, s", "memory loaded, MB", *(f"after {point}, MB" for point in points), "peak, MB"]
    titles += [f"{point}, ms" for point in points]
    lines = [f"| {' | '.join(titles)} |"]
    lines.append("|---|" + "---:|" * (len(titles) - 1))
    for name in names:
        cost, times = state[f"load {name}"], state["latency"][name]
        cells = [f"{times[p]['median']:.2f} ({times[p]['low']:.2f} … {times[p]['high']:.2f})" for p in points]
        seconds = f"{cost['load_seconds']:.2f} ({cost['load_seconds_low']:.2f} … {cost['load_seconds_high']:.2f})"
        held = [cost["loaded"], *(cost[f"resident {p}"] for p in points), cost[f"peak {points[-1]}"]]
        sizes = [f"{value / 1e6:.1f}" for value in held]
        lines.append(f"| {' | '.join([name, format(state[f'bytes {name}'] / 1e6, '.2f'), seconds, *sizes, *cells])} |")
    return lines


def main() -> None:
    """Measure what is missing and draw."""
    if "--fresh" in sys.argv:
        shutil.rmtree(FOLDER, ignore_errors=True)
        KEPT.unlink(missing_ok=True)
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    state: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    bench = Bench()
    found = graphs(bench)
    rows = [row_of(one) for one in kept(state, "floor", lambda: [
        asdict(row) for row in floor_rows(bench.model, bench.tokenizer, bench.reference, bench.pairs)
    ])]  # fmt: skip
    for name, (file, model, calibration, seconds) in found.items():
        kept(state, f"bytes {name}", lambda f=file: f.stat().st_size)
        kept(state, f"load {name}", lambda f=file: load(f))
        fields = kept(
            state, f"quality {name}",
            lambda a=(name, file, model, calibration, seconds): asdict(quality(bench, *a)),
        )  # fmt: skip
        rows.append(row_of(fields))
        print(name, state[f"bytes {name}"], state[f"load {name}"], rows[-1].sts, rows[-1].neighbour_overlap, flush=True)
    kept(state, "latency", lambda: latencies({name: entry[0] for name, entry in found.items()}))
    dense = state["load dense fp32 ONNX"]["loaded"] / 1e6
    checks = [
        one
        for name in list(found)[2:]
        for one in (
            check(f"{name}: megabytes", state[f"bytes {name}"] / 1e6, 5.0, at_least=False),
            check(
                f"{name}: resident megabytes", state[f"load {name}"]["loaded"] / 1e6, dense, at_least=False, digits=1
            ),
        )
    ]
    state["checks"] = checks
    KEPT.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    TABLES.mkdir(parents=True, exist_ok=True)
    lines = [*cost_table(state, list(found)), "", rows_to_markdown(rows), *claims(checks)]
    text = "\n".join([*head(NAME, "all-MiniLM-L6-v2 in 5 MB, as ONNX", state["environment"]), *lines]) + "\n"
    (TABLES / f"{NAME}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
