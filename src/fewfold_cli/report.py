"""``fewfold report``: one page about what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewfold_cli.console import AsJson, Verbose, megabytes, out, print_json, warn, working

EXAMPLE = "Example: fewfold report benchmarks/results sst2.json ./small --dense ./model --out report.html"


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Records of runs, tables of quality, results of evaluate, measure and distill, folders of them, and "
            "folders of compressed models.",
            metavar="RUNS…",
        ),
    ],
    output: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    dense: Annotated[
        Path | None, typer.Option(help="Folder of the dense model: shows errors of compressed folders' weights.")
    ] = None,
    title: Annotated[str, typer.Option(help="What stands above it.")] = "fewfold report",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Draw one self-contained HTML page: size, quality, speed, layers, spectra, recipes and all numbers.

    It opens offline, its table sorts and downloads as CSV.
    """
    with working(verbose):
        from fewfold.report.html import ReportError, write_report
        from fewfold_cli.files import existing_model

        if output.suffix.lower() not in (".html", ".htm"):
            raise ReportError(f"--out {output}: give a file that ends in .html")
        if not output.absolute().parent.is_dir():
            raise ReportError(f"--out {output}: the folder {output.absolute().parent} does not exist")
        if dense is not None:
            existing_model(dense)
        sources = write_report(runs, output, dense=dense, title=title)
        for file in sources.skipped:
            warn(f"{file} holds nothing to report on; left out")
        size = output.stat().st_size
        if as_json:
            found = {"entries": len(sources.entries), "folders": len(sources.studies), "skipped": sources.skipped}
            print_json({"report": str(output), "bytes": size, **found})
        else:
            out().print(f"{output}: {len(sources.entries)} measured models, {megabytes(size)}")
