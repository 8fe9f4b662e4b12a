"""The table at the head of README.md, drawn from the results of ``minilm_5mb.py``.

python benchmarks/headline.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
RESULT = Path(__file__).parent / "results" / "minilm_5mb.json"
START, END = "<!-- headline -->", "<!-- /headline -->"
ROWS = {
    "dense fp32 ONNX": "dense, fp32",
    "dense int8 ONNX": "dense, int8",
    "5 MB ONNX, int8": "fewfold, int8",
    "5 MB ONNX, balance": "fewfold",
    "5 MB ONNX, memory": "fewfold, made for memory",
}


def table(result: dict[str, Any]) -> str:
    """The lines between the markers."""
    lines = [
        "| all-MiniLM-L6-v2 as ONNX | file, MB | resident, MB | STS-B dev | nn10 | 1×16, ms | 8×128, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, title in ROWS.items():
        quality, times = result[f"quality {name}"], result["latency"][name]
        lines.append(
            f"| {title} | {result[f'bytes {name}'] / 1e6:.1f} | {result[f'load {name}']['loaded'] / 1e6:.0f} | "
            f"{quality['sts']['spearman']:.3f} | {quality['neighbour_overlap']:.3f} | "
            f"{times['1×16']['median']:.1f} | {times['8×128']['median']:.0f} |"
        )
    (floor,) = result["floor"]
    lines.append(
        f"| floor: its word table, averaged | – | – | {floor['sts']['spearman']:.3f} | "
        f"{floor['neighbour_overlap']:.3f} | – | – |"
    )
    return "\n".join(lines)


def filled(readme: str, result: dict[str, Any]) -> str:
    """The README with the table in its place."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise SystemExit(f"README.md has no place for the table: write {START} and {END} into it")
    return f"{before}{START}\n{table(result)}\n{END}{after}"


if __name__ == "__main__":
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    README.write_text(filled(README.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(table(found))
