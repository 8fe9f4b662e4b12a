"""What sharing layers does to time and memory: a block twice in a row against a cycle, and ONNX files.

Six layers of MiniLM's and of BERT-base's width run from three blocks, ``pairs`` (AABBCC) and ``cycle`` (ABCABC), next
to the unshared model, at batch 1, in turns. A block that runs twice in a row may still be in the cache.

    python benchmarks/shared_layers_latency.py [--rounds 60] [--threads 1]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import check, publish_checks
from processes import in_a_process
from transformers import BertConfig, BertModel

import fewfold
from fewfold import SharedLayers
from fewfold.export.onnx import export_onnx
from fewfold.measure.latency import latency
from fewfold.measure.parameters import unique_parameters

WIDTHS = {"MiniLM's width": (384, 12, 1536), "BERT-base's width": (768, 12, 3072)}
LENGTHS = (16, 128)
LOADED = """
import json, sys
import torch
import fewfold
from transformers import AutoModel, BertModel
from fewfold.measure.memory import resident_bytes
before = resident_bytes()
model = AutoModel.from_pretrained(sys.argv[1]).eval()
with torch.inference_mode():
    model(torch.ones(1, 16, dtype=torch.long))
sys.stdout.write(json.dumps(resident_bytes() - before))
"""
MEASURED = """
import json, sys
import numpy, onnxruntime
from fewfold.measure.memory import resident_bytes
before = resident_bytes()
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
ids = numpy.ones((1, 16), dtype=numpy.int64)
session.run(None, {entry.name: ids for entry in session.get_inputs()})
sys.stdout.write(json.dumps(resident_bytes() - before))
"""


def models(width: int, heads: int, inner: int) -> dict[str, Any]:
    """The unshared model, and both maps, strict."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000, hidden_size=width, num_hidden_layers=6, num_attention_heads=heads, intermediate_size=inner
    )
    dense = BertModel(config, add_pooling_layer=False).eval()
    found: dict[str, Any] = {"unshared": dense}
    for name, blocks in (("pairs", None), ("cycle", 3), ("all", None)):
        plain = SharedLayers(
            map=name, blocks=blocks, norms_and_biases="shared", weighting="none", align=False, delta_rank=0
        )
        found[name] = fewfold.compress(copy.deepcopy(dense), plain)
    return found


def exported(model: Any, folder: Path) -> dict[str, int]:
    """Bytes of a model's ONNX file, and what ONNX Runtime keeps resident in a process of its own."""
    report = export_onnx(model, folder / "model.onnx")
    return {"onnx_bytes": report.bytes, "runtime_bytes": in_a_process("-c", MEASURED, str(report.file))}


def main() -> None:
    """Measure in turns, then write results and table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="MiniLM's width alone")
    wanted = parser.parse_args()
    lines = ["| model | map | parameters | resident after a pass | ONNX file | ONNX Runtime, resident | "
             + " | ".join(f"1 × {length}, ms" for length in LENGTHS) + " | faster than cycle |",
             "|---|---|---|---|---|---|" + "---|" * (len(LENGTHS) + 1)]  # fmt: skip
    checks, figures = [], {}
    for size, shape in list(WIDTHS.items())[: 1 if wanted.small else None]:
        contenders = models(*shape)
        timings = {
            length: latency(contenders, length=length, repeats=wanted.rounds, threads=wanted.threads)
            for length in LENGTHS
        }
        for name, model in contenders.items():
            with tempfile.TemporaryDirectory() as saved, tempfile.TemporaryDirectory() as onnx:
                model.save_pretrained(saved)
                loaded = in_a_process("-c", LOADED, saved)
                row: dict[str, Any] = {"parameters": unique_parameters(model), "loaded_bytes": loaded,
                                       **exported(model, Path(onnx))}  # fmt: skip
            row["milliseconds"] = {length: vars(timings[length][name]) for length in LENGTHS}
            figures[f"{size}, {name}"] = row
            times = " | ".join(
                f"{timing[name].median:.2f} ({timing[name].low:.2f}…{timing[name].high:.2f})"
                for timing in timings.values()
            )
            gains = ", ".join(f"{timing[name].speedup['cycle']:.3f}×" for timing in timings.values())
            megabytes = " | ".join(f"{row[k] / 1e6:.1f} MB" for k in ("loaded_bytes", "onnx_bytes", "runtime_bytes"))
            lines.append(f"| {size} | {name} | {row['parameters']:,} | {megabytes} | {times} | {gains} |")
            print(lines[-1], flush=True)
            excess = row["onnx_bytes"] / (4 * row["parameters"]) - 1
            what = f"{size}, {name}: ONNX bytes above those of the unique parameters"
            checks.append(check(what, excess, 0.05, at_least=False))
        less = [figures[f"{size}, {name}"]["runtime_bytes"] for name in ("pairs", "unshared")]
        checks.append(check(f"{size}: ONNX Runtime's memory, pairs over unshared", less[0] / less[1], 0.8, False))
    where = f"Batch 1, {wanted.threads} threads, {wanted.rounds} rounds in turns"
    lines += [
        "", f"{where}; medians, 10th to 90th percentile. 'Faster than cycle': median over the rounds, one a length.",
        "",
    ]  # fmt: skip
    extra = {"rounds": wanted.rounds, "threads": wanted.threads, "figures": figures}
    publish_checks("shared_layers_latency", "Time and memory of shared layers", checks, extra, lines)


if __name__ == "__main__":
    main()
