"""The page: everything that was read, drawn and set into one file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from fewfold.optional import require
from fewfold.progress import step, track
from fewfold.report.html.depth import depth_pictures
from fewfold.report.html.pictures import quality_pictures, recovery_picture, speed_pictures
from fewfold.report.html.sources import Sources, read_sources
from fewfold.report.html.table import table_of


def write_report(
    places: Sequence[str | PathLike[str]],
    path: str | PathLike[str],
    *,
    dense: str | PathLike[str] | None = None,
    title: str = "fewfold report",
) -> Sources:
    """Write one self-contained HTML page about runs, tables and compressed folders.

    Pictures are SVG by matplotlib: text stays text, they scale to any screen, follow a dark page, and weigh a few
    kilobytes each, where a plotting library in JavaScript would add megabytes to every page.

    :param places: files and folders: records of runs, tables of quality, results of ``fewfold evaluate --out``,
        ``fewfold measure --json`` and ``fewfold distill``, folders of them, and folders of compressed models.
    :param path: the page to write.
    :param dense: folder of the dense model, for the errors of compressed folders' weights.
    :return: what was read, with the files that were skipped.
    :raises ReportError: if a place holds nothing that can be shown.
    :raises ImportError: if matplotlib or jinja2 is missing.
    """
    require("matplotlib", "report")
    require("jinja2", "report")
    sources = read_sources(places, dense)
    with step("drawing"):
        text = page(sources, title)
    Path(path).write_text(text, encoding="utf-8")
    return sources


def page(sources: Sources, title: str) -> str:
    """The page's markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fewfold.report.html", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    columns, rows = table_of(sources.entries)
    pictures = track(enumerate(sources.studies), "drawing folders", total=len(sources.studies))
    return environment.get_template("page.html.jinja").render(
        title=title,
        style=_asset("style.css"),
        script=_asset("table.js"),
        sources=sources,
        columns=columns,
        rows=rows,
        quality=quality_pictures(sources.entries),
        speed=speed_pictures(sources.entries),
        studies=[(one, depth_pictures(one, f"study-{number}")) for number, one in pictures],
        recoveries=[
            recovery_picture(f"recovery-{number}", name, content["phases"])
            for number, (name, content) in enumerate(sources.recoveries)
        ],
        recipes=[(name, _pretty(recipe)) for name, recipe in sources.recipes],
        environments=_environments(sources),
        pretty=_pretty,
    )


def _asset(name: str) -> str:
    return resources.files("fewfold.report.html").joinpath(name).read_text(encoding="utf-8")


def _pretty(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False)


def _environments(sources: Sources) -> list[tuple[str, str]]:
    """Versions and hardware, told once for all files that agree; dates and loads are not compared."""
    found: dict[str, list[str]] = {}
    for file, content in sources.environments.items():
        told = ", ".join(f"{key} {value}" for key, value in content.items() if key != "date" and value is not None)
        found.setdefault(told, []).append(file)
    return [(", ".join(files), told) for told, files in found.items()]
