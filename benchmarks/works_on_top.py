"""What works on top of every method: runs the checks of the tests' matrix and draws their table.

    python benchmarks/works_on_top.py [METHOD …]

Every cell goes into the results as soon as it is known, and one that is there is not run again: a run that was stopped
goes on. ``--fresh`` starts anew.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
_MODULES = tempfile.TemporaryDirectory(prefix="fewfold-modules-")
os.environ["HF_MODULES_CACHE"] = _MODULES.name

import torch  # noqa: E402
from cases import METHODS  # noqa: E402
from common import RESULTS, TABLES, head  # noqa: E402
from on_top import CHECKS, FAMILIES, ONE_FAMILY  # noqa: E402

from fewfold import FewfoldError  # noqa: E402
from fewfold.measure.environment import environment  # noqa: E402

NAME = "works_on_top"
FILE = RESULTS / f"{NAME}.json"


def cell(check: str, method: str, family: str) -> dict[str, Any]:
    """One check's outcome."""
    start, outcome, note = time.perf_counter(), "works", None
    try:
        note = CHECKS[check](family, method)
    except FewfoldError as error:
        outcome, note = "refused", " ".join(str(error).split())
    except Exception as error:
        outcome, note = "fails", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    seconds = round(time.perf_counter() - start, 1)
    return {"check": check, "method": method, "family": family, "outcome": outcome, "note": note, "seconds": seconds}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The Markdown table, and the reasons of what does not work."""
    found = {(row["method"], row["check"], row["family"]): row for row in rows}
    lines = ["| method | " + " | ".join(CHECKS) + " |", "|" + "---|" * (len(CHECKS) + 1)]
    reasons = []
    for method in METHODS:
        cells = []
        for check in CHECKS:
            own = [found[method, check, family] for family in FAMILIES if (method, check, family) in found]
            bad = [row for row in own if row["outcome"] != "works"]
            reasons += [f"- {method}, {check}, {row['family']}: {row['outcome']}. {row['note']}" for row in bad]
            notes = [row["note"] for row in own if row["note"] and row["outcome"] == "works"]
            word = (
                "–"
                if not own
                else ", ".join(sorted({row["outcome"] for row in bad})) or notes[0]
                if notes or bad
                else "yes"
            )
            cells.append(word)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    explained = [f"- {check}: {' '.join((function.__doc__ or '').split())}" for check, function in CHECKS.items()]
    models = f"Tiny models with random weights: {', '.join(FAMILIES)}; a cell says yes where it works on all of them."
    return [*lines, "", models, "", *explained, *(["", "What does not work:", "", *reasons] if reasons else [])]


def main() -> None:
    """Run what is missing, then draw."""
    torch.set_num_threads(1)
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() and "--fresh" not in sys.argv else {}
    rows: list[dict[str, Any]] = kept.get("rows", [])
    known = {(row["check"], row["method"], row["family"]) for row in rows}
    wanted = [name for name in sys.argv[1:] if name in METHODS] or list(METHODS)
    RESULTS.mkdir(exist_ok=True)
    TABLES.mkdir(parents=True, exist_ok=True)
    for method in wanted:
        for check in CHECKS:
            for family in FAMILIES[:1] if check in ONE_FAMILY else FAMILIES:
                if (check, method, family) in known:
                    continue
                rows.append(cell(check, method, family))
                print(method, "|", check, "|", family, "|", rows[-1]["outcome"], rows[-1]["note"] or "", flush=True)
                content = {"environment": environment(), "rows": rows}
                FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    title = "What works on top of every method"
    text = "\n".join([*head(NAME, title, environment()), *table(rows)]) + "\n"
    (TABLES / f"{NAME}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
