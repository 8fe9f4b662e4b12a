"""``fewfold densify``: a plain model again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli.console import AsJson, Force, Verbose, megabytes, out, print_json, working
from fewfold_cli.files import check_output, existing_model

EXAMPLE = "Example: fewfold densify ./small ./plain"


def densify(
    folder: Annotated[Path, typer.Argument(help="Folder of a compressed model.", metavar="DIR")],
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT")],
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Turn a compressed model into a plain one with equal outputs, which loads without fewfold."""
    with working(verbose):
        existing_model(folder)
        check_output(output, force, folder)
        import fewfold
        from fewfold.measure.disk import file_bytes
        from fewfold.measure.parameters import unique_parameters
        from fewfold.progress import step

        with step("loading"):
            model = fewfold.load(folder)
        fewfold.densify(model)
        with step("saving"):
            fewfold.save(model, output, source=folder)
        result: dict[str, Any] = {
            "folder": str(output),
            "architecture": type(model).__name__,
            "parameters": unique_parameters(model),
            "weight_file_bytes": file_bytes(output),
        }
        if as_json:
            print_json(result)
        else:
            size = megabytes(result["weight_file_bytes"])
            out().print(
                f"saved to {output}: a plain {result['architecture']}, {size} of weights; fewfold is not needed"
            )
