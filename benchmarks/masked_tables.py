"""Initial pseudo-perplexity of a masked language model whose table is compressed, without training after it.

all-MiniLM-L6-v2 has no head for words, so one is trained first on WikiText-2's training text: its body stays frozen,
the head is tied to its table (only the transform before it and the bias learn). Then the table is replaced, for look-up
and head alike, and WikiText-2's validation text is foretold.

    python benchmarks/masked_tables.py [--steps 1500]

The trained head and every row are kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Bench, check, publish_checks
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import BertForMaskedLM

import fewfold
from fewfold import Budget, EmbeddingAutoencoder, LowRank, SubvectorCodes
from fewfold.calibration.cache import cache_folder
from fewfold.progress import track
from fewfold.tasks.data import calibration_texts, wikitext2
from fewfold.tasks.perplexity import masked_perplexity

TEXT = "mixed-512"
RATIOS = (2.5, 5, 10)
LENGTH, BATCH, MASKED, RATE, SEED = 64, 32, 0.15, 1e-3, 0
JUDGED = {"max_length": 128, "stride": 8, "max_tokens": 8000}
ROWS = RESULTS / "masked_tables.rows.json"


def windows(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Running text in windows of ``LENGTH`` tokens, ``(count, LENGTH)``."""
    ids = [i for text in texts for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    count = len(ids) // (LENGTH - 2)
    body = torch.tensor(ids[: count * (LENGTH - 2)]).view(count, LENGTH - 2)
    first, last = torch.full((count, 1), tokenizer.cls_token_id), torch.full((count, 1), tokenizer.sep_token_id)
    return torch.cat([first, body, last], dim=1)


def with_head(bench: Bench, steps: int) -> BertForMaskedLM:
    """The model with its trained head, out of the cache where it is there."""
    torch.manual_seed(SEED)
    model = BertForMaskedLM(bench.model.config).eval()
    model.bert.load_state_dict(bench.model.state_dict(), strict=False)
    model.tie_weights()
    head = model.cls.predictions.transform
    parts = {**dict(head.named_parameters()), "bias": model.cls.predictions.bias}
    path = Path(cache_folder().parent) / "heads" / f"minilm-{steps}-{LENGTH}-{BATCH}.safetensors"
    if path.exists():
        kept = load_file(path)
        with torch.no_grad():
            for name, tensor in parts.items():
                tensor.copy_(kept[name])
        return model
    rows = windows(bench.tokenizer, wikitext2("train"))
    model.requires_grad_(False)
    for tensor in parts.values():
        tensor.requires_grad_(True)
    optimiser = torch.optim.AdamW(parts.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 100) * max(0.0, 1 - step / steps)
    )
    generator = torch.Generator().manual_seed(SEED)
    for step in track(range(steps), "training the head"):
        ids = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        hidden = torch.rand(ids.shape, generator=generator) < MASKED
        hidden[:, 0] = hidden[:, -1] = False
        inputs = ids.masked_fill(hidden, bench.tokenizer.mask_token_id)
        with torch.no_grad():
            states = model.bert(input_ids=inputs).last_hidden_state[hidden]
        loss = cross_entropy(model.cls(states), ids[hidden])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {float(loss):.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().clone() for name, tensor in parts.items()}, path)
    return model.requires_grad_(True)


def rows_to_measure() -> dict[str, tuple[Any, float | None]]:
    """Configs of the table, and by how much it shrinks."""
    only = {"targets": "embeddings"}
    found: dict[str, tuple[Any, float | None]] = {"dense": (None, None)}
    for ratio in RATIOS:
        found[f"SVD, {ratio:g}×"] = (LowRank(weighting="none", **only), ratio)
        found[f"auto-encoder as published, {ratio:g}×"] = (EmbeddingAutoencoder(solver="published", **only), ratio)
        found[f"direction subspace, {ratio:g}×"] = (EmbeddingAutoencoder(weighting="none", **only), ratio)
        found[f"ours (embedding-default), {ratio:g}×"] = (SubvectorCodes(**only), ratio)
    return found


def main() -> None:
    """Train the head, measure what is missing, draw the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    bench = Bench()
    dense = with_head(bench, steps)
    found: dict[str, dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for name, (config, ratio) in rows_to_measure().items():
        if name in found:
            continue
        model = copy.deepcopy(dense)
        if config is not None:
            fewfold.compress(
                model, config, budget=Budget(bytes=f"1/{ratio} of embeddings"), calibration=calibration_texts(TEXT),
                tokenizer=bench.tokenizer, calibration_name=TEXT,
            )  # fmt: skip
        found[name] = masked_perplexity(model, bench.tokenizer, wikitext2("valid"), **JUDGED).to_dict()
        RESULTS.mkdir(exist_ok=True)
        ROWS.write_text(json.dumps(found), encoding="utf-8")
        print(f"{name}: {found[name]['perplexity']:.2f}", flush=True)
    lines = ["| table | pseudo-perplexity | of the dense one's |", "|---|---|---|"]
    reference = found["dense"]["perplexity"]
    lines += [f"| {n} | {row['perplexity']:.2f} | {row['perplexity'] / reference:.2f}× |" for n, row in found.items()]
    lines += [
        "",
        f"Head: {steps} steps of {BATCH} × {LENGTH} tokens of WikiText-2's training text, body and table frozen. "
        f"Judged on the first {JUDGED['max_tokens']} tokens of its validation text, every {JUDGED['stride']}th masked "
        "at once.",
        "",
    ]
    checks = []
    for ratio in RATIOS:
        rival = found[f"SVD, {ratio:g}×"]["perplexity"]
        for kind in ("auto-encoder as published", "direction subspace"):
            ours = found[f"{kind}, {ratio:g}×"]["perplexity"]
            what = f"{kind} at {ratio:g}×: SVD's log-perplexity minus its own (the paper: above 0)"
            checks.append(check(what, math.log(rival) - math.log(ours), 0.0))
    publish_checks(
        "masked_tables", "Pseudo-perplexity with a compressed table", checks, {"rows": found, "steps": steps}, lines
    )


if __name__ == "__main__":
    main()
