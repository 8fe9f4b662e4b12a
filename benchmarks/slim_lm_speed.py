"""Training and generation of a word language model with slim layers against its dense twin, on two cores.

An LSTM of 512, V = 33,278, fp32. Both layers of the slim models keep a tenth of the dense numbers (codes are counted in
bytes). A training step is forward, backward and Adam on 20 streams of 35 words, the state carried on; generation is
``generate()``, greedy, with the model's forward pass as it is and compiled (``torch.compile``), on two cores and on
one, each against the dense twin run alike. Random words (speed does not depend on them), all contenders in turns.

    python benchmarks/slim_lm_speed.py
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import check, publish_checks

from fewfold.measure.parameters import stored_bytes, unique_parameters
from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.progress import track

VOCAB, HIDDEN, STREAMS, LENGTH, THREADS, RATIO = 33278, 512, 20, 35, 2, 10
NEW_WORDS, PROMPT = 40, 8
TRAINED = {"dense": None, "slim, K = 4": 4, "slim, K = 8": 8, "slim, K = 16": 16}
JUDGED, REBUILT = "slim, K = 8", "slim, K = 8, tables built at every step"
WRITTEN = {  # how texts are written: threads, and whether compiled
    "generation": (2, False),
    "generation, compiled": (2, True),
    "generation, one thread": (1, False),
    "generation, one thread, compiled": (1, True),
}
STEPS, GENERATIONS = 7, 25


def model_of(positions: int | None) -> SlimLMForCausalLM:
    """A fresh model; dense without ``positions``."""
    codes = None if positions is None else {"positions": positions, "ratio": RATIO}
    return SlimLMForCausalLM(SlimLMConfig(vocab_size=VOCAB, hidden_size=HIDDEN, input_codes=codes, output_codes=codes))


def training(model: SlimLMForCausalLM) -> Callable[[], None]:
    """One step of truncated back-propagation, to be called again and again."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    held: dict[str, Any] = {"state": None}

    def step() -> None:
        model.train()
        words = torch.randint(VOCAB, (STREAMS, LENGTH + 1))
        output = model(words[:, :-1], state=held["state"], shift_labels=words[:, 1:])
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        held["state"] = model.detach_state(output.state)

    return step


def generation(model: SlimLMForCausalLM, compiled: bool = False) -> Callable[[], None]:
    """Some new words after a prompt, to be called again and again."""
    if compiled:
        model = copy.deepcopy(model)
        model.forward = torch.compile(model.forward)  # type: ignore[method-assign]
    prompt = torch.randint(VOCAB, (1, PROMPT))

    def run() -> None:
        model.eval()
        model.generate(prompt, max_new_tokens=NEW_WORDS, min_new_tokens=NEW_WORDS, do_sample=False)

    return run


def timed(runs: dict[str, Callable[[], None]], repeats: int, tokens: int, what: str) -> list[dict[str, Any]]:
    """Tokens a second of every run, interleaved, after two rounds to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in track(range(repeats + 2), what):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= 2:
                rates[name].append(tokens / (time.perf_counter() - start))
    dense, rows = statistics.median(rates["dense"]), []
    for name, values in rates.items():
        quarters = statistics.quantiles(values, n=4, method="inclusive")
        median = statistics.median(values)
        rows.append(
            {
                "what": what, "name": name, "tokens_per_second": median, "low": quarters[0], "high": quarters[2],
                "best": max(values), "faster": median / dense, "faster_at_best": max(values) / max(rates["dense"]),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Both measurements, the claims, and the table; ``--quick`` runs few rounds and writes nothing."""
    quick = "--quick" in sys.argv
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    load = os.getloadavg()[0]
    models = {name: model_of(positions) for name, positions in TRAINED.items()}
    rebuilt = model_of(8)
    rebuilt.lm_head.chained_loss = lambda tokens: False  # type: ignore[assignment]
    steps = {name: training(model) for name, model in {**models, REBUILT: rebuilt}.items()}
    rows = timed(steps, 2 if quick else STEPS, STREAMS * LENGTH, "training")
    for what, (threads, compiled) in WRITTEN.items():
        torch.set_num_threads(threads)
        torch.compiler.reset()  # what was compiled for other threads
        written = {name: generation(model, compiled) for name, model in models.items()}
        with torch.no_grad():
            rows += timed(written, 3 if quick else GENERATIONS, NEW_WORDS, what)
    by = {(row["what"], row["name"]): row["faster"] for row in rows}
    checks = [
        check(f"{JUDGED}: training, times dense tokens/s", by["training", JUDGED], 1.0, digits=2),
        *(check(f"{JUDGED}: {what}, times dense tokens/s", by[what, JUDGED], 3.0, digits=2) for what in WRITTEN),
    ]
    sizes = {name: (unique_parameters(model), stored_bytes(model)) for name, model in models.items()}
    sizes[REBUILT] = sizes[JUDGED]
    lines = [
        f"Load average of the machine when the run began: {load:.1f} (anything else that runs slows two threads down).",
        "", "| | model | numbers | MB | tokens/s (quartiles) | times dense | at best |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        numbers, size = sizes[row["name"]]
        lines.append(
            f"| {row['what']} | {row['name']} | {numbers / 1e6:.2f} M | {size / 1e6:.1f} | "
            f"{row['tokens_per_second']:.0f} ({row['low']:.0f}–{row['high']:.0f}) | {row['faster']:.2f}× | "
            f"{row['faster_at_best']:.2f}× |"
        )
    print("\n".join([*lines, *(str(claim) for claim in checks)]))
    if not quick:
        extra = {"threads": THREADS, "load": load, "judged": JUDGED, "rows": rows}
        publish_checks("slim_lm_speed", "Speed of slim language models", checks, extra, [*lines, ""])


if __name__ == "__main__":
    main()
