"""``fewfold translation``: train translation models from scratch, and translate with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli.console import (
    AsJson,
    Force,
    Fresh,
    Neighbours,
    Verbose,
    count,
    err,
    megabytes,
    out,
    print_json,
    table,
    working,
)
from fewfold_cli.files import check_files, check_output, existing_model

TRAIN_EXAMPLE = (
    "Example: fewfold translation train ./mt --model lstm --slim 10, "
    "then fewfold evaluate ./mt --task multi30k-en-de --beams 5"
)
RUN_EXAMPLE = "Example: fewfold translation run ./mt sentences.en --beams 5 --out sentences.de"

app = typer.Typer(help="Train translation models from scratch, and translate with them.", no_args_is_help=True)


@app.command("train", epilog=TRAIN_EXAMPLE)
def train(
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT")],
    model: Annotated[str, typer.Option("--model", "-m", help="lstm, transformer or mask-predict.")] = "transformer",
    pair: Annotated[str, typer.Option(help="multi30k-en-de or multi30k-de-en.")] = "multi30k-en-de",
    files: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Own parallel text instead: source file, target file.")
    ] = None,
    held_out: Annotated[
        tuple[Path, Path] | None, typer.Option(help="With --files: pairs to measure the loss on meanwhile.")
    ] = None,
    slim: Annotated[
        float | None, typer.Option(min=1, help="Slim tables: so many times fewer numbers than dense ones.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Methods to build the model from: a recipe's YAML file or a preset's name.")
    ] = None,
    positions: Annotated[int, typer.Option(min=1, help="Slim tables: sub-vectors of a word.")] = 8,
    neighbours: Neighbours = "slim",
    vocabulary: Annotated[int, typer.Option(help="Entries of the subword vocabulary (of each, if separate).")] = 8000,
    separate: Annotated[bool, typer.Option("--separate", help="A vocabulary for each language.")] = False,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Lower-case all text.")] = False,
    size: Annotated[int, typer.Option(help="Numbers of a word's vector.")] = 256,
    layers: Annotated[int | None, typer.Option(min=1, help="Of encoder and decoder each (lstm 1, else 3).")] = None,
    dropout: Annotated[float, typer.Option(min=0, max=0.9)] = 0.3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 3000,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a batch's larger side.")] = 2000,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 1e-3,
    warmup: Annotated[int, typer.Option(min=0, help="Steps in which the learning rate rises.")] = 300,
    schedule: Annotated[str, typer.Option(help="cosine or inverse_sqrt.")] = "cosine",
    limit: Annotated[int | None, typer.Option(min=1, help="Train on the first so many pairs.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, codes, batches and dropout.")] = 0,
    checkpoint_minutes: Annotated[float, typer.Option(min=0, help="A killed run loses at most so much.")] = 3.0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Autocast to bfloat16, where the hardware has it.")] = False,
    fresh: Fresh = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a translation model from scratch, with dense or slim tables.

    OUT gets the model with its tokenizer, training.json with everything that happened, and training.png with the loss
    curve. A run that was stopped goes on when the same command is given again.
    """
    with working(verbose):
        import fewfold
        from fewfold.tasks.translation import LANGUAGE_PAIRS, SlimTables, TranslationTraining, read_corpus, read_files
        from fewfold.tasks.translation.run import train_and_save

        check_output(output, force)
        if files is not None:
            if held_out is None:
                raise fewfold.TaskError("--files needs --held-out SOURCE TARGET: pairs that nothing is learned from")
            corpora = read_files(*files), read_files(*held_out)
        elif pair in LANGUAGE_PAIRS:
            corpora = read_corpus(*LANGUAGE_PAIRS[pair], "train"), read_corpus(*LANGUAGE_PAIRS[pair], "val")
        else:
            raise fewfold.TaskError(f"--pair {pair}: choose one of {', '.join(LANGUAGE_PAIRS)}, or give --files")
        settings = TranslationTraining(
            steps, batch_tokens, learning_rate, schedule, warmup, seed=seed,  # type: ignore[arg-type]
            checkpoint_minutes=checkpoint_minutes, evaluate_steps=max(1, min(500, -(-steps // 4))), bf16=bf16,
            neighbours=neighbours,  # type: ignore[arg-type]
        )  # fmt: skip
        record = train_and_save(
            output, model, corpora[0].first(limit), corpora[1], settings,
            slim=None if slim is None else SlimTables(slim, positions, seed), vocabulary=vocabulary,
            joint=not separate, lowercase=lowercase, size=size, layers=layers, dropout=dropout, recipe=recipe,
            resume=not fresh,
        )  # fmt: skip
        if as_json:
            print_json({"folder": str(output), **record})
            return
        _show(output, record)


@app.command("run", epilog=RUN_EXAMPLE)
def run(
    folder: Annotated[Path, typer.Argument(help="Folder of a translation model.", metavar="DIR")],
    text: Annotated[Path, typer.Argument(help="A text file with a sentence a line.", metavar="FILE")],
    beams: Annotated[int, typer.Option(min=1, help="1 is greedy.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Sentences a batch.")] = 64,
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Write here instead of to stdout.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Translate a text file, sentence by sentence; empty lines stay empty."""
    with working(verbose):
        existing_model(folder)
        check_files(output)
        import fewfold
        from fewfold.tasks.data import lines
        from fewfold.tasks.translation import translate
        from fewfold_cli.files import tokenizer_of

        sentences = [line.strip() for line in lines(text.expanduser())]
        real = [sentence for sentence in sentences if sentence]
        if not real:
            raise fewfold.TaskError(f"{text} holds no sentence: give a file with one a line")
        tokenizer = tokenizer_of(folder)
        if tokenizer is None:
            raise fewfold.TaskError(f"{folder} holds no tokenizer: save it beside the model")
        found = translate(fewfold.load(folder), tokenizer, real, beams=beams, batch_size=batch)
        translated = iter(found.texts)
        written = "".join(f"{next(translated) if sentence else ''}\n" for sentence in sentences)
        if output is not None:
            output.write_text(written, encoding="utf-8")
        if as_json:
            print_json({
                "sentences": [{"source": source, "target": target} for source, target in
                              zip(sentences, written.split("\n"), strict=False)],
                "tokens_a_second": found.tokens_a_second,
            })  # fmt: skip
            return
        if output is None:
            typer.echo(written, nl=False)
        err().print(f"{len(real):,} sentences, {found.tokens_a_second:,.0f} tokens/s")


def _show(folder: Path, record: dict[str, Any]) -> None:
    model, history = record["model"], record["training"]
    out().print(f"{model['class']}, {count(model['parameters'])} parameters, {megabytes(model['bytes'])}")
    drawn = table(
        f"trained in {history['seconds'] / 60:.1f} min", "step", "loss on held-out pairs", "perplexity a token"
    )
    for point in history["held_out"]:
        drawn.add_row(f"{point['step']:,}", f"{point['loss']:.4f}", f"{point['perplexity']:.2f}")
    out().print(drawn)
    out().print(f"{history['tokens_a_second']:,.0f} target tokens/s; saved to {folder}")
