"""Steps of training on a processor: as PyTorch takes them, and with what this library's trainings add.

Added are, one at a time and all together: freed memory that is kept between steps, attention in fp32 where bfloat16 is
slower, and (language models, translation) Adam in one fused pass. Every figure is the median of processes of their own,
which run in turns: what the C library does with memory cannot be taken back within one.

    python benchmarks/training_speed.py [--rounds 5] [--steps 8]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from common import BF16, publish_checks
from processes import in_a_process
from torch import nn

from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.training.attention import attention_for_training
from fewfold.training.memory import freed_memory_kept

WAYS = ("plain", "memory kept", "attention in fp32", "fused Adam", "all")
Step = Callable[[], torch.Tensor]


def words() -> tuple[nn.Module, Step]:
    """An LSTM of two layers of 256 over 10,000 words, 20 streams of 35."""
    config = SlimLMConfig(vocab_size=10_000, hidden_size=256, num_layers=2)
    model, ids = SlimLMForCausalLM(config), torch.randint(10_000, (20, 36))
    return model, lambda: model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:]).loss


def encoder() -> tuple[nn.Module, Step]:
    """BERT of six layers of 384, as all-MiniLM-L6-v2 has them, 32 texts of 32 tokens."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ))  # fmt: skip
    ids, wanted = torch.randint(30_000, (32, 32)), torch.randn(32, 32, 384)
    return model, lambda: nn.functional.mse_loss(model(input_ids=ids).last_hidden_state.float(), wanted)


WORKS = {"word language model": words, "sentence encoder": encoder}


def timed(work: str, way: str, steps: int) -> float:
    """Milliseconds a step."""
    torch.manual_seed(0)
    model, loss_of = WORKS[work]()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=way in ("fused Adam", "all"))
    with ExitStack() as stack:
        if way in ("memory kept", "all"):
            stack.enter_context(freed_memory_kept())
        if way in ("attention in fp32", "all"):
            stack.enter_context(attention_for_training(BF16))
        start = 0.0
        for number in range(steps + 3):
            if number == 3:
                start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
                loss = loss_of()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (time.perf_counter() - start) / steps * 1000


def main() -> None:
    """Start one process a figure, or be one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "WAY"), help="be a process that times one")
    wanted = parser.parse_args()
    if wanted.one:
        print(json.dumps(timed(*wanted.one, wanted.steps)))
        return
    found: dict[str, dict[str, list[float]]] = {work: {way: [] for way in WAYS} for work in WORKS}
    for number in range(wanted.rounds):
        for work, ways in found.items():
            for way, taken in ways.items():
                taken.append(in_a_process(__file__, "--steps", str(wanted.steps), "--one", work, way))
                print(f"round {number + 1}, {work}, {way}: {taken[-1]:.0f} ms a step", flush=True)
    draw(found, wanted.rounds)


def draw(found: dict[str, dict[str, list[float]]], rounds: int) -> None:
    """Write results and table."""
    lines = [
        "| training | way | ms a step, median | lowest | highest | times plain's speed |",
        "|---|---|---:|---:|---:|---:|",
    ]
    rows: list[dict[str, Any]] = []
    for work, ways in found.items():
        plain = statistics.median(ways["plain"])
        for way, taken in ways.items():
            median = statistics.median(taken)
            rows.append({"training": work, "way": way, "milliseconds": taken, "faster": plain / median})
            lines.append(
                f"| {work} | {way} | {median:.0f} | {min(taken):.0f} | {max(taken):.0f} | {plain / median:.2f} |"
            )
    numbers = "bfloat16 (autocast)" if BF16 else "fp32"
    lines += ["", f"{rounds} processes each, in turns, {torch.get_num_threads()} threads, {numbers}.", ""]
    publish_checks("training_speed", "Training steps on a processor", [], {"rows": rows, "bf16": BF16}, lines)


if __name__ == "__main__":
    main()
