"""A page drawn from small records, and a headless browser where there is one."""

import os
import shutil
from pathlib import Path

import pytest
from report_records import write

from fewfold.report.html import write_report

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="session")
def page(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(list(files.values()), path, title="A few <models>")
    return path


def _missing(reason):
    """Skip; where a browser was promised, fail instead."""
    message = f"{reason}: `make browser` installs one"
    if os.environ.get("FEWFOLD_NEEDS_BROWSER") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: playwright's own, else one of the system's."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        _missing("playwright is not installed")
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path).exists()
        path = None if own else next(filter(None, map(shutil.which, BROWSERS)), None)
        if not own and path is None:
            _missing("there is no Chromium")
        try:
            opened = playwright.chromium.launch(executable_path=path, args=arguments)
        except Error as error:
            _missing(f"Chromium does not start ({str(error).splitlines()[0]})")
        yield opened
        opened.close()
