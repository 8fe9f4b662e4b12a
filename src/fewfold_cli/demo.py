"""``fewfold demo``: the whole way on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewfold_cli.console import AsJson, Verbose, working

EXAMPLE = 'Example: fewfold demo --out demo-out --budget "parameters=1/4 of linears"'


def demo(
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo-out"),
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compress a real sentence encoder, reload it in a new process, and show what it costs and keeps."""
    with working(verbose):
        raise NotImplementedError
