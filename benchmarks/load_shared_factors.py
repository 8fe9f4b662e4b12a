"""Loading and resident memory of a Tucker checkpoint of BERT-base's shape, chained and rebuilt, against dense.

Each model is loaded in a process of its own and runs once on 8 × 128 tokens, so that every page is touched and whatever
a form keeps is there.

    python benchmarks/load_shared_factors.py
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import publish_checks
from processes import in_a_process
from transformers import BertConfig, BertModel

import fewfold

FORMS = {"dense": "auto", "IV-72-384, chained": "chained", "IV-72-384, rebuilt": "rebuilt", "III-64, auto": "auto",
         "III-64, chained": "chained"}  # fmt: skip
ROUNDS = 3


def measure(folder: str, form: str) -> dict[str, float]:
    """Load, run once, and say what that took."""
    from fewfold.measure.memory import peak_resident_bytes, resident_bytes

    before = resident_bytes()
    start = time.perf_counter()
    model = fewfold.load(folder).eval()
    fewfold.set_form(model, form)  # type: ignore[arg-type]
    loaded = time.perf_counter() - start
    ids = torch.ones(8, 128, dtype=torch.long)
    with torch.inference_mode():
        model(input_ids=ids)
        first = time.perf_counter() - start - loaded
        start = time.perf_counter()
        model(input_ids=ids)
        second = time.perf_counter() - start
    after = resident_bytes()
    return {
        "load_s": loaded, "first_s": first, "second_s": second, "resident_mb": (after - before) / 1e6,
        "peak_mb": (peak_resident_bytes() - before) / 1e6,
    }  # fmt: skip


def main() -> None:
    """Write one checkpoint a model, then load them in turns."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in FORMS}
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root:
        torch.manual_seed(0)
        for name in {name.split(",")[0] for name in FORMS}:
            model = BertModel(BertConfig()).eval()
            fewfold.save(model if name == "dense" else fewfold.compress(model, name, fit=False), Path(root) / name)
            sizes[name] = (Path(root) / name / "model.safetensors").stat().st_size / 1e6
        for _ in range(ROUNDS):
            for name, form in FORMS.items():
                runs[name].append(in_a_process(__file__, str(Path(root) / name.split(",")[0]), form))
                print(name, runs[name][-1], flush=True)
    lines = ["| model | file MB | load s | first pass s | second pass s | resident MB | peak MB |", "|---" * 7 + "|"]
    for name, found in runs.items():
        cells = {key: statistics.median(run[key] for run in found) for key in found[0]}
        lines.append(
            f"| {name} | {sizes[name.split(',')[0]]:.1f} | {cells['load_s']:.2f} | {cells['first_s']:.2f} | "
            f"{cells['second_s']:.2f} | {cells['resident_mb']:.0f} | {cells['peak_mb']:.0f} |"
        )
    lines += ["", "Median of three loads in turns; memory is counted from after the imports."]
    publish_checks("load_shared_factors", "Loading shared factors", [], {"runs": runs, "file_mb": sizes}, lines)


if __name__ == "__main__":
    main()
