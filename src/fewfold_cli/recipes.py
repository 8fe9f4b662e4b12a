"""``fewfold recipes``: the presets, and a start for recipes of one's own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fewfold_cli.console import AsJson, Verbose, out, print_json, table, working

EXAMPLE = "Example: fewfold recipes low-rank-int8 > mine.yaml"


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this preset as a recipe file.", metavar="[NAME]")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """List the presets with their source, or print one as YAML to start your own."""
    with working(verbose):
        from fewfold.recipe import PRESETS, Recipe

        if name is not None:
            chosen = Recipe.preset(name)
            if as_json:
                print_json(chosen.model_dump(mode="json"))
            else:
                typer.echo(_yaml(chosen), nl=False)
            return
        presets = [Recipe.preset(known) for known in PRESETS]
        if as_json:
            print_json([preset.model_dump(mode="json") for preset in presets])
            return
        drawn = table(None, "preset", "methods", "source", left=3)
        for preset in presets:
            methods = (f"{step.method} on {step.targets}, {step.stored_dtype}" for step in preset.methods)
            drawn.add_row(preset.name, "; ".join(methods), preset.source)
        out().print(drawn)


def _yaml(recipe: object) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        recipe.to_yaml(file)  # type: ignore[attr-defined]
        return file.read_text(encoding="utf-8")
