"""Translation with dense and slim tables: Multi30k, English to German, BLEU on test_2016_flickr.

An LSTM encoder–decoder with attention and a transformer, each with dense tables and with slim ones of a tenth of their
numbers; the same pairs, vocabulary, steps and seed. BLEU is sacrebleu's on detokenized, cased text.

    python benchmarks/translation.py [row …] [--seed 0] [--threads 2]

About 20 minutes a row on two cores. Every row is written as soon as it is measured, and one that is there is not
measured again; a training that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from common import BF16, RESULTS, check, publish_checks

import fewfold
from fewfold.calibration.cache import cache_folder
from fewfold.measure.parameters import stored_bytes
from fewfold.surgery.targets import find_targets
from fewfold.tasks import evaluate
from fewfold.tasks.translation import SlimTables, TranslationTraining, read_corpus
from fewfold.tasks.translation.run import train_and_save

PAIR, RATIO, POSITIONS, BEAMS, RESAMPLES = "multi30k-en-de", 10, 8, 5, 1000
VOCABULARY, SIZE = 8000, 256
TRAINING: dict[str, dict[str, Any]] = {
    "lstm": {"steps": 3000, "batch_tokens": 1500, "learning_rate": 1e-3, "warmup": 300},
    "transformer": {"steps": 3000, "batch_tokens": 1500, "learning_rate": 1e-3, "warmup": 600},
}
ROWS = {f"{kind}, {tables}": (kind, tables == "slim") for kind in TRAINING for tables in ("dense", "slim")}
FILE = RESULTS / "translation.rows.json"
FLOOR, LOSS = 25.0, 0.03


def measure(kind: str, slim: bool, seed: int) -> dict[str, Any]:
    """Train one row's model, or go on with it, and judge it."""
    folder = Path(cache_folder().parent) / "translation" / f"{kind}-{'slim' if slim else 'dense'}-{seed}"
    settings = TranslationTraining(**TRAINING[kind], seed=seed, bf16=BF16)
    if not (folder / "training.json").is_file():
        train_and_save(
            folder, kind, read_corpus(), read_corpus(split="val"), settings, vocabulary=VOCABULARY, size=SIZE,
            slim=SlimTables(RATIO, POSITIONS, seed) if slim else None,
        )  # fmt: skip
    from transformers import AutoTokenizer

    record = json.loads((folder / "training.json").read_text())
    model, tokenizer = fewfold.load(folder), AutoTokenizer.from_pretrained(folder)
    tables = [target for target in find_targets(model) if target.kind == "embedding" and target.refusal is None]
    found: dict[str, Any] = {
        "seed": seed, "training": record["training"], "settings": record["settings"], "data": record["data"],
        "parameters": record["model"]["parameters"], "bytes": record["model"]["bytes"],
        "table_numbers": sum(sum(p.numel() for p in model.get_submodule(t.module).parameters()) for t in tables),
        "table_bytes": sum(stored_bytes(model.get_submodule(target.module)) for target in tables),
    }  # fmt: skip
    for name, beams in (("greedy", 1), ("beam", BEAMS)):
        judged = evaluate(model, PAIR, tokenizer=tokenizer, beams=beams, resamples=RESAMPLES).to_dict()
        run = judged["runs"][0]
        found[name] = {
            **run["metrics"]["bleu"], "signature": judged["data"]["signature"],
            "tokens_a_second": run["evaluation"]["tokens"] / run["evaluation"]["seconds"],
        }  # fmt: skip
    shutil.rmtree(folder)
    return found


def measured() -> dict[str, list[dict[str, Any]]]:
    """The runs of every row that is there, in the order of `ROWS`."""
    there = json.loads(FILE.read_text()) if FILE.exists() else {}
    return {name: there[name] for name in ROWS if name in there}


def main() -> None:
    """Measure what is missing, then draw the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="which rows; all where none is named")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measured()
    for name in options.rows or ROWS:
        if any(row["seed"] == options.seed for row in rows.get(name, [])):
            continue
        row = {"threads": options.threads, **measure(*ROWS[name], options.seed)}
        rows = measured()  # another process may have added rows meanwhile
        rows.setdefault(name, []).append(row)
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(rows) + "\n", encoding="utf-8")
        print(name, row["greedy"]["value"], row["beam"]["value"], flush=True)
    draw(rows)


def median(values: list[float]) -> float:
    """The middle one."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def draw(rows: dict[str, list[dict[str, Any]]]) -> None:
    """The table and the claims of what is measured so far."""
    lines = [
        f"| model | BLEU greedy | BLEU beam {BEAMS} | held-out loss | parameters | bytes | table numbers | table bytes "
        "| training tokens/s | greedy tokens/s | minutes |",
        "|---" * 11 + "|",
    ]
    for name, runs in rows.items():
        cells = [name, bleu_text(runs, "greedy"), bleu_text(runs, "beam")]
        cells.append(f"{median([run['training']['held_out'][-1]['loss'] for run in runs]):.3f}")
        cells += [f"{runs[0][key]:,}" for key in ("parameters", "bytes", "table_numbers", "table_bytes")]
        cells.append(f"{median([run['training']['tokens_a_second'] for run in runs]):,.0f}")
        cells.append(f"{median([run['greedy']['tokens_a_second'] for run in runs]):,.0f}")
        cells.append(f"{median([run['training']['seconds'] / 60 for run in runs]):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    some = next(iter(rows.values()))[0] if rows else None
    if some is not None:
        lines += [
            "",
            f"{some['greedy']['signature']}; {some['threads']} threads; medians over seeds."
            + (" Trained in bfloat16." if some["settings"]["bf16"] else ""),
        ]
        lines += [
            f"{kind}: {chosen['steps']:,} steps of at most {chosen['batch_tokens']:,} tokens, peak learning rate "
            f"{chosen['learning_rate']:g}, cosine; joint vocabulary of {VOCABULARY:,}, size {SIZE}."
            for kind, chosen in TRAINING.items()
        ]
    publish_checks("translation", "Translation with slim tables", claims_of(rows), {"rows": rows}, [*lines, ""])


def bleu_text(runs: list[dict[str, Any]], search: str) -> str:
    """One seed: the value and its interval; several: the median and the spread."""
    values = [run[search]["value"] for run in runs]
    if len(runs) == 1:
        return "{value:.2f} ({low:.2f}–{high:.2f})".format(**runs[0][search])
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f} over {len(values)} seeds)"


def claims_of(rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What was asked for, of the rows that are there."""
    claims = []
    for kind in TRAINING:
        dense, slim = (
            [run["greedy"]["value"] for run in rows.get(f"{kind}, {tables}", [])] for tables in ("dense", "slim")
        )
        if dense:
            claims.append(check(f"{kind}, dense: BLEU greedy", median(dense), FLOOR, digits=2))
        if dense and slim:
            share = median(slim) / max(median(dense), 1e-9)
            claims.append(check(f"{kind}: slim at 1/{RATIO} over dense, BLEU greedy", share, 1 - LOSS))
    return claims


if __name__ == "__main__":
    main()
