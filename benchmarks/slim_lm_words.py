"""Word language models with slim tables against dense ones and a Kneser-Ney 5-gram, on two corpora.

An LSTM of two layers of 256 on the 10,000 most frequent words of WikiText-2 and of a slice of novels. Every row takes
the same steps over the same text with the same settings and seed:

- a modified, interpolated Kneser-Ney 5-gram over the same words, `<eos>` and `<unk>` foretold like any other;
- the dense LSTM, and the LSTM with a slim input table and output layer of 1/10 and of 1/50 of their numbers;
- the LSTM with a slim input table of 1/50 alone;
- slim ones whose words share sub-vectors with words of like neighbours instead of with any, and dense ones, of full
  width and narrow, whose tables begin at the same vectors of neighbours;
- dense LSTMs that are narrow enough to have the bytes of the slim ones;
- the trained dense LSTM, its tables and matrices coded into no more than the bytes of the slim ones, not trained again.

    python benchmarks/slim_lm_words.py [--corpora wikitext-2 novels] [--rows dense ...] [--epochs 4] [--minutes 60]

Finished rows and trained models are kept, and a row that is stopped goes on from its last checkpoint: the program can
be killed at any time and started again, with other rows too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import BF16, RESULTS, check, claims, publish_checks
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from word_corpora import CORPORA, read

import fewfold
from fewfold.calibration.cache import cache_folder
from fewfold.lm.config import LMTraining
from fewfold.lm.corpus import Corpus
from fewfold.lm.generate import generate
from fewfold.lm.judge import judge
from fewfold.lm.kneser_ney import KneserNey
from fewfold.lm.run import train_lm
from fewfold.lm.saving import save_lm
from fewfold.measure.disk import file_bytes
from fewfold.measure.parameters import unique_parameters
from fewfold.models import SlimLMConfig, SlimLMForCausalLM
from fewfold.training.neighbours import Tables

NAME = "slim_lm_words"
ROWS = RESULTS / f"{NAME}.rows.json"
VOCABULARY, HIDDEN, LAYERS, POSITIONS, ORDER = 10_000, 256, 2, 8, 5
TRAINING = {"batch": 20, "bptt": 35, "learning_rate": 2e-3, "clip": 0.5, "checkpoint_minutes": 2.0, "bf16": BF16}
DROPOUT = 0.2
CALIBRATED, CALIBRATIONS = 64, 512  # tokens of a text, texts
WRITTEN, ROUNDS, PROMPT = 100, 5, "the"


@dataclass(frozen=True)
class Row:
    """One contender: how its tables are made.

    :param slim: shares of the dense tables' numbers, of input and output; None for a dense one.
    :param positions: sub-vectors of a word in slim tables.
    :param neighbours: tables that begin at words' neighbours, as of `LMTraining`.
    :param like: a row whose bytes a narrower dense model has.
    :param coded: a row whose bytes the dense model is coded into.
    """

    name: str
    slim: tuple[int | None, int | None] = (None, None)
    neighbours: Tables = "none"
    positions: int = POSITIONS
    like: str = ""
    coded: str = ""


MODELS = {
    row.name: row
    for row in (
        Row("dense"),
        Row("slim 1/10", (10, 10)),
        Row("dense, bytes of slim 1/10", like="slim 1/10"),
        Row("slim 1/50", (50, 50)),
        Row("slim input 1/50", (50, None)),
        Row("dense, bytes of slim 1/50", like="slim 1/50"),
        Row("dense, begun at neighbours", neighbours="all"),
        Row("dense, bytes of slim 1/10, begun at neighbours", neighbours="all", like="slim 1/10"),
        Row("slim 1/10, by neighbours", (10, 10), "slim"),
        Row("slim 1/10, by neighbours, 16 a word", (10, 10), "slim", 16),
        Row("slim 1/50, by neighbours", (50, 50), "slim"),
        Row("slim input 1/50, by neighbours", (50, None), "slim"),
        Row("dense, coded to the bytes of slim 1/10", coded="slim 1/10"),
        Row("dense, coded to the bytes of slim 1/50", coded="slim 1/50"),
    )
}
BASELINE, BEGUN, ALIKE = f"Kneser-Ney {ORDER}-gram", "dense, begun at neighbours", "slim 1/10, by neighbours"
NARROW = "dense, bytes of slim 1/10"


def config_of(row: Row) -> SlimLMConfig:
    """The model of a row."""
    hidden = width_like(MODELS[row.like]) if row.like else HIDDEN
    codes = [
        None if share is None else {"positions": row.positions, "ratio": share, "seed": seed}
        for seed, share in enumerate(row.slim)
    ]
    return SlimLMConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_layers=LAYERS, input_codes=codes[0], output_codes=codes[1],
        input_dropout=DROPOUT, hidden_dropout=DROPOUT, output_dropout=DROPOUT, eos_token_id=1,
        loss_chunk=TRAINING["batch"] * TRAINING["bptt"] // 2,
    )  # fmt: skip


def width_like(row: Row) -> int:
    """The widest dense model that is no larger than a slim one, codes counted: 4 bytes a number."""
    slim = config_of(row)
    numbers = unique_parameters(SlimLMForCausalLM(slim))
    for share in (slim.input_codes, slim.output_codes):
        bits = (share["words"] - 1).bit_length()
        numbers += VOCABULARY * row.positions * bits / 32
    width = 1
    while 2 * VOCABULARY * (width + 1) + VOCABULARY + LAYERS * (8 * (width + 1) ** 2 + 4 * (width + 1)) <= numbers:
        width += 1
    return width


class OutOfTime(Exception):
    """The minutes that were asked for are over."""


class Bench:
    """Rows measured so far, and where models and checkpoints are kept."""

    def __init__(self, epochs: float, seed: int, minutes: float | None, work: Path, limit: int | None) -> None:
        self.training = LMTraining(**TRAINING, epochs=epochs, seed=seed)
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.limit = limit
        self.work = work / hashlib.blake2b(self.key("", "").encode(), digest_size=6).hexdigest()
        self.file = self.work / ROWS.name if limit else ROWS
        self.rows: dict[str, dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def key(self, corpus: str, row: str) -> str:
        """What a row is kept under."""
        settings = {} if row == BASELINE else {**self.training.of_the_run(), "dropout": DROPOUT, "hidden": HIDDEN}
        settings.pop("bf16", None)  # rows say it of themselves
        settings.pop("neighbours", None)  # in the row's name
        return json.dumps([corpus, row, VOCABULARY, settings, *([self.limit] if self.limit else [])])

    def found(self, corpus: str, row: str) -> dict[str, Any] | None:
        """A row, if it was measured."""
        return self.rows.get(self.key(corpus, row))

    def keep(self, corpus: str, row: str, measured: dict[str, Any]) -> None:
        """Write a row down."""
        # Another process may have added rows meanwhile.
        there = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.rows = {**there, self.key(corpus, row): measured}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.file)
        print(f"{corpus}, {row}: valid {measured['valid']:.2f}, test {measured['test']:.2f}", flush=True)

    def folder(self, corpus: str, row: str) -> Path:
        """Where a trained model lies."""
        return self.work / corpus / re.sub(r"\W+", "-", row)

    def baseline(self, corpus: str, texts: Corpus) -> None:
        """Count n-grams."""
        start = time.perf_counter()
        model = KneserNey(texts.train.ids, VOCABULARY, texts.boundary, ORDER)
        seconds = time.perf_counter() - start
        measured = {part: model.perplexity(getattr(texts, part).ids) for part in ("valid", "test")}
        tokens = {part: len(getattr(texts, part).ids) for part in ("train", "valid", "test")}
        measured |= {"ngrams": len(model), "seconds": seconds, "tokens": tokens}
        self.keep(corpus, BASELINE, {**measured, "unknown": texts.test.unknown / tokens["test"]})

    def train(self, corpus: str, row: Row, texts: Corpus) -> None:
        """Train a row's model, or go on with it."""
        folder = self.folder(corpus, row.name)
        checkpoints = folder.with_name(f"{folder.name}.checkpoints")

        def tell(point: dict[str, Any]) -> None:
            if point["kind"] == "valid" or point["step"] % 250 == 0:
                place = f"step {point['step']:,}, {point['seconds'] / 60:.1f} min"
                print(f"{corpus}, {row.name}: {place}, {point['kind']} ppl {point['ppl']:.1f}", flush=True)
            if self.end is not None and time.monotonic() > self.end:
                raise OutOfTime

        training = self.training.model_copy(update={"neighbours": row.neighbours})
        trained = train_lm(config_of(row), texts, training, checkpoints=checkpoints, tell=tell)
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_lm(trained, texts.tokenizer, folder)
        assert trained.valid is not None
        assert trained.test is not None
        self.keep(corpus, row.name, {
            "valid": trained.valid.perplexity, "test": trained.test.perplexity,
            "parameters": unique_parameters(trained.model),
            "bytes": file_bytes(folder), "hidden": trained.model.config.hidden_size, "steps": trained.progress.step,
            "best_step": trained.progress.best_step, "minutes": trained.progress.seconds / 60,
            "tokens_a_second": trained.progress.tokens_a_second, "threads": torch.get_num_threads(),
            "bf16": BF16,
        })  # fmt: skip
        shutil.rmtree(checkpoints, ignore_errors=True)

    def code(self, corpus: str, row: Row, texts: Corpus) -> None:
        """Compress the trained dense model, on texts that it learned from.

        :raises SystemExit: if the rows that it comes from are not there.
        """
        wanted, folder = self.found(corpus, row.coded), self.folder(corpus, row.name)
        if wanted is None or not self.folder(corpus, "dense").is_dir():
            raise SystemExit(f"{row.name} needs dense and {row.coded}: measure those rows first")
        model = AutoModelForCausalLM.from_pretrained(self.folder(corpus, "dense")).eval()
        lines = [
            {"input_ids": torch.from_numpy(texts.train.ids[start : start + CALIBRATED].astype("int64"))[None]}
            for start in range(0, CALIBRATED * CALIBRATIONS, CALIBRATED)
        ]
        start = time.perf_counter()
        model = fewfold.compress(model, "codes-default", budget=f"bytes={wanted['bytes']}", calibration=lines)
        minutes = (time.perf_counter() - start) / 60
        model.save_pretrained(folder)
        texts.tokenizer.save_pretrained(folder)
        judged = {part: judge(model, getattr(texts, part), texts.boundary).perplexity for part in ("valid", "test")}
        self.keep(corpus, row.name, {
            **judged, "parameters": unique_parameters(model), "bytes": file_bytes(folder),
            "hidden": model.config.hidden_size, "minutes": minutes, "bf16": False,
        })  # fmt: skip

    def speeds(self, corpus: str, names: list[str]) -> dict[str, dict[str, float]]:
        """Tokens a second that the models write, greedily, one text at a time, in turns."""
        folders = {name: folder for name in names if (folder := self.folder(corpus, name)).is_dir()}
        models = {name: AutoModelForCausalLM.from_pretrained(folder) for name, folder in folders.items()}
        tokenizers = {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for number in range(ROUNDS + 1):
            for name, model in models.items():
                taken = generate(model, tokenizers[name], PROMPT, WRITTEN, temperature=0)[1]
                if number:  # the first round warms up
                    seconds[name].append(taken)
        return {
            name: {"median": 1 / statistics.median(s), "low": 1 / max(s), "high": 1 / min(s)}
            for name, s in seconds.items()
        }


def table(bench: Bench, corpus: str, speeds: dict[str, dict[str, float]]) -> list[str]:
    """A corpus's rows as they are now."""
    dense, counted = bench.found(corpus, "dense"), bench.found(corpus, BASELINE)
    sizes = ""
    if counted is not None:
        tokens = ", ".join(f"{part} {number:,}" for part, number in counted["tokens"].items())
        sizes = f"Tokens: {tokens}; {counted['unknown']:.1%} of the test text is `<unk>`."
    found = [
        f"## {CORPORA[corpus]}, the {VOCABULARY:,} most frequent words", "", sizes, "",
        "| model | width | parameters, M | MB on disk | valid ppl | test ppl | dense's test ppl / own "
        "| trained in | at, tokens/s | writes, tokens/s (low…high) |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]  # fmt: skip
    for name in (BASELINE, *MODELS):
        row = bench.found(corpus, name)
        if row is None:
            continue
        against = "" if dense is None else f"{dense['test'] / row['test']:.3f}"
        if name == BASELINE:
            sizes = f"– | {row['ngrams'] / 1e6:.2f} M n-grams | –"
            speed = "– | – | –"
        else:
            sizes = f"{row['hidden']} | {row['parameters'] / 1e6:.2f} | {row['bytes'] / 1e6:.2f}"
            wrote = speeds.get(name)
            shown = "–" if wrote is None else f"{wrote['median']:,.0f} ({wrote['low']:,.0f}…{wrote['high']:,.0f})"
            dtype = "bf16" if row["bf16"] else "fp32"
            trained = f"{dtype} | {row['tokens_a_second']:,.0f}" if "steps" in row else "not trained | –"
            speed = f"{trained} | {shown}"
        found.append(f"| {name} | {sizes} | {row['valid']:.2f} | {row['test']:.2f} | {against} | {speed} |")
    return [*found, ""]


def checks_of(bench: Bench, corpus: str) -> list[dict[str, Any]]:
    """The claims that the rows at hand decide, on the test text."""
    ppl = {name: (bench.found(corpus, name) or {}).get("test") for name in (BASELINE, *MODELS)}
    asked_for = (
        (f"the {ORDER}-gram's perplexity over dense's", BASELINE, "dense", 1.05, True),
        ("slim 1/10's perplexity over dense's", "slim 1/10", "dense", 1.05, False),
        ("the dense model of its bytes over slim 1/10", NARROW, "slim 1/10", 1.02, True),
        ("the same, both begun at neighbours", f"{NARROW}, begun at neighbours", ALIKE, 1.02, True),
        ("slim input 1/50's perplexity over dense's", "slim input 1/50", "dense", 1.02, False),
        ("slim 1/10 by neighbours, over dense", ALIKE, "dense", 1.05, False),
        ("slim 1/10 by neighbours, over dense, 16 a word", f"{ALIKE}, 16 a word", "dense", 1.05, False),
        ("slim 1/10 over dense, both begun at neighbours", ALIKE, BEGUN, 1.05, False),
        ("slim input 1/50 by neighbours, over dense", "slim input 1/50, by neighbours", "dense", 1.02, False),
        ("dense coded like slim 1/10, over dense", "dense, coded to the bytes of slim 1/10", "dense", 1.05, False),
    )  # fmt: skip
    return [
        check(f"{corpus}: {what}", ppl[above] / ppl[below], asked, at_least)
        for what, above, below, asked, at_least in asked_for
        if ppl[above] is not None and ppl[below] is not None
    ]


def report(bench: Bench) -> None:
    """Measure the speed of writing, draw tables and claims."""
    text, checks, extra = [], [], {}
    for corpus in CORPORA:
        measured = {name: row for name in (BASELINE, *MODELS) if (row := bench.found(corpus, name)) is not None}
        if not measured:
            continue
        extra[corpus] = {"rows": measured, "writes": bench.speeds(corpus, [row for row in MODELS if row in measured])}
        text += table(bench, corpus, extra[corpus]["writes"])
        checks += checks_of(bench, corpus)
    settings = bench.training
    text += [
        f"LSTM of {LAYERS} layers, {settings.epochs:g} epochs of {settings.batch} streams × {settings.bptt} tokens, "
        f"{settings.optimizer} with a peak rate of {settings.learning_rate:g}, {settings.schedule} schedule, dropout "
        f"{DROPOUT}, gradients cut to a norm of {settings.clip}, seed {settings.seed}: the same for every row. Slim "
        f"tables have {POSITIONS} sub-vectors a word unless said; codes count in the bytes. The best weights on the "
        "valid text are judged, the state carried through each text. Training speed is that of the row's run; texts "
        f"are written greedily, {WRITTEN} tokens at a time, the models in turns, median of {ROUNDS}.",
        "",
    ]
    if bench.limit:
        print("\n".join([*text, *claims(checks)]))
        return
    publish_checks(NAME, "Word language models with slim tables", checks, {"corpora": extra}, text)


def main() -> None:
    """Measure the rows that are missing, then draw the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpora", nargs="+", choices=list(CORPORA), default=list(CORPORA))
    parser.add_argument("--rows", nargs="+", choices=[BASELINE, *MODELS], default=[BASELINE, *MODELS])
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop after so many; start again to go on")
    parser.add_argument("--work", type=Path, default=Path(cache_folder()).parent / NAME, help="models and checkpoints")
    parser.add_argument("--limit", type=int, help="lines of each text, to try the program: nothing is published")
    asked = parser.parse_args()
    logging.disable_progress_bar()
    bench = Bench(asked.epochs, asked.seed, asked.minutes, asked.work, asked.limit)
    try:
        for corpus in asked.corpora:
            missing = [name for name in asked.rows if bench.found(corpus, name) is None]
            texts = read(corpus, VOCABULARY, asked.limit) if missing else None
            for name in missing:
                assert texts is not None
                if name == BASELINE:
                    bench.baseline(corpus, texts)
                elif MODELS[name].coded:
                    bench.code(corpus, MODELS[name], texts)
                else:
                    bench.train(corpus, MODELS[name], texts)
    except OutOfTime:
        print("the minutes are over; start again to go on", flush=True)
    report(bench)


if __name__ == "__main__":
    main()
