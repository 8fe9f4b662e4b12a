"""Progress bars and spinners on stderr, silent where nobody watches."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

Item = TypeVar("Item")

_current: Progress | None = None


def is_shown() -> bool:
    """Say whether progress is drawn: `FEWFOLD_PROGRESS` (1 or 0) decides, else a terminal on stderr."""
    wish = os.environ.get("FEWFOLD_PROGRESS", "")
    return wish == "1" or (wish != "0" and sys.stderr.isatty())


@contextmanager
def _display() -> Iterator[Progress]:
    """Share one live display, because rich draws only one at a time and steps may nest."""
    global _current
    if _current is not None:
        yield _current
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=console.is_terminal) as progress:
        _current = progress
        try:
            yield progress
        finally:
            _current = None


def _close(progress: Progress, task: TaskID) -> None:
    """Take a finished line off a terminal; in a log, which is written once at the end, keep it."""
    if progress.console.is_terminal:
        progress.remove_task(task)
    else:
        progress.stop_task(task)


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable` while a bar on stderr shows how far it is.

    :param description: What is being done, in a few words.
    :param total: Number of items; taken from `len(iterable)` where that is known.
    :return: An iterator over the same items, in the same order.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with bar(description, total) as advance:
        for done, item in enumerate(iterable, start=1):
            yield item
            advance(done, f"{done}/{total or '?'}")


@contextmanager
def bar(description: str, total: float | None = None) -> Iterator[Callable[[float, str], None]]:
    """Show a bar on stderr that the block moves by calling what it is given with (done, a few words).

    :param description: What is being done, in a few words.
    :param total: What `done` is at the end, in any unit; None where nobody knows.
    """
    if not is_shown():
        yield lambda done, count: None
        return
    with _display() as progress:
        task = progress.add_task(description, total=total, count=f"0/{total or '?'}")
        try:
            yield lambda done, count: progress.update(task, completed=done, count=count)
        finally:
            _close(progress, task)


@contextmanager
def step(description: str) -> Iterator[None]:
    """Show a spinner with the elapsed time on stderr while the block runs.

    :param description: What is being done, in a few words.
    """
    if not is_shown():
        yield
        return
    with _display() as progress:
        task = progress.add_task(description, total=None, count="")
        try:
            yield
        finally:
            _close(progress, task)
