"""Low rank against its floor and its rivals on all-MiniLM-L6-v2, without any training.

Linears at 1/4 of their numbers (calibrated on each calibration file, with float, int8 and int4 factors), the token
table at 1/10, and the exactness of the round trip through a file. ``compress_time.py`` measures how long it takes.

    python benchmarks/low_rank_quality.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from common import Bench, check, publish
from transformers import AutoModel

import fewfold
from fewfold.measure.disk import file_bytes
from fewfold.measure.parameters import stored_bytes
from fewfold.tasks.data import calibration_texts

QUARTER = fewfold.Budget(parameters="1/4 of linears")
TENTH = fewfold.Budget(parameters="1/10 of embeddings")


def round_trip(bench: Bench, model: torch.nn.Module) -> dict[str, float]:
    """Save and reload; how far outputs move, and file bytes against counted bytes."""
    inputs = bench.tokenizer(["A short sentence.", "Another one, a little longer."], padding=True, return_tensors="pt")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model.eval().save_pretrained(folder)
        again = AutoModel.from_pretrained(folder)
        difference = (model(**inputs).last_hidden_state - again(**inputs).last_hidden_state).abs().max()
        return {"difference": float(difference), "bytes_ratio": file_bytes(Path(folder)) / stored_bytes(model)}


def main() -> None:
    """Measure every row, then write the results and the table."""
    bench = Bench()
    bench.add(*bench.rivals)
    for bits in ("int8", "int4", "int3"):
        bench.row(f"dense linears, {bits}", lambda m, b=bits: fewfold.compress(m, fewfold.Dense(stored_dtype=b)))
    bench.row("plain SVD, 1/4", lambda m: fewfold.compress(m, fewfold.LowRank(weighting="none"), budget=QUARTER))
    trips: list[dict[str, float]] = []
    for name in ("mixed-512", "wiki-512"):
        texts = calibration_texts(name)

        def run(model, config, sequential=None, texts=texts, name=name):
            return fewfold.compress(
                model, config, budget=QUARTER, calibration=texts, tokenizer=bench.tokenizer,
                calibration_name=name, cache=False, sequential=sequential,
            )  # fmt: skip

        bench.row("inputs only, at once, 1/4", lambda m: run(m, fewfold.LowRank(weighting="inputs"), False), name)
        bench.row("at once, 1/4", lambda m: run(m, fewfold.LowRank(), False), name)
        model = bench.row("low rank (default), 1/4", lambda m: run(m, fewfold.LowRank()), name)
        trips.append(round_trip(bench, model))
        for bits in ("int8", "int4"):
            model = bench.row(
                f"low rank (default), 1/4, {bits}", lambda m, b=bits: run(m, fewfold.LowRank(stored_dtype=b)), name
            )
            trips.append(round_trip(bench, model))
    table = fewfold.LowRank(targets="embeddings", weighting="none")
    bench.row("plain SVD of the token table, 1/10", lambda m: fewfold.compress(m, table, budget=TENTH))
    for name in ("mixed-512", "wiki-512"):
        texts = calibration_texts(name)
        bench.row(
            "low rank (default) of the token table, 1/10",
            lambda m, t=texts, n=name: fewfold.compress(
                m, fewfold.LowRank(targets="embeddings"), budget=TENTH, calibration=t, tokenizer=bench.tokenizer,
                calibration_name=n, cache=False,
            ),
            name,
        )  # fmt: skip
    found = {(row.name, row.calibration): row for row in bench.rows}
    publish("low_rank_quality", "Low rank without training", bench.rows, {"checks": checks(found, trips)})


def checks(found: dict, trips: list[dict[str, float]]) -> list[dict]:
    """Every claim that this program is there to show."""

    def sts(name: str, text: str = "-") -> float:
        return found[name, text].sts.spearman

    def near(name: str, text: str) -> float:
        return found[name, text].neighbour_overlap

    default = "low rank (default), 1/4"
    sts_gap = sts(default, "mixed-512") - sts(default, "wiki-512")
    near_gap = near(default, "mixed-512") - near(default, "wiki-512")
    svd = "plain SVD of the token table, 1/10"
    gains = [sts("low rank (default) of the token table, 1/10", text) - sts(svd) for text in ("mixed-512", "wiki-512")]
    lost = {
        bits: max(sts(default, text) - sts(f"{default}, {bits}", text) for text in ("mixed-512", "wiki-512"))
        for bits in ("int8", "int4")
    }
    return [
        check("linears at 1/4, mixed: STS-B dev", sts(default, "mixed-512"), 0.82),
        check("linears at 1/4, mixed: nn10", near(default, "mixed-512"), 0.45),
        check("linears at 1/4, wiki: STS-B dev below mixed", sts_gap, 0.02, False),
        check("linears at 1/4, wiki: nn10 below mixed", near_gap, 0.02, False),
        check("STS-B dev lost to int8 factors (worse text)", lost["int8"], 0.002, False),
        check("STS-B dev lost to int4 factors (worse text)", lost["int4"], 0.006, False),
        check("token table at 1/10: STS-B dev above plain SVD (worse text)", min(gains), 0.12),
        check("reloaded outputs: largest difference", max(trip["difference"] for trip in trips), 1e-5, False, 8),
        check("file bytes over counted bytes", max(trip["bytes_ratio"] for trip in trips), 1.02, False),
    ]


if __name__ == "__main__":
    main()
