"""``fewfold pretrain``: masked language models from scratch, dense or small by construction."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli.console import AsJson, Force, Fresh, Verbose, count, megabytes, out, print_json, table, working
from fewfold_cli.files import check_output

EXAMPLE = (
    "Example: fewfold pretrain ./mlm --config modernbert-mini-veps --text train.txt.gz, then "
    "fewfold evaluate ./mlm --task sst2 --finetune. Several processes: torchrun --nproc-per-node 4 -m "
    "fewfold_cli.main pretrain …"
)


def pretrain(
    output: Annotated[Path | None, typer.Argument(help="Folder to write.", metavar="[OUT]")] = None,
    text: Annotated[
        list[Path] | None, typer.Option("--text", "-t", help="Text file (.txt, .gz, .xz); again for more.")
    ] = None,
    config: Annotated[
        str, typer.Option("--config", "-c", help="YAML file, or a name that --list shows.")
    ] = "modernbert-mini",
    held_out: Annotated[
        list[Path] | None, typer.Option(help="Text that the loss is measured on (else a few windows are kept).")
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Leave the config's methods out: the dense twin.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer folder, in place of a vocabulary of the text.")
    ] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Entries of the trained vocabulary.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a window.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows a step, over all processes.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Windows that a process holds at a time.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak.")] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16/--fp32", help="Autocast to bfloat16, or not.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order, masks and dropout.")] = None,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Steps that a killed run loses at most.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the configs that come with the library.")] = False,
    fresh: Fresh = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a masked language model from scratch on text files.

    OUT gets the model with its tokenizer, training.json with everything that happened, and training.png with the loss
    curve. A run that was stopped goes on when the same command is given again; under torchrun or accelerate launch it
    uses all processes.
    """
    with working(verbose):
        import fewfold
        from fewfold.pretrain.config import PretrainConfig, preset_names

        if listed:
            _list(preset_names(), PretrainConfig)
            return
        if output is None or not text:
            raise fewfold.TaskError("give a folder to write to, and text with --text FILE (or --list)")
        check_output(output, force)
        from fewfold.pretrain.run import pretrain_and_save

        chosen = PretrainConfig.read(config).changed(
            {
                "steps": steps, "batch": batch, "micro_batch": micro_batch, "learning_rate": learning_rate,
                "bf16": bf16, "seed": seed, "checkpoint_steps": checkpoint_steps,
            },
            tokenizer=tokenizer, vocabulary=vocabulary, length=length,
        )  # fmt: skip
        if dense:
            chosen = chosen.model_copy(update={"methods": None})
        record = pretrain_and_save(output, chosen, text, held_out or (), resume=not fresh)
        if os.environ.get("RANK", "0") != "0":
            return
        if as_json:
            print_json({"folder": str(output), **record})
            return
        _show(output, record)


def _list(names: list[str], configs: Any) -> None:
    drawn = table("configs of fewfold pretrain", "name", "what it is")
    for name in names:
        drawn.add_row(name, configs.read(name).description)
    out().print(drawn)


def _show(folder: Path, record: dict[str, Any]) -> None:
    from fewfold.pretrain.frequencies import LITTLE

    model, history = record["model"], record["training"]
    out().print(f"{model['class']}, {count(model['parameters'])} parameters, {megabytes(model['bytes'])}")
    drawn = table(f"trained in {history['seconds'] / 60:.1f} min", "step", "loss on held-out text", "perplexity")
    for point in history["held_out"]:
        drawn.add_row(f"{point['step']:,}", f"{point['loss']:.4f}", f"{point['perplexity']:.2f}")
    out().print(drawn)
    floor = record["data"]["held_out"]["token_frequencies"]
    out().print(f"token frequencies alone: loss {floor['loss']:.4f}, perplexity {floor['perplexity']:.2f}")
    if history["held_out"] and history["held_out"][-1]["loss"] > floor["loss"] - LITTLE:
        out().print(
            "[yellow]The model has learned next to nothing of context yet: give more --steps or a higher "
            "--learning-rate; a narrow BERT may need thousands of steps, a ModernBERT (family: modernbert) hundreds."
            "[/yellow]"
        )
    out().print(f"{history['tokens_a_second']:,.0f} tokens/s; saved to {folder}")
