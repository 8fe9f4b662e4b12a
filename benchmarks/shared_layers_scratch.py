"""A small masked language model from scratch on WikiText-2: unshared, and shared by every map at equal stored size.

Unshared it has as many layers as there are blocks; shared, twice as many layers run from the same number of blocks, so
that all store the same but norms (Takase and Kiyono's comparison; theirs: all below the others, the maps of
several blocks above unshared). ``all`` is wider, so that the whole model stores as much, as theirs was; in ``all,
wide`` its one block alone stores what the others' blocks do, and the wider token table comes on top.

The model is ModernBERT's, small: normalised before each part and with rotary positions. BERT itself, this narrow, says
no more than how frequent words are for thousands of steps, whatever its weights begin with.

    python benchmarks/shared_layers_scratch.py [--steps 1000] [--width 128] [--blocks 3] [--seeds 2]

Every run goes into the results as soon as it is done, and a run that is there is not repeated: two programs with
different ``--first`` seeds may add to one table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from typing import Any

import torch
from common import BF16, RESULTS, check, publish_checks
from masked_tables import windows
from torch.nn.functional import cross_entropy
from transformers import ModernBertConfig, ModernBertForMaskedLM

import fewfold
from fewfold import SharedLayers
from fewfold.measure.parameters import unique_parameters
from fewfold.pretrain.text import train_tokenizer
from fewfold.progress import track
from fewfold.store import stores_of
from fewfold.tasks.data import wikitext2
from fewfold.training.attention import attention_for_training

BATCH, MASKED, RATE, WARMUP, HEADS, VOCABULARY = 32, 0.15, 2e-3, 0.1, 4, 8000
ROWS = RESULTS / "shared_layers_scratch.rows.json"
MAPS = ("unshared", "all", "sequence", "cycle", "cycle_rev", "all, wide")


def width_of(name: str, width: int, blocks: int, vocabulary: int) -> int:
    """The width that a map's model has, a multiple of 8 times the heads."""
    if not name.startswith("all"):
        return width
    # numbers of a block, and of the head with it, times the width squared; embeddings are the vocabulary times it
    block, head = 10, 1
    if name == "all, wide":
        wished = width * math.sqrt(blocks)
    else:
        stored = (blocks * block + head) * width**2 + vocabulary * width
        squared = 4 * (block + head) * stored
        wished = (math.sqrt(vocabulary**2 + squared) - vocabulary) / (2 * (block + head))
    return HEADS * 8 * round(wished / (HEADS * 8))


def build(name: str, width: int, blocks: int, tokenizer: Any, seed: int) -> Any:
    """A fresh model of one map."""
    layers = blocks if name == "unshared" else 2 * blocks
    hidden = width_of(name, width, blocks, len(tokenizer))
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=HEADS,
        intermediate_size=2 * hidden, max_position_embeddings=64, global_attn_every_n_layers=1,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    model = ModernBertForMaskedLM(config)
    if name != "unshared":
        count: dict[str, Any] = {"map": "all"} if name.startswith("all") else {"map": name, "blocks": blocks}
        shared = SharedLayers(**count, norms_and_biases="private", delta_rank=0)
        fewfold.compress(model, shared, fit=False, seed=seed)
    return model


def stored_in_layers(model: Any) -> int:
    """Numbers of the layers and of the blocks that they run from."""
    blocks = sum(unique_parameters(store) for store in stores_of(model).values())
    return blocks + unique_parameters(model.model.layers)


def masked(rows: torch.Tensor, generator: torch.Generator, mask: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with some tokens hidden, and where."""
    hidden = torch.rand(rows.shape, generator=generator) < MASKED
    hidden[:, 0] = hidden[:, -1] = False
    return rows.masked_fill(hidden, mask), hidden


def loss_of(model: Any, ids: torch.Tensor, inputs: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the hidden tokens."""
    states = model.model(input_ids=inputs).last_hidden_state[hidden]
    return cross_entropy(model.decoder(model.head(states)).float(), ids[hidden])


def train(model: Any, rows: torch.Tensor, steps: int, mask: int, seed: int) -> None:
    """AdamW, linear warm-up and decay."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / (steps * WARMUP + 1)) * max(0.0, 1 - step / steps)
    )
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in track(range(steps), "training"):
        ids = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16), attention_for_training(BF16):
            loss = loss_of(model, ids, *masked(ids, generator, mask))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()


@torch.no_grad()
def perplexity(model: Any, rows: torch.Tensor, mask: int) -> float:
    """Of hidden tokens, the same ones for every model."""
    generator = torch.Generator().manual_seed(1)
    model.eval()
    losses = [loss_of(model, ids, *masked(ids, generator, mask)) for ids in rows.split(BATCH)]
    return math.exp(float(torch.stack(losses).mean()))


def main() -> None:
    """Train what is missing, seed by seed, then draw the table."""
    parser = argparse.ArgumentParser()
    for option, value in (("steps", 1000), ("width", 128), ("blocks", 3), ("seeds", 2), ("rows", 0), ("first", 0)):
        parser.add_argument(f"--{option}", type=int, default=value)
    wanted = parser.parse_args()
    rows = wanted.rows or None  # a line of text has some tokens, so as many lines are enough
    parts = [wikitext2(split)[:rows] for split in ("train", "valid")]
    tokenizer = train_tokenizer(parts[0], VOCABULARY)
    text, judged = (windows(tokenizer, part)[:rows] for part in parts)
    setting = f"{wanted.steps} steps, width {wanted.width}, {wanted.blocks} blocks, {len(text)} rows" + (
        ", bf16" if BF16 else ""
    )
    runs = read_runs(setting)
    for seed in range(wanted.first, wanted.seeds):
        for name in MAPS:
            key = f"{name}, seed {seed}"
            if key in runs:
                continue
            model = build(name, wanted.width, wanted.blocks, tokenizer, seed)
            stack = stored_in_layers(model)
            start = time.perf_counter()
            train(model, text, wanted.steps, tokenizer.mask_token_id, seed)
            seconds = time.perf_counter() - start
            found = perplexity(model, judged, tokenizer.mask_token_id)
            runs[key] = {
                "map": name, "layers": len(model.model.layers), "width": model.config.hidden_size,
                "parameters": unique_parameters(model), "stack": stack, "perplexity": found, "seconds": seconds,
            }  # fmt: skip
            runs = write_run(setting, key, runs[key])
            print(f"{key}: perplexity {found:.2f}, {seconds:.0f} s", flush=True)
    draw(runs, setting)


def read_runs(setting: str) -> dict[str, dict[str, Any]]:
    """What is measured in one setting."""
    return (json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {}).get(setting, {})


def write_run(setting: str, key: str, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Add a run to the file, which other starts of the program may have added to; all of its setting."""
    kept = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else {}
    kept.setdefault(setting, {})[key] = run
    RESULTS.mkdir(exist_ok=True)
    partial = ROWS.with_suffix(".partial")
    partial.write_text(json.dumps(kept), encoding="utf-8")
    os.replace(partial, ROWS)
    return kept[setting]


def draw(runs: dict[str, dict[str, Any]], setting: str) -> None:
    """Write results and table."""
    lines = [
        "| map | layers | width | stored in layers | stored in all | perplexity, median | lowest | highest | seeds |",
        "|---" * 9 + "|",
    ]
    medians = {}
    for name in MAPS:
        own = [run for run in runs.values() if run["map"] == name]
        if not own:
            continue  # another start of the program has not come to it
        values = [run["perplexity"] for run in own]
        medians[name] = statistics.median(values)
        one = own[0]
        lines.append(
            f"| {name} | {one['layers']} | {one['width']} | {one['stack']:,} | {one['parameters']:,} | "
            f"{medians[name]:.2f} | {min(values):.2f} | {max(values):.2f} | {len(own)} |"
        )
    lines += [
        "", f"{setting}, batches of {BATCH} × 64 tokens, {VOCABULARY:,} pieces, "
        "no dropout; perplexity of hidden tokens of WikiText-2's validation text.", "",
    ]  # fmt: skip
    checks = [
        check(f"perplexity of {name} less that of {than} (the paper: below 0)", medians[name] - medians[than], 0.0,
              at_least=False)
        for name in ("sequence", "cycle", "cycle_rev") for than in ("unshared", "all")
        if {name, than} <= medians.keys()
    ]  # fmt: skip
    extra = {"setting": setting, "runs": runs}
    publish_checks("shared_layers_scratch", "Maps of shared layers, trained from scratch", checks, extra, lines)


if __name__ == "__main__":
    main()
