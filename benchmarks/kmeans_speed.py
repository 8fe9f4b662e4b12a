"""K-means of a table's sub-vectors: ours against scikit-learn's, to the same error.

Points: sub-vectors of all-MiniLM-L6-v2's token table (30,522 of each width) and as many normal numbers as a table of
250,000 rows has; 256 words; all contenders in turns. scikit-learn runs as it comes (k-means++, one start), with the
same number of iterations at most, and as ``MiniBatchKMeans``.

    python benchmarks/kmeans_speed.py
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import Bench, check, publish_checks
from torch import Tensor

from fewfold.linalg.kmeans import kmeans, nearest
from fewfold.progress import track

WORDS, ITERATIONS, ROUNDS, THREADS = 256, 20, 3, 2


def contenders() -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions from points to centres."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    def theirs(kind: Any, points: Tensor) -> Tensor:
        fitted = kind(WORDS, n_init=1, max_iter=ITERATIONS, random_state=0).fit(points.numpy())
        return torch.from_numpy(fitted.cluster_centers_).float()

    return {
        "ours": lambda points: kmeans(points, WORDS, iterations=ITERATIONS),
        "scikit-learn KMeans": lambda points: theirs(KMeans, points),
        "scikit-learn MiniBatchKMeans": lambda points: theirs(MiniBatchKMeans, points),
    }


def main() -> None:
    """Every set of points by every contender."""
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    table = Bench().model.get_input_embeddings().weight.detach()
    generator = torch.Generator().manual_seed(0)
    sets = {f"table, width {width}": table[:, :width].contiguous() for width in (2, 4, 8)}
    sets["250,000 normal points, width 6"] = torch.randn(250_000, 6, generator=generator)
    rows: list[dict[str, Any]] = []
    for what, points in sets.items():
        seconds: dict[str, list[float]] = {name: [] for name in contenders()}
        errors: dict[str, float] = {}
        for _ in track(range(ROUNDS), what):
            for name, run in contenders().items():
                start = time.perf_counter()
                centres = run(points)
                seconds[name].append(time.perf_counter() - start)
                errors[name] = float((points - centres[nearest(points, centres)]).square().mean())
        for name, times in seconds.items():
            rows.append({"points": what, "name": name, "seconds": times, "error": errors[name]})
    lines = ["| points | k-means | seconds, median (range) | error, of scikit-learn's |", "|---|---|---|---|"]
    checks = []
    for row in rows:
        reference = next(r for r in rows if r["points"] == row["points"] and r["name"] == "scikit-learn KMeans")
        times, share = row["seconds"], row["error"] / reference["error"]
        median = statistics.median(times)
        lines.append(
            f"| {row['points']} | {row['name']} | {median:.2f} ({min(times):.2f}–{max(times):.2f}) | {share:.3f} |"
        )
        if row["name"] == "ours":
            faster = statistics.median(reference["seconds"]) / median
            checks.append(check(f"{row['points']}: times as fast as scikit-learn's KMeans", faster, 1.0, digits=2))
            checks.append(check(f"{row['points']}: error over scikit-learn's", share, 1.02, False, 3))
    publish_checks("kmeans_speed", "K-means of sub-vectors", checks, {"rows": rows, "threads": THREADS}, [*lines, ""])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
