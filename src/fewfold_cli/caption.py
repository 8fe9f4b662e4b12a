"""``fewfold caption``: train captioners from scratch, and caption images with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli.console import AsJson, Force, Fresh, Verbose, count, err, megabytes, out, print_json, table, working
from fewfold_cli.files import check_output, existing_model, tokenizer_of

TRAIN_EXAMPLE = (
    "Example: fewfold caption train ./captioner --steps 1500, "
    "then fewfold evaluate ./captioner --task flickr8k-captions --beams 3"
)
RUN_EXAMPLE = "Example: fewfold caption run ./captioner beach.jpg dog.png"

app = typer.Typer(help="Train captioners from scratch, and caption images with them.", no_args_is_help=True)


@app.command("train", epilog=TRAIN_EXAMPLE)
def train(
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT")],
    recipe: Annotated[
        str | None, typer.Option(help="Methods to build the model from: a recipe's YAML file or a preset's name.")
    ] = None,
    vocabulary: Annotated[int, typer.Option(help="Entries of the subword vocabulary.")] = 2000,
    size: Annotated[int, typer.Option(help="Width of the model.")] = 256,
    encoder_layers: Annotated[int, typer.Option(min=0, help="Transformer layers over the picture.")] = 2,
    decoder_layers: Annotated[int, typer.Option(min=1, help="Transformer layers over the caption.")] = 2,
    image_size: Annotated[int, typer.Option(help="Pixels of a side.")] = 64,
    dropout: Annotated[float, typer.Option(min=0, max=0.9)] = 0.2,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 1500,
    batch: Annotated[int, typer.Option(min=1, help="Captions a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 5e-4,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on the first so many images.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Autocast to bfloat16.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, batches, crops and dropout.")] = 0,
    checkpoint_steps: Annotated[int, typer.Option(min=1, help="Steps that a killed run loses at most.")] = 200,
    fresh: Fresh = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a captioner from scratch on flickr8k-1k, dense or built from a recipe.

    OUT gets the model with its tokenizer, training.json with everything that happened, and training.png with the loss
    curve. A run that was stopped goes on when the same command is given again.
    """
    with working(verbose):
        check_output(output, force)
        from fewfold.pretrain.settings import PretrainSettings
        from fewfold.tasks.captioning.run import train_and_save

        settings = PretrainSettings.make(
            steps=steps, batch=batch, learning_rate=learning_rate, schedule="cosine", bf16=bf16, seed=seed,
            checkpoint_steps=checkpoint_steps,
        )  # fmt: skip
        record = train_and_save(
            output, settings, vocabulary=vocabulary, image_size=image_size, limit=limit, resume=not fresh,
            recipe=recipe, size=size, encoder_layers=encoder_layers, decoder_layers=decoder_layers, dropout=dropout,
        )  # fmt: skip
        if as_json:
            print_json({"folder": str(output), **record})
            return
        _show(output, record)


@app.command("run", epilog=RUN_EXAMPLE)
def run(
    folder: Annotated[Path, typer.Argument(help="Folder of a captioner.", metavar="DIR")],
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE…")],
    beams: Annotated[int, typer.Option(min=1, help="1 is greedy.")] = 3,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Caption images, a line each."""
    with working(verbose):
        existing_model(folder)
        import torch

        import fewfold
        from fewfold.tasks.captioning import caption
        from fewfold.tasks.captioning.images import read_image

        model, tokenizer = fewfold.load(folder), tokenizer_of(folder)
        if tokenizer is None or getattr(model, "main_input_name", "") != "pixel_values":
            raise fewfold.TaskError(f"{folder} holds no captioner with its tokenizer: give one that reads images")
        pixels = torch.stack([read_image(image, model.config.image_size) for image in images])
        found = caption(model, tokenizer, pixels, beams=beams)
        if as_json:
            print_json({str(image): text for image, text in zip(images, found.texts, strict=True)})
            return
        for image, text in zip(images, found.texts, strict=True):
            typer.echo(f"{image}\t{text}" if len(images) > 1 else text)
        err().print(f"{len(images):,} images in {found.seconds:.1f} s")


def _show(folder: Path, record: dict[str, Any]) -> None:
    model, history = record["model"], record["training"]
    out().print(f"{model['class']}, {count(model['parameters'])} parameters, {megabytes(model['bytes'])}")
    drawn = table(f"trained in {history['seconds'] / 60:.1f} min", "step", "loss on held-out images", "perplexity")
    for point in history["held_out"]:
        drawn.add_row(f"{point['step']:,}", f"{point['loss']:.4f}", f"{point['perplexity']:.2f}")
    out().print(drawn)
    out().print(f"{history['tokens_a_second']:,.0f} tokens/s; saved to {folder}")
