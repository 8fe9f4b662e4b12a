"""Puts the demo's table and picture into a README, between two markers: no number is typed by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

from fewfold.demo.run import Demo
from fewfold.demo.table import markdown
from fewfold.errors import FewfoldError

START, END = "<!-- demo-table -->", "<!-- /demo-table -->"


def fill(readme: Path, demo: Demo, picture: Path) -> None:
    """Replace what stands between the markers, and copy the picture into ``docs`` beside the file.

    :raises FewfoldError: if the file has no markers.
    """
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise FewfoldError(f"{readme} has no place for the demo's table: write {START} and {END} into it")
    docs = readme.parent / "docs"
    docs.mkdir(exist_ok=True)
    shutil.copyfile(picture, docs / "demo.png")
    alternative = "Bars: what the compressed model costs and keeps, beside the dense one"
    filled = f"{before}{START}\n{markdown(demo)}\n![{alternative}](docs/demo.png)\n{END}{after}"
    readme.write_text(filled, encoding="utf-8")
