"""How long compressing all-MiniLM-L6-v2 takes, calibration included: linears at 1/4 of their numbers.

python benchmarks/compress_time.py
"""

from __future__ import annotations

import statistics
import time

from common import Bench, check, publish_checks

import fewfold
from fewfold.tasks.data import calibration_texts

ROUNDS = 3


def main() -> None:
    bench = Bench()
    seconds: dict[str, list[float]] = {"mixed-512": [], "wiki-512": []}
    for _ in range(ROUNDS):
        for name, times in seconds.items():
            model, texts = bench.fresh(), calibration_texts(name)
            start = time.perf_counter()
            fewfold.compress(
                model,
                fewfold.LowRank(),
                budget=fewfold.Budget(parameters="1/4 of linears"),
                calibration=texts,
                tokenizer=bench.tokenizer,
                cache=False,
            )
            times.append(time.perf_counter() - start)
            print(f"{name}: {times[-1]:.1f} s", flush=True)
    checks = [
        check(f"seconds, median of {ROUNDS} interleaved rounds, {name}", statistics.median(times), 60, False, 1)
        for name, times in seconds.items()
    ]
    publish_checks("compress_time", "Time to compress", checks, {"seconds": seconds})


if __name__ == "__main__":
    main()
