"""Bases that neighbouring layers share, against low rank of as many numbers, on all-MiniLM-L6-v2 without training.

The published arrangement (Wang et al., ICLR 2025: inputs alone, writers with a basis a layer, nothing refitted), ours,
longer groups, and one basis for all weights that read the same input. All rows are calibrated on the same texts.

    python benchmarks/shared_basis_quality.py [--only PART] [--fresh]

Every row goes into the results as soon as it is measured, and is not measured again: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from typing import Any

from codes_quality import begin
from common import check, publish

from fewfold import Budget, LowRank, SharedBasis

SHARES = ("1/2", "1/4")
KINDS: dict[str, Any] = {
    "low rank": LowRank(),
    "pairs, as published": SharedBasis(writers="apart", weighting="inputs", refit=False),
    "pairs (default)": SharedBasis(),
    "pairs, q, k and v alike": SharedBasis(families=True),
    "three layers": SharedBasis(group=3),
    "six layers": SharedBasis(group=6),
}


def contenders() -> dict[str, tuple[Any, Budget]]:
    """Every row."""
    return {
        f"{kind}, {share}": (config, Budget(parameters=f"{share} of linears"))
        for share in SHARES for kind, config in KINDS.items()
    }  # fmt: skip


def claims(rows: Any) -> list[dict[str, Any]]:
    """Whether sharing gains over not sharing, and our fit over the published one."""
    near, checks = {row.name: row.neighbour_overlap for row in rows.bench.rows}, []
    for share in SHARES:
        ours = f"pairs (default), {share}"
        for rival in ("low rank", "pairs, as published"):
            if {ours, f"{rival}, {share}"} <= near.keys():
                gap = near[ours] - near[f"{rival}, {share}"]
                checks.append(check(f"{share}: nn10 of pairs (default) less that of {rival}", gap, 0.0))
    return checks


def main() -> None:
    """Measure what is missing, then draw the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    wanted = parser.parse_args()
    rows = begin("shared_basis_quality", wanted.fresh)
    for name, (config, budget) in contenders().items():
        if wanted.only in name:
            rows.run(name, config, budget)
    known = [*contenders()]
    ordered = sorted(rows.bench.rows, key=lambda row: known.index(row.name) if row.name in known else -1)
    publish("shared_basis_quality", "Bases that neighbouring layers share", ordered, {"checks": claims(rows)})


if __name__ == "__main__":
    main()
