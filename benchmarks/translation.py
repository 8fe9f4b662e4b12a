"""Translation with dense and slim tables: Multi30k, English to German, BLEU on test_2016_flickr.

An LSTM encoder–decoder with attention and a transformer, each with dense tables and with slim ones of a tenth of their
numbers, whose words share sub-vectors at random or with words of like neighbours; the same pairs, vocabulary, steps and
seed. A last row of each is the trained dense model, compressed into no more bytes than a slim one has and not trained
again. BLEU is sacrebleu's on detokenized, cased text.

    python benchmarks/translation.py [row …] [--seed 0] [--threads 2]

About 20 minutes a row on two cores. Every row is written as soon as it is measured, and one that is there is not
measured again; a training that was stopped goes on from its last checkpoint. Trained models are kept below fewfold's
cache.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import BF16, RESULTS, check, publish_checks
from transformers import AutoTokenizer

import fewfold
from fewfold.calibration.cache import cache_folder
from fewfold.measure.parameters import stored_bytes, unique_parameters
from fewfold.surgery.targets import find_targets
from fewfold.tasks import evaluate
from fewfold.tasks.translation import SlimTables, TranslationTraining, Vocabularies, read_corpus
from fewfold.tasks.translation.batching import collate, encode_pairs
from fewfold.tasks.translation.run import train_and_save
from fewfold.tasks.translation.training import held_out_loss

PAIR, RATIO, POSITIONS, BEAMS, RESAMPLES = "multi30k-en-de", 10, 16, 5, 1000
VOCABULARY, SIZE = 8000, 256
TRAINING: dict[str, dict[str, Any]] = {
    "lstm": {"steps": 3000, "batch_tokens": 1500, "learning_rate": 2e-3, "warmup": 300},
    "transformer": {"steps": 3000, "batch_tokens": 1500, "learning_rate": 2e-3, "warmup": 600},
}
DROPOUT = 0.1
DENSE, SLIM, ALIKE, CODED = "dense", "slim", "slim, by neighbours", "dense, coded to the bytes of slim"
ROWS = {f"{kind}, {made}": (kind, made) for kind in TRAINING for made in (DENSE, SLIM, ALIKE, CODED)}
CALIBRATED = 512  # pairs
FILE = RESULTS / "translation.rows.json"
FLOOR, LOSS = 25.0, 0.03


def folder_of(kind: str, made: str, seed: int) -> Path:
    """Where a row's model lies."""
    return Path(cache_folder().parent) / "translation" / f"{kind}-{made.replace(', ', '-').replace(' ', '-')}-{seed}"


def measure(kind: str, made: str, seed: int) -> dict[str, Any]:
    """Train or compress one row's model, or go on with it, and judge it."""
    folder = folder_of(kind, made, seed)
    found = {"seed": seed, **(code if made == CODED else train)(folder, kind, made, seed)}
    model, tokenizer = fewfold.load(folder), AutoTokenizer.from_pretrained(folder)
    tables = [target for target in find_targets(model) if target.kind == "embedding" and target.refusal is None]
    found |= {
        "parameters": unique_parameters(model), "bytes": stored_bytes(model),
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
    return found


def train(folder: Path, kind: str, made: str, seed: int) -> dict[str, Any]:
    """Train a model, unless its folder is there."""
    settings = TranslationTraining(
        **TRAINING[kind], seed=seed, bf16=BF16, neighbours="slim" if made == ALIKE else "none"
    )
    if not (folder / "training.json").is_file():
        train_and_save(
            folder, kind, read_corpus(), read_corpus(split="val"), settings, vocabulary=VOCABULARY, size=SIZE,
            dropout=DROPOUT, slim=SlimTables(RATIO, POSITIONS, seed) if made in (SLIM, ALIKE) else None,
        )  # fmt: skip
    record = json.loads((folder / "training.json").read_text())
    return {name: record[name] for name in ("training", "settings", "data")}


def code(folder: Path, kind: str, made: str, seed: int) -> dict[str, Any]:
    """Compress the trained dense model on pairs that it learned from.

    :raises SystemExit: if the models that it comes from are not there.
    """
    dense, slim = (folder_of(kind, name, seed) for name in (DENSE, ALIKE))
    if not (dense / "training.json").is_file() or not (slim / "training.json").is_file():
        raise SystemExit(f"{kind}, {made} needs the dense and the slim model: measure those rows first")
    model, vocabularies = fewfold.load(dense), Vocabularies.of(AutoTokenizer.from_pretrained(dense))
    longest, fill = TranslationTraining().max_length, (vocabularies.source.pad_token_id,) * 2
    pairs = encode_pairs(vocabularies, read_corpus(), longest)[:CALIBRATED]
    batches = [
        collate(pairs[place : place + 8], fill, model.config.decoder_start_token_id)
        for place in range(0, CALIBRATED, 8)
    ]
    for batch in batches:
        del batch["labels"]
    wanted = stored_bytes(fewfold.load(slim))
    start = time.perf_counter()
    model = fewfold.compress(model, "codes-default", budget=f"bytes={wanted}", calibration=batches)
    seconds = time.perf_counter() - start
    held_out = encode_pairs(vocabularies, read_corpus(split="val"), longest)
    loss = held_out_loss(model, vocabularies, held_out, TRAINING[kind]["batch_tokens"])
    fewfold.save(model, folder, tokenizer=vocabularies)
    return {"training": {"seconds": seconds, "held_out": [{"loss": loss}]}}


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
    rows = {name: rows[name] for name in ROWS if name in rows}
    lines = [
        f"| model | BLEU greedy | BLEU beam {BEAMS} | held-out loss | parameters | bytes | table numbers | table bytes "
        "| training tokens/s | greedy tokens/s | minutes |",
        "|---" * 11 + "|",
    ]
    for name, runs in rows.items():
        cells = [name, bleu_text(runs, "greedy"), bleu_text(runs, "beam")]
        cells.append(f"{median([run['training']['held_out'][-1]['loss'] for run in runs]):.3f}")
        cells += [f"{runs[0][key]:,}" for key in ("parameters", "bytes", "table_numbers", "table_bytes")]
        speeds = [run["training"]["tokens_a_second"] for run in runs if "tokens_a_second" in run["training"]]
        cells.append(f"{median(speeds):,.0f}" if speeds else "not trained")
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
            f"{chosen['learning_rate']:g}, cosine; dropout {DROPOUT}, joint vocabulary of {VOCABULARY:,}, size {SIZE}, "
            f"{POSITIONS} sub-vectors a word in slim tables."
            for kind, chosen in TRAINING.items()
            if any(name.startswith(kind) for name in rows)
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
        found = {
            made: [run["greedy"]["value"] for run in rows.get(f"{kind}, {made}", [])]
            for made in (DENSE, SLIM, ALIKE, CODED)
        }
        if not found[DENSE]:
            continue
        claims.append(check(f"{kind}, dense: BLEU greedy", median(found[DENSE]), FLOOR, digits=2))
        slim = f"slim at 1/{RATIO}"
        for made, what in (
            (SLIM, slim),
            (ALIKE, f"{slim}, by neighbours"),
            (CODED, "the dense model coded to slim's bytes"),
        ):
            if found[made]:
                share = median(found[made]) / max(median(found[DENSE]), 1e-9)
                claims.append(check(f"{kind}: {what} over dense, BLEU greedy", share, 1 - LOSS))
    return claims


if __name__ == "__main__":
    main()
