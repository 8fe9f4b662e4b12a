"""``fewfold``: the command and its list of subcommands."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from fewfold_cli import (
    caption,
    compress,
    demo,
    densify,
    distill,
    evaluate,
    export,
    inspect,
    lm,
    measure,
    pretrain,
    recipes,
    report,
    translation,
)

app = typer.Typer(
    name="fewfold",
    help="Make transformers models a few-fold smaller: same class, same files beside them, far fewer stored numbers.",
    epilog="Try it on a real model: fewfold demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fewfold {metadata.version('fewfold')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


app.command("compress", cls=compress.Compress, epilog=compress.EXAMPLE)(compress.compress)
app.command("distill", epilog=distill.EXAMPLE)(distill.distill)
app.command("inspect", epilog=inspect.EXAMPLE)(inspect.inspect)
app.command("measure", epilog=measure.EXAMPLE)(measure.measure)
app.command("evaluate", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command("report", epilog=report.EXAMPLE)(report.report)
app.command("densify", epilog=densify.EXAMPLE)(densify.densify)
app.command("export", epilog=export.EXAMPLE)(export.export)
app.add_typer(lm.app, name="lm")
app.command("pretrain", epilog=pretrain.EXAMPLE)(pretrain.pretrain)
app.command("recipes", epilog=recipes.EXAMPLE)(recipes.recipes)
app.add_typer(translation.app, name="translation")
app.add_typer(caption.app, name="caption")
app.command("demo", epilog=demo.EXAMPLE)(demo.demo)

if __name__ == "__main__":
    app()
