"""Codes into codebooks of sub-vectors on all-MiniLM-L6-v2, without any training: tables, linear maps, the whole model.

    python benchmarks/codes_quality.py [tables|linears|model] [--again PART] [--fresh]

Every row goes into the results as soon as it is measured, and a row that is there is not measured again: a run that was
stopped goes on. ``--again`` measures rows anew whose name holds PART, ``--fresh`` all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from common import RESULTS, Bench, check, publish, row_of

import fewfold
from fewfold import Budget, Dense, EmbeddingAutoencoder, LowRank, SubvectorCodes
from fewfold.measure.quality import QualityRow
from fewfold.tasks.data import calibration_texts
from fewfold.tasks.sts import spearman

TEXT = "mixed-512"
RATIOS = (10, 25, 50, 2.5, 5, 100)  # those that are asked for first
NAMED = (2.5, 5, 10)  # the ratios that the direction auto-encoder's paper names
RESAMPLES = 1000
ASKED_TABLES = {10: (0.95, 0.002), 25: (0.85, 0.008), 50: (0.70, 0.025)}
ASKED_LINEARS = {8: 0.88, 15: 0.68, 25: 0.50}


class Rows:
    """The rows of one table, kept on disk from row to row."""

    def __init__(self, name: str, bench: Bench, fresh: bool = False, again: str | None = None) -> None:
        self.bench, self.path = bench, RESULTS / f"{name}.rows.json"
        self.texts = calibration_texts(TEXT)
        self.similarities: dict[str, list[float]] = {}
        self.differences: list[dict[str, Any]] = []
        self.facts: dict[str, dict[str, Any]] = {}  # what else is known of a row
        finished = RESULTS / f"{name}.json"
        source = self.path if self.path.exists() else finished
        if source.exists() and not fresh:
            kept = json.loads(source.read_text(encoding="utf-8"))
            self.similarities = kept.get("similarities", {})
            self.differences = kept.get("differences", [])
            self.facts = kept.get("facts", {})
            for row in kept["rows"]:
                if source is self.path or again is None or again not in row["name"]:
                    bench.add(row_of(row))

    def run(self, name: str, config: Any, budget: Any = None, calibrated: bool = True, keep: bool = False) -> None:
        """Compress and measure, unless that row is there.

        :param keep: keep the pairs' cosines, for an interval of a difference.
        """

        def make(model: torch.nn.Module) -> Any:
            if not calibrated:
                return fewfold.compress(model, config, budget=budget)
            return fewfold.compress(
                model, config, budget=budget, calibration=self.texts, tokenizer=self.bench.tokenizer,
                calibration_name=TEXT,
            )  # fmt: skip

        self.add(name, lambda: self.bench.row(name, make, TEXT if calibrated else "-"), keep)

    def add(self, name: str, measure: Callable[[], Any], keep: bool = False) -> None:
        """Let ``measure`` add its rows, unless they are there, and write all, those of other processes too."""
        self._look()
        if any(row.name == name for row in self.bench.rows):
            return
        model = measure()
        self._look()
        if keep:
            embeddings, _ = self.bench.reference.encode(model)
            place = {text: index for index, text in enumerate(self.bench.reference.texts)}
            first, second = (
                embeddings[[place[getattr(pair, side)] for pair in self.bench.pairs]] for side in ("first", "second")
            )
            self.similarities[name] = (first * second).sum(1).tolist()
        RESULTS.mkdir(exist_ok=True)
        content = {
            "rows": [asdict(row) for row in self.bench.rows], "similarities": self.similarities,
            "differences": self.differences, "facts": self.facts,
        }  # fmt: skip
        self.path.write_text(json.dumps(content), encoding="utf-8")

    def _look(self) -> None:
        """Add what other processes wrote since."""
        kept = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {"rows": []}
        there = {row.name for row in self.bench.rows}
        self.bench.rows += [row_of(row) for row in kept["rows"] if row["name"] not in there]
        self.similarities = {**kept.get("similarities", {}), **self.similarities}
        self.facts = {**kept.get("facts", {}), **self.facts}

    def found(self, name: str) -> QualityRow:
        """A measured row."""
        return next(row for row in self.bench.rows if row.name == name)

    def sts(self, name: str) -> float:
        """Its STS-B dev."""
        score = self.found(name).sts
        assert score is not None
        return score.spearman

    def difference(self, better: str, than: str) -> dict[str, Any]:
        """Spearman's difference between two rows, with a paired bootstrap interval over the pairs of sentences."""
        if better not in self.similarities or than not in self.similarities:  # measured in an earlier run
            return next(one for one in self.differences if one["rows"] == [better, than])
        scores = np.array([pair.score for pair in self.bench.pairs])
        a, b = np.array(self.similarities[better]), np.array(self.similarities[than])
        rng, found = np.random.default_rng(0), []
        for _ in range(RESAMPLES):
            drawn = rng.integers(len(scores), size=len(scores))
            found.append(spearman(a[drawn], scores[drawn]) - spearman(b[drawn], scores[drawn]))
        low, high = np.percentile(found, [2.5, 97.5])
        value = spearman(a, scores) - spearman(b, scores)
        return {"rows": [better, than], "difference": value, "low": float(low), "high": float(high)}

    def finish(self, name: str, title: str, checks: list[dict[str, Any]], extra: dict[str, Any]) -> None:
        """Write results and table, and drop what was kept on the way."""
        publish(name, title, self.bench.rows, {"checks": checks, **extra}, "codes_quality")
        self.path.unlink(missing_ok=True)


def begin(name: str, fresh: bool = False, again: str | None = None) -> Rows:
    """The first rows of every table, and those that are there.

    :param fresh: measure all anew.
    :param again: measure rows anew whose name holds this.
    """
    bench = Bench()
    rows = Rows(name, bench, fresh, again)

    def first() -> torch.nn.Module:
        bench.add(*bench.rivals)
        return bench.model

    rows.add("dense", first)
    return rows


def tables(**options: Any) -> None:
    """The token table at every ratio."""
    rows = begin("codes_tables", **options)
    dense = rows.sts("dense")
    for ratio in RATIOS:
        budget = Budget(bytes=f"1/{ratio} of embeddings")
        only = {"targets": "embeddings"}
        rows.run(f"SVD, {ratio:g}×", LowRank(weighting="none", **only), budget, False, True)
        rows.run(
            f"auto-encoder as published, {ratio:g}×",
            EmbeddingAutoencoder(solver="published", **only),
            budget,
            False,
            True,
        )
        rows.run(f"direction subspace, {ratio:g}×", EmbeddingAutoencoder(weighting="none", **only), budget, False, True)
        rows.run(f"low rank by counts and gradients, {ratio:g}×", LowRank(**only), budget)
        rows.run(
            f"codes, not calibrated, {ratio:g}×", SubvectorCodes(weighting="none", frequent=0, **only), budget, False
        )
        rows.run(f"codes (embedding-default), {ratio:g}×", SubvectorCodes(**only), budget)
    differences = [
        rows.difference(f"{method}, {ratio:g}×", f"SVD, {ratio:g}×")
        for ratio in NAMED
        for method in ("auto-encoder as published", "direction subspace")
    ]
    checks = []
    for ratio, (overlap, loss) in ASKED_TABLES.items():
        name = f"codes (embedding-default), {ratio:g}×"
        checks.append(check(f"{name}: nn10", rows.found(name).neighbour_overlap, overlap))
        checks.append(check(f"{name}: loss of STS-B dev", dense - rows.sts(name), loss, at_least=False))
    for one in differences:
        better, than = one["rows"]
        what = f"{better} above {than} in STS-B dev (95 % interval {one['low']:+.4f} … {one['high']:+.4f})"
        checks.append(check(what, one["difference"], 0.0))
    rows.finish(
        "codes_tables", "The token table in fewer bytes, without training", checks, {"differences": differences}
    )


def linears(**options: Any) -> None:
    """The linear maps at 8, 15 and 25 times fewer bytes."""
    rows = begin("codes_linears", **options)
    for ratio in ASKED_LINEARS:
        budget = Budget(bytes=f"1/{ratio} of linears")
        rows.run(f"low rank, int4 factors, {ratio}×", LowRank(stored_dtype="int4"), budget)
        rows.run(f"codes, not calibrated, {ratio}×", SubvectorCodes(weighting="none"), budget, False)
        rows.run(f"codes (codes-default), {ratio}×", SubvectorCodes(), budget)
    for bits in (4, 3):
        rows.run(f"int{bits}, groups of 32", Dense(targets="linears", stored_dtype=f"int{bits}"), None, False)
    checks = [
        check(
            f"codes (codes-default), {ratio}×: nn10",
            rows.found(f"codes (codes-default), {ratio}×").neighbour_overlap,
            asked,
        )
        for ratio, asked in ASKED_LINEARS.items()
    ]
    rows.finish("codes_linears", "Linear maps in fewer bytes, without training", checks, {})


def whole_model(**options: Any) -> None:
    """The whole model in 12 MB and less, by both presets where few are left, next to every weight in few bits."""
    rows = begin("codes_model", **options)
    for size in ("5MB", "3MB", "8MB", "12MB", "4MB", "2MB"):
        rows.run(f"codes-default, {size}", "codes-default", Budget(bytes=size))
    for size in ("4MB", "3MB", "2MB"):
        rows.run(f"low-rank-codes, {size}", "low-rank-codes", Budget(bytes=size))
    for bits in ("int8", "int4", "int3"):
        rows.run(f"{bits}, all weights", Dense(targets="all", stored_dtype=bits))
    name, both = "codes-default, 5MB", ("codes-default", "low-rank-codes")
    near = {size: [rows.found(f"{preset}, {size}").neighbour_overlap for preset in both] for size in ("3MB", "2MB")}
    checks = [
        check(f"{name}: STS-B dev", rows.sts(name), 0.845),
        check(f"{name}: nn10", rows.found(name).neighbour_overlap, 0.60),
        check(f"{name}: megabytes", rows.found(name).bytes / 1e6, 5.0, at_least=False),
        *(
            check(f"{size}: nn10 of low-rank-codes over that of codes-default", near[size][1] / near[size][0], 1.0)
            for size in near
        ),
    ]
    rows.finish("codes_model", "The whole model in a few megabytes, without training", checks, {})


PARTS = {"model": whole_model, "linears": linears, "tables": tables}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which tables (all)")
    parser.add_argument("--again", metavar="PART", help="measure rows anew whose name holds this")
    parser.add_argument("--fresh", action="store_true", help="measure all rows anew")
    wanted = parser.parse_args()
    for part in wanted.parts or PARTS:
        PARTS[part](fresh=wanted.fresh, again=wanted.again)
