"""The embedding auto-encoder on the token table of all-MiniLM-L6-v2 at a tenth of its numbers.

The published training (30 epochs of 32 rows a step, once) against the closed steps: processor seconds, the published
loss over the whole table, and what the model is worth afterwards, with rivals and floor. One thread for all, as a
product of 32 rows gains nothing from a second, and its processor time, which other programs disturb less. The training
takes minutes, so ours runs before and after it instead of in turns. With ``elu`` an ELU follows encoder and decoder.

    python benchmarks/autoencoder_training.py [linear] [elu]
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from common import Bench, check, publish
from torch import Tensor
from torch.nn import functional as F

import fewfold
from fewfold.calibration.statistics import NO_STATISTICS
from fewfold.linalg.direction_loss import cosine_distances, direction_loss
from fewfold.methods.base import Unit
from fewfold.methods.registry import method_named
from fewfold.surgery.targets import find_targets, read_weight, select
from fewfold.tasks.data import calibration_texts

TENTH = "parameters=1/10 of embeddings"
RUNS = 3  # of ours, before the training and again after it


def measures(made: Tensor, table: Tensor) -> dict[str, float]:
    """Loss over the whole table at the last exponent, mean cosine distance, squared error over energy."""
    squared = float((made - table).double().square().sum() / table.double().square().sum())
    return {
        "loss": float(direction_loss(made, table)),
        "cosine_distance": float(cosine_distances(made, table).mean()),
        "squared_error": squared,
    }


@dataclass
class Watch:
    """Follows a training from epoch to epoch; its own time is not counted."""

    table: Tensor
    start: float = field(default_factory=time.process_time)
    epochs: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, made: Tensor) -> float:
        """Called with what the auto-encoder makes of the table."""
        now = time.process_time()
        self.epochs.append({"seconds": now - self.start, **measures(made, self.table)})
        self.start += time.process_time() - now
        print(len(self.epochs), self.epochs[-1], flush=True)
        return self.epochs[-1]["loss"]


def closed(table: Tensor, unit: Unit, rank: int) -> dict[str, float]:
    """Seconds of one fit in closed steps, and what it makes of the table."""
    settings = {**(method_named(unit.method).sizes(unit)[0]), "rank": rank}
    start = time.process_time()
    tensors = method_named(unit.method).fit(unit, settings, {unit.name: table}, NO_STATISTICS)[unit.name]
    seconds = time.process_time() - start
    made = (tensors["latents.weight"] @ tensors["up.weight"].t() + tensors["up.bias"]).float()
    made = F.elu(made) if settings.get("activation") == "elu" else made
    return {"seconds": seconds, **measures(made, table)}


def main() -> None:
    """Train, fit, measure every row, then write the results and the table."""
    torch.set_num_threads(1)
    bench, texts = Bench(), calibration_texts("mixed-512")
    (target,) = select(bench.model, find_targets(bench.model), "embeddings")
    table = read_weight(bench.model, target)
    rank = (target.numel // 10 - target.columns) // (target.rows + target.columns)
    bench.add(*bench.rivals)
    plain = fewfold.LowRank(targets="embeddings", weighting="none")
    bench.row("SVD, 1/10", lambda m: fewfold.compress(m, plain, budget=TENTH))
    fits: dict[str, list[dict[str, float]]] = {}
    trainings: dict[str, list[dict[str, float]]] = {}
    for activation in sys.argv[1:] or ["linear"]:
        ours = fewfold.EmbeddingAutoencoder(rank=rank, weighting="none", decoder_activation=activation)
        unit = Unit("embedding_autoencoder", ours, (target,))
        fits[activation] = [closed(table, unit, rank) for _ in range(RUNS)]
        watch = Watch(table)
        published = fewfold.EmbeddingAutoencoder(
            rank=rank, solver="published", encoder_activation=activation, decoder_activation=activation,
            validation=watch,
        )  # fmt: skip
        bench.row(f"published training, {activation}, 1/10", lambda m, c=published: fewfold.compress(m, c))
        trainings[activation] = watch.epochs
        fits[activation] += [closed(table, unit, rank) for _ in range(RUNS)]
        bench.row(f"closed steps, {activation}, 1/10", lambda m, c=ours: fewfold.compress(m, c))
    for name, config in (
        ("closed steps, rows by token counts, 1/10", fewfold.EmbeddingAutoencoder()),
        ("low rank (default), 1/10", fewfold.LowRank(targets="embeddings")),
    ):
        bench.row(
            name,
            lambda m, c=config: fewfold.compress(
                m, c, budget=TENTH, calibration=texts, tokenizer=bench.tokenizer, calibration_name="mixed-512",
                cache=False,
            ),
            "mixed-512",
        )  # fmt: skip
    claims = checks(fits, trainings, {row.name: row for row in bench.rows})
    extra = {"rank": rank, "closed_steps": fits, "published": trainings, "checks": claims}
    title = f"Embedding auto-encoder: published training and closed steps, latents of {rank} numbers"
    publish("autoencoder_training", title, bench.rows, extra)


def checks(
    fits: dict[str, list[dict[str, float]]], trainings: dict[str, list[dict[str, float]]], rows: dict[str, Any]
) -> list[dict]:
    """Every claim that this program is there to show."""
    found = []
    for activation, epochs in trainings.items():
        best = min(epochs, key=lambda epoch: epoch["loss"])
        seconds = [fit["seconds"] for fit in fits[activation]]
        spread = f"{min(seconds):.1f}…{max(seconds):.1f} s against {epochs[-1]['seconds']:.0f} s"
        found += [
            check(f"{activation}: loss over the published training's", fits[activation][0]["loss"] / best["loss"], 1,
                  False, 5),
            check(f"{activation}: times faster than the published training ({spread})",
                  epochs[-1]["seconds"] / statistics.median(seconds), 10, True, 1),
        ]  # fmt: skip
        for what in ("cosine_distance", "squared_error"):
            measured = fits[activation][0][what] / best[what]
            found.append(check(f"{activation}: {what.replace('_', ' ')} over the published", measured, 1, False, 4))
        gap = (
            rows[f"closed steps, {activation}, 1/10"].sts.spearman
            - rows[f"published training, {activation}, 1/10"].sts.spearman
        )
        found.append(check(f"{activation}: STS-B dev above the published training's", gap, 0))
    counted = rows["closed steps, rows by token counts, 1/10"]
    found.append(
        check(
            "rows by token counts: STS-B dev above the SVD's",
            counted.sts.spearman - rows["SVD, 1/10"].sts.spearman,
            0.1,
        )
    )
    return found


if __name__ == "__main__":
    main()
