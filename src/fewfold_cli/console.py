"""What all commands share: quiet libraries, clean errors, tables on stdout and progress on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Force = Annotated[bool, typer.Option("--force", help="Replace the model that OUT holds.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Do not go on from OUT.checkpoints, start anew.")]
Neighbours = Annotated[
    str,
    typer.Option(help="Tables to begin at the neighbours that words have in the text: slim, all, none."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show what transformers, torchao and the Hub have to say.")
]


def out() -> Console:
    """Results go to stdout; where that is no terminal, lines are as long as they need to be."""
    is_terminal = sys.stdout.isatty()
    return Console(width=None if is_terminal else 400, highlight=False)


def err() -> Console:
    """Progress, warnings and errors go to stderr."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(data: Any) -> None:
    """Write one JSON document to stdout."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def warn(message: str) -> None:
    """Write one warning to stderr."""
    err().print(f"[yellow]warning:[/yellow] {escape(message)}")


def as_it_is(message: str) -> str:
    """A warning as the library says it."""
    return message


@contextmanager
def working(verbose: bool, told: Callable[[str], str] = as_it_is) -> Iterator[None]:
    """Run a command's work: silence other libraries, and turn expected errors into one message and exit code 1.

    :param told: puts a warning of ours into the command's words.
    """
    if not verbose:
        _hush()
    try:
        with _warning(told):
            yield
    except KeyboardInterrupt:
        err().print("interrupted; nothing was left half-written")
        raise typer.Exit(130) from None
    except Exception as error:
        if not _is_expected(error):
            raise
        err().print(f"[bold red]error:[/bold red] {escape(_message(error))}")
        if verbose:
            err().print_exception()
        raise typer.Exit(1) from None


@contextmanager
def _warning(told: Callable[[str], str]) -> Iterator[None]:
    """Show our own warnings as they come, each once; others as Python does."""
    from fewfold.errors import FewfoldWarning

    with warnings.catch_warnings():
        shown, others = set[str](), warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **options: Any) -> None:
            if not issubclass(category, FewfoldWarning):
                return others(message, category, *place, **options)
            text = told(str(message))
            if text not in shown:
                shown.add(text)
                warn(text)

        warnings.simplefilter("always", FewfoldWarning)
        warnings.showwarning = show
        yield


def _is_expected(error: Exception) -> bool:
    """Whether an error's own message tells a user what to mend; anything else is a bug and keeps its traceback."""
    from safetensors import SafetensorError

    from fewfold import FewfoldError

    missing_extra = isinstance(error, ImportError) and "pip install" in str(error)
    return missing_extra or isinstance(error, FewfoldError | OSError | SafetensorError)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


_LOUD = ("torchao", "torch.utils._pytree", "huggingface_hub", "sentence_transformers", "transformers")


def _hush() -> None:
    """Silence loading bars, advice and deprecation notes, best before the libraries are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def count(number: float) -> str:
    """A count for people: 1,234 or 22.71 M."""
    return f"{number / 1e6:,.2f} M" if number >= 1e6 else f"{number:,.0f}"


def megabytes(number: float) -> str:
    """Bytes for people; a megabyte is a million bytes."""
    return f"{number / 1e6:,.2f} MB"


def table(title: str | None, *columns: str, left: int = 1) -> Table:
    """A table whose first ``left`` columns hold words and whose others hold numbers."""
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        drawn.add_column(column, justify="left" if place < left else "right", overflow="fold")
    return drawn
