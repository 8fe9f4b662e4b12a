"""What the ShareBERT publication leaves open, decided by short trainings: one choice at a time beside our defaults.

A ShareBERT of four layers of 256 (table 8,000 × 64) learns masked words on novels and SST-2's sentences, 1,500 steps of
32 windows of 64 tokens; it is judged on other novels. Ratios of perplexity are paired: both models foretell the same
hidden words, and the bootstrap draws windows for both together. Seeds 0 and 1 are run unless `--only '*seed 0'` asks
for one; what is recorded is of seed 0 alone.

    python benchmarks/embedding_sharing_tasks.py --choices [--only 'default*' '*seed 1'] [--list] [--scale 1]

About 7 minutes a training on two cores, 18 trainings. One is written as soon as it is done; one that was killed goes on
from its last checkpoint. Below `--scale 0.1` the data is cut too: a try of the program, give `--results`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import common
import numpy as np
import torch
from common import publish_checks
from embedding_sharing_masked import LENGTH, TRAINING, masked_units, text_files
from embedding_sharing_parts import Measure, Wish, add_row, loaded, perplexity, read_rows

from fewfold.measure.parameters import unique_parameters
from fewfold.pretrain.config import PretrainConfig
from fewfold.pretrain.run import pretrain_and_save

STEPS, SEEDS = 1500, (0, 1)
SIZE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "factor_size": 64,
    "use_pooler": False, "sparse_prediction": True,
}  # fmt: skip
DEFAULT: dict[str, Any] = {"bias_init": "zeros", "attention_scale_power": 2 / 3, "mlm_head": "factored", "share": "all"}
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "fresh numbers of deviation 0.02 (published)": {"initializer_range": 0.02},
    "biases normal, variance 1 (published)": {"bias_init": "normal"},
    "scores over the root of the head size": {"attention_scale_power": 0.5},
    "head of its own (published)": {"mlm_head": "untied"},
    "own slots for each pair of layers": {"share": 2},
    "own slots for each layer": {"share": "none"},
    "head's bias from 0 (published)": {"output_bias": "zeros"},
    "as published in all": {
        "bias_init": "normal",
        "mlm_head": "untied",
        "initializer_range": 0.02,
        "output_bias": "zeros",
    },
}
RATIO = Measure("masked perplexity", perplexity, more_is_better=True)  # as it is: below 1 is better


def wish_of(place: int, seed: int, scale: float) -> Wish:
    """Where a training stands."""
    return Wish("choices", str(place), seed, scale)


def measure(scale: float, threads: int, only_list: bool = False, only: Sequence[str] = ("*",)) -> None:
    """Train what is missing, then draw the table.

    :param only: patterns for names such as "default, seed 0".
    :raises SystemExit: for a pattern that names none.
    """
    torch.set_num_threads(threads)
    file = common.RESULTS / "embedding_sharing_choices.rows.json"
    wanted = {f"{name}, seed {seed}": (place, name, seed) for seed in SEEDS for place, name in enumerate(CHOICES)}
    for pattern in only:
        if not any(fnmatch(title, pattern) for title in wanted):
            raise SystemExit(f"--only {pattern}: no such training; there are {'; '.join(wanted)}")
    for title, (place, name, seed) in wanted.items():
        if not any(fnmatch(title, pattern) for pattern in only):
            continue
        wish, key, measured = wish_of(place, seed, scale), f"{name} | {scale:g} | {seed}", read_rows(file)
        if only_list:
            print(f"{title}: " + ("measured" if key in measured else f"about {7 * scale:.0f} min"))
        elif key not in measured:
            cell = train(wish, CHOICES[name])
            add_row(file, key, cell)
            shutil.rmtree(wish.folder, ignore_errors=True)
            print(f"{key}: {RATIO.interval(cell['units'])[0]:.2f}", flush=True)
    if not only_list:
        draw(read_rows(file), scale)


def train(wish: Wish, changes: dict[str, Any]) -> dict[str, Any]:
    """One training: numbers of the model, and loss and hidden words of each held-out window."""
    saved, model = wish.folder / "mlm", {**SIZE, **DEFAULT, **changes}
    config = PretrainConfig.make({
        "family": "sharebert", "output_bias": model.pop("output_bias", "frequencies"), "model": model,
        "length": LENGTH, "vocabulary": 500 if wish.trial else 8000,
        "training": {**TRAINING, "steps": wish.steps(STEPS), "seed": wish.seed},
    })  # fmt: skip
    if not (saved / "training.json").is_file():
        learned, judged = text_files(wish)
        pretrain_and_save(saved, config, [learned], [judged])
    model, tokenizer = loaded(saved)
    return {"parameters": unique_parameters(model), "units": masked_units(model, tokenizer, wish)}


def draw(kept: dict[str, Any], scale: float) -> None:
    """The table, and what it says of the defaults."""
    rows, said, base = [], [], kept.get(f"default | {scale:g} | {SEEDS[0]}", {}).get("parameters", 0)
    lines = [
        "| choice | parameters | more than default | masked perplexity, by seed | over default's | 95 % interval | |",
        "|---" * 7 + "|",
    ]
    for name in CHOICES:
        seeds = [s for s in SEEDS if {f"{name} | {scale:g} | {s}", f"default | {scale:g} | {s}"} <= set(kept)]
        units = [np.asarray(kept[f"{name} | {scale:g} | {seed}"]["units"]) for seed in seeds]
        others = [np.asarray(kept[f"default | {scale:g} | {seed}"]["units"]) for seed in seeds]
        if not units:
            continue
        # a window's row is that of all seeds together, so that windows and not trainings are drawn
        ratio = RATIO.ratio(np.sum(others, axis=0), np.sum(units, axis=0))
        better, worse = ratio[2] < 1, ratio[1] > 1
        verdict = "better" if better else "worse" if worse else "undecided"
        count = kept[f"{name} | {scale:g} | {seeds[0]}"]["parameters"]
        row = [
            name, f"{count:,}", f"{count - base:+,}", ", ".join(f"{RATIO.interval(one)[0]:.2f}" for one in units),
            *(["", "", ""] if name == "default" else [f"{ratio[0]:.3f}", f"{ratio[1]:.3f}–{ratio[2]:.3f}", verdict]),
        ]  # fmt: skip
        rows.append({"choice": name, "changes": CHOICES[name], "seeds": seeds, "row": row})
        lines.append(f"| {' | '.join(row)} |")
        if name != "default" and better:
            said.append(f"- {name}: better" + (f", for {count - base:,} numbers more" if count > base else ""))
    lines += [
        "", f"{max(4, round(STEPS * scale))} steps a training. Ratios are of all seeds together; their intervals are "
        "over windows of text, not over seeds.", "", "Choices that beat the default:", "",
        *(said or ["- none: the defaults stay"]), "",
    ]  # fmt: skip
    publish_checks("embedding_sharing_choices", "What ShareBERT leaves open", [], {"rows": rows}, lines)
