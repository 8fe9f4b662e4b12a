"""``fewfold lm``: recurrent language models, dense and slim, trained on text files, judged, and made to write."""

from __future__ import annotations

import shutil
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
    warn,
    working,
)
from fewfold_cli.files import check_output, existing_model, tokenizer_of

TRAIN = (
    "Example: fewfold lm train train.txt --valid valid.txt --test test.txt --out ./lm --cell lstm --hidden 512 "
    "--slim-output 1/10 --slim-input 1/50 --epochs 5"
)
EVALUATE = "Example: fewfold lm evaluate ./lm test.txt.gz"
GENERATE = 'Example: fewfold lm generate ./lm --prompt "The city of" --tokens 50 --temperature 0.8'
_FILE = "A text file (.txt, also packed as .gz or .xz); a line's end is a token."
_SLIM = "a share of its dense numbers, such as 1/10, or bytes with the codes, such as 200KB. Dense if not given."

app = typer.Typer(
    help="Train recurrent language models with slim or dense tables, judge them, let them write.",
    no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.command("train", epilog=TRAIN)
def train(
    text: Annotated[Path, typer.Argument(help=f"What to learn from. {_FILE}", metavar="TEXT")],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    valid: Annotated[Path | None, typer.Option(help="Text to judge training on; the best weights are kept.")] = None,
    test: Annotated[Path | None, typer.Option(help="Text to judge the finished model on.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="The most words to keep, <unk> and <eos> included.")] = None,
    min_count: Annotated[int, typer.Option(min=1, help="How often a word has to occur to be kept.")] = 1,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of any tokenizer, in place of a vocabulary of words.")
    ] = None,
    cell: Annotated[str, typer.Option(help="lstm, gru or gated_conv.")] = "lstm",
    hidden: Annotated[int, typer.Option(min=1, help="Width of a cell.")] = 512,
    layers: Annotated[int, typer.Option(min=1, help="Recurrent layers.")] = 1,
    embedding: Annotated[int | None, typer.Option(min=1, help="Width of the input table (as --hidden).")] = None,
    projection: Annotated[int | None, typer.Option(min=1, help="Project each layer's output to this width.")] = None,
    tie: Annotated[bool, typer.Option("--tie", help="One table for input and output, sized by --slim-input.")] = False,
    slim_input: Annotated[str | None, typer.Option(help=f"Size of a slim input table: {_SLIM}")] = None,
    slim_output: Annotated[str | None, typer.Option(help=f"Size of a slim output layer: {_SLIM}")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Methods to build the model from: a recipe's YAML file or a preset's name.")
    ] = None,
    positions: Annotated[int, typer.Option(min=1, help="Sub-vectors that make a word's slim vector.")] = 8,
    neighbours: Neighbours = "slim",
    dropout: Annotated[float, typer.Option(help="Of inputs, between layers, and of outputs.")] = 0.3,
    embedding_dropout: Annotated[float, typer.Option(help="Share of words dropped from a batch.")] = 0.0,
    weight_dropout: Annotated[float, typer.Option(help="Of the recurrent matrices.")] = 0.0,
    variational: Annotated[bool, typer.Option("--variational", help="One dropout mask for all steps.")] = False,
    loss: Annotated[
        str, typer.Option(help="full, or for large vocabularies sampled or nce (noise by frequency).")
    ] = "full",
    batch: Annotated[int, typer.Option(help="Streams read side by side.")] = 20,
    bptt: Annotated[int, typer.Option(help="Tokens after which the gradient ends.")] = 35,
    optimizer: Annotated[str, typer.Option(help="adam, adamw or sgd.")] = "adam",
    learning_rate: Annotated[float, typer.Option(help="Peak rate.")] = 2e-3,
    schedule: Annotated[str, typer.Option(help="cosine, linear, constant or plateau.")] = "cosine",
    warmup: Annotated[float, typer.Option(help="Share of the run in which the rate rises.")] = 0.02,
    weight_decay: Annotated[float, typer.Option(help="Decay of weights.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Norm that the gradient is cut to, 0: never.")] = 0.5,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over TEXT (10, if no limit is given).")] = None,
    minutes: Annotated[float | None, typer.Option(help="Wall-clock limit of training.")] = None,
    evaluate_steps: Annotated[int | None, typer.Option(help="Steps between judgements on --valid (an epoch).")] = None,
    patience: Annotated[int | None, typer.Option(help="Judgements without a gain after which to stop.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 5.0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Autocast to bfloat16, where the hardware has it.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, codes and dropout.")] = 0,
    fresh: Fresh = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a language model on running text.

    OUT gets model, tokenizer, lm.json with everything that happened, history.jsonl and lm.png with the curve. A run
    that was stopped goes on when the same command is given again.
    """
    with working(verbose):
        folder = check_output(output, force)
        from fewfold import TaskError
        from fewfold.lm.config import LMTraining
        from fewfold.lm.run import train_lm
        from fewfold.lm.saving import save_lm
        from fewfold.lm.sizes import slim_size
        from fewfold.models import SlimLMConfig

        settings = LMTraining.make(
            batch=batch, bptt=bptt, optimizer=optimizer, learning_rate=learning_rate, schedule=schedule, warmup=warmup,
            weight_decay=weight_decay, clip=clip, steps=steps, epochs=epochs, minutes=minutes,
            evaluate_steps=evaluate_steps, patience=patience, checkpoint_minutes=checkpoint_minutes, bf16=bf16,
            seed=seed, neighbours=neighbours,
        )  # fmt: skip
        if tie and slim_output is not None:
            raise TaskError(
                "--tie makes one table for input and output: size it by --slim-input, without --slim-output"
            )
        codes = slim_size(slim_input, positions, seed), slim_size(slim_output, positions, seed + 1)
        corpus = _corpus(text, valid, test, tokenizer, vocab_size, min_count)
        config = SlimLMConfig(
            vocab_size=len(corpus.tokenizer), embedding_size=embedding, hidden_size=hidden, num_layers=layers,
            cell=cell,
            projection_size=projection, tie_word_embeddings=tie, input_codes=codes[0], output_codes=codes[1],
            embedding_dropout=embedding_dropout, input_dropout=dropout, hidden_dropout=dropout, output_dropout=dropout,
            weight_dropout=weight_dropout, variational=variational, loss=loss, eos_token_id=corpus.boundary,
            loss_noise="unigram" if tokenizer is not None and loss != "full" else "log_uniform",
        )  # fmt: skip
        checkpoints = folder.with_name(f"{folder.name}.checkpoints")
        trained = train_lm(config, corpus, settings, checkpoints=checkpoints, resume=not fresh, recipe=recipe)
        save_lm(trained, corpus.tokenizer, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
        if as_json:
            print_json({"folder": str(output), **trained.to_dict()})
        else:
            _show(trained, output)


def _corpus(
    text: Path, valid: Path | None, test: Path | None, tokenizer: Path | None, size: int | None, min_count: int
) -> Any:
    """All texts, in words or in the tokens of a given tokenizer."""
    from fewfold import TaskError
    from fewfold.lm.corpus import token_corpus, word_corpus
    from fewfold.lm.texts import read_text

    files = (text, valid, test)
    lines: list[Any] = [None if file is None else read_text(file) for file in files]
    names: Any = tuple("" if file is None else file.name for file in files)
    if tokenizer is None:
        return word_corpus(*lines, size=size, min_count=min_count, names=names)
    if size is not None or min_count > 1:
        raise TaskError("--vocab-size and --min-count are of word vocabularies: leave them out with --tokenizer")
    found = tokenizer_of(tokenizer)
    if found is None:
        raise TaskError(f"--tokenizer {tokenizer} holds no tokenizer: give the folder that it was saved to")
    return token_corpus(found, lines[0], lines[1], lines[2], names)


def _show(trained: Any, folder: Path) -> None:
    result = trained.to_dict()
    progress = result["progress"]
    drawn = table(f"trained in {progress['seconds'] / 60:.1f} min, ended by {progress['stopped']}", "what", "value")
    for label, value in (
        ("vocabulary", f"{result['data']['vocabulary']:,}"),
        ("parameters", count(result["parameters"])),
        ("weights on disk", megabytes(result["bytes"])),
        ("steps", f"{progress['step']:,}"),
        ("tokens/s", f"{progress['tokens_a_second']:,.0f}"),
        *((f"{name} perplexity", f"{result[name]['perplexity']:,.2f}") for name in ("valid", "test") if result[name]),
    ):
        drawn.add_row(label, value)
    out().print(drawn)
    out().print(f"saved to {folder}" + (f"; the curve is {folder / 'lm.png'}" if (folder / "lm.png").exists() else ""))


@app.command("evaluate", epilog=EVALUATE)
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model.", metavar="DIR")],
    text: Annotated[Path, typer.Argument(help=_FILE, metavar="TEXT")],
    streams: Annotated[
        int, typer.Option(min=1, help="Stretches read side by side, each from an empty state; 1 is exact.")
    ] = 1,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure perplexity on a text, the hidden state carried from its first token to its last."""
    with working(verbose):
        model, tokenizer = _load(folder)
        from fewfold.lm.judge import judge
        from fewfold.lm.texts import encode, line_end, read_text

        encoded = encode(tokenizer, read_text(text), text.name)
        share = encoded.unknown / len(encoded.ids)
        if share > 0.2:
            warn(f"{share:.0%} of the tokens of {text.name} are words that the vocabulary lacks")
        found = judge(model, encoded, line_end(tokenizer), streams)
        if as_json:
            print_json({"folder": str(folder), "text": str(text), **found.to_dict()})
            return
        drawn = table(f"{folder.name} on {text.name}", "what", "value")
        drawn.add_row("perplexity", f"{found.perplexity:,.2f}")
        if found.words != found.tokens:
            drawn.add_row("perplexity of words", f"{found.word_perplexity:,.2f}")
        drawn.add_row("tokens", f"{found.tokens:,}")
        drawn.add_row("of them unknown words", f"{found.unknown:,} ({share:.1%})")
        drawn.add_row("tokens/s", f"{found.tokens / found.seconds:,.0f}")
        out().print(drawn)


@app.command("generate", epilog=GENERATE)
def generate(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model.", metavar="DIR")],
    prompt: Annotated[str, typer.Option(help="How the text begins.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to add.")] = 50,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token each time.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among so many likeliest tokens; 0: among all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Let a model go on with a text; a token costs the same time and memory however long it gets."""
    with working(verbose):
        model, tokenizer = _load(folder)
        from fewfold.lm.generate import generate as write

        written, seconds = write(model, tokenizer, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed)
        if as_json:
            print_json({"folder": str(folder), "text": written, "tokens": tokens, "tokens_a_second": 1 / seconds})
            return
        typer.echo(written)
        err().print(f"{tokens} tokens, {1 / seconds:,.0f} tokens/s")


def _load(folder: Path) -> tuple[Any, Any]:
    """A model that carries a state, and its tokenizer."""
    existing_model(folder)
    import torch
    from transformers import AutoModelForCausalLM

    import fewfold
    from fewfold.progress import step

    with step("loading"):
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(folder)
        except ValueError as error:
            if isinstance(error, fewfold.FewfoldError):
                raise
            raise fewfold.TaskError(f"{folder} holds no language model: {error}") from error
        except RuntimeError as error:
            raise fewfold.CheckpointError(
                f"{folder}: the weight file and config.json do not belong together, for shapes differ"
            ) from error
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        tokenizer = tokenizer_of(folder)
    if not hasattr(model, "detach_state"):
        raise fewfold.TaskError(
            f"{folder}: {type(model).__name__} carries no state; for other language models there is "
            "fewfold evaluate DIR --task perplexity --text FILE"
        )
    if tokenizer is None:
        raise fewfold.TaskError(f"{folder} holds no tokenizer: save it beside the model")
    if len(tokenizer) > model.config.vocab_size:
        raise fewfold.TaskError(
            f"{folder}: the tokenizer has {len(tokenizer)} words and the model {model.config.vocab_size}: they do not "
            "belong together"
        )
    return model.eval(), tokenizer
