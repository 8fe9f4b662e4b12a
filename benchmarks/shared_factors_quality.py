"""Shared factors and Tucker on all-MiniLM-L6-v2 at the published ratios, without any training.

Every size of the paper halved to MiniLM's width (IV-72-384 becomes IV-36-192, III-64 becomes III-32, …), as published
and with our calibrated fit, next to low rank with the same numbers of parameters, and at the same bytes in int8.

    python benchmarks/shared_factors_quality.py
"""

from __future__ import annotations

import torch
from common import Bench, check, publish

import fewfold
from fewfold import Budget, LowRank, SharedFactors, Tucker
from fewfold.tasks.data import calibration_texts

TEXT = "mixed-512"
PRESETS = {
    "III-192": SharedFactors(rank=192),
    "IV-36-192": Tucker(bank=36, rank=192),
    "III-32": SharedFactors(rank=32),
}


def linear_numbers(model: torch.nn.Module) -> int:
    """Stored numbers of the replaced weights."""
    return sum(row.parameters for row in fewfold.summary(model).rows)


def main() -> None:
    """Measure every row, then write the results and the table."""
    bench, texts = Bench(), calibration_texts(TEXT)
    bench.add(*bench.rivals)

    def run(model: torch.nn.Module, config: object, budget: object = None) -> torch.nn.Module:
        return fewfold.compress(
            model, config, budget=budget, calibration=texts, tokenizer=bench.tokenizer, calibration_name=TEXT
        )

    numbers: dict[str, int] = {}
    for name, config in PRESETS.items():
        model = bench.row(f"{name}, as published", lambda m, n=name: fewfold.compress(m, n))
        numbers[name] = linear_numbers(model)
        bench.row(f"{name}, calibrated (default)", lambda m, c=config: run(m, c), TEXT)
        same = Budget(parameters=f"{numbers[name]} of linears")
        bench.row(f"low rank, as many numbers as {name}", lambda m, b=same: run(m, LowRank(), b), TEXT)
    quarter = Budget(parameters="1/4 of linears")
    for label, config in (
        ("shared factors, 1/4", SharedFactors()),
        ("Tucker, 1/4", Tucker()),
        ("low rank, 1/4", LowRank()),
        ("shared factors, 1/4, int8", SharedFactors(stored_dtype="int8")),
        ("low rank, 1/4, int8", LowRank(stored_dtype="int8")),
    ):
        bench.row(label, lambda m, c=config: run(m, c, quarter), TEXT)
    found = {row.name: row for row in bench.rows}
    checks = [
        check(
            f"{name}: STS-B dev of the calibrated fit above the published one's",
            found[f"{name}, calibrated (default)"].sts.spearman - found[f"{name}, as published"].sts.spearman,
            0.0,
        )
        for name in PRESETS
    ]
    publish(
        "shared_factors_quality", "Shared factors without training: they need recovery", bench.rows,
        {"checks": checks, "numbers": numbers},
    )  # fmt: skip


if __name__ == "__main__":
    main()
