"""A page drawn from small records, and a headless browser where there is one."""

import os

import pytest
from browsers import launch
from report_records import write

from fewfold.report.html import write_report


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
    """A headless Chromium, or the reason why the test is skipped."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        _missing("playwright is not installed")
    with sync_playwright() as playwright:
        try:
            opened = launch(playwright)
        except Error as error:
            _missing(f"Chromium does not start ({str(error).splitlines()[0]})")
        yield opened
        opened.close()
