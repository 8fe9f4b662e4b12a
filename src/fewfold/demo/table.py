"""The demo's table: figures as rows, models as columns; on a terminal, in Markdown, and as bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from fewfold.demo.run import FLOOR, Demo, DemoRow


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    :param label: what it is, with its unit.
    :param value: reads it from a model's row; None where there is none.
    :param show: writes one value.
    :param is_cost: whether less is better; such rows show how many times less.
    :param short: name beside a bar, or empty for no bar.
    """

    label: str
    value: Callable[[DemoRow], float | None]
    show: Callable[[float], str]
    is_cost: bool
    short: str = ""


def figures(demo: Demo) -> list[Figure]:
    """All rows that this run has numbers for."""
    rows = [
        Figure("weights on disk, MB", lambda r: r.file_bytes, lambda v: f"{v / 1e6:,.2f}", True, "MB on disk"),
        Figure(
            "unique parameters, M", lambda r: r.quality.parameters, lambda v: f"{v / 1e6:,.2f}", True, "M parameters"
        ),
        Figure(
            "MACs a token at length 128, M",
            lambda r: r.quality.macs,
            lambda v: f"{v / 1e6:,.2f}",
            True,
            "M MACs a token",
        ),
    ]
    for shape in demo.dense.latency:
        label = f"latency at {shape.replace('x', '×')}, ms"
        rows.append(Figure(label, _latency(shape), lambda v: f"{v:,.2f}", True, f"ms at {shape.replace('x', '×')}"))
    rows += [
        Figure(
            f"nearest neighbours kept (nn{demo.dense.quality.neighbours})",
            lambda r: r.quality.neighbour_overlap, lambda v: f"{v:.3f}", False, "neighbours kept",
        ),
        Figure("cosine to dense", lambda r: r.quality.cosine, lambda v: f"{v:.3f}", False, "cosine to dense"),
        Figure("relative error of hidden states", lambda r: r.quality.hidden_error, lambda v: f"{v:.3f}", False),
    ]  # fmt: skip
    if demo.dense.quality.sts is not None:
        rows.append(Figure("STS-B dev, Spearman", _spearman, lambda v: f"{v:.3f}", False, "STS-B Spearman"))
    return rows


def _latency(shape: str) -> Callable[[DemoRow], float | None]:
    return lambda row: row.latency[shape].median if shape in row.latency else None


def _spearman(row: DemoRow) -> float | None:
    return row.quality.sts.spearman if row.quality.sts is not None else None


def cells(demo: Demo) -> list[list[str]]:
    """The table as text: label, dense, compressed, how many times less, floor."""
    lines = []
    for figure in figures(demo):
        values = [figure.value(row) for row in demo.rows.values()]
        shown = ["–" if value is None else figure.show(value) for value in values]
        dense, compressed, _ = values
        times = _times(dense, compressed) if figure.is_cost and dense and compressed else ""
        lines.append([figure.label, shown[0], shown[1], times, shown[2] if not figure.is_cost else ""])
    return lines


def _times(dense: float, compressed: float) -> str:
    return f"{dense / compressed:.1f}× less" if compressed <= dense else f"{compressed / dense:.1f}× more"


HEADERS = ("", "dense", "compressed", "", f"floor: {FLOOR}")


def drawn(demo: Demo) -> Table:
    """The table for a terminal."""
    table = Table(title=f"{demo.model}, dense and compressed", title_justify="left", title_style="bold")
    for place, header in enumerate(HEADERS):
        table.add_column(header, justify="right" if place else "left")
    for line in cells(demo):
        table.add_row(*line)
    return table


def markdown(demo: Demo) -> str:
    """The table in Markdown, with a line that says what it was measured on."""
    rows = [list(HEADERS), ["---", "---:", "---:", ":---", "---:"], *cells(demo)]
    text = "".join("| " + " | ".join(line) + " |\n" for line in rows)
    return f"{text}\n{conditions(demo)}\n"


BUSY = "**The machine was busy before this started (load {load:.1f} on {cores} cores): its times say little.**"


def conditions(demo: Demo) -> str:
    """What the numbers rest on."""
    here = demo.environment
    asked = " and ".join(f"`{budget['asked']}`" for budget in demo.budgets)
    return (
        f"{demo.model}, budgets {asked}, fitted in {demo.seconds:.0f} s without training on "
        f"{demo.calibration['name']}; quality on {demo.held_out_texts} other sentences of it. "
        f"{here['cpu']}, {here['threads']} threads, fp32, torch {here['torch']}, transformers {here['transformers']}, "
        f"fewfold {here['fewfold']}, {str(here['date'])[:10]}. Latencies are medians of interleaved rounds."
        + (f" {BUSY.format(load=demo.load_before, cores=here['cores'])}" if demo.was_busy else "")
    )


def bars(demo: Demo, width: int = 40) -> Text:
    """Bars of the compressed model, the dense one being the full length."""
    text = Text()
    for figure in figures(demo):
        dense, compressed = figure.value(demo.dense), figure.value(demo.compressed)
        if not figure.short or not dense or compressed is None:
            continue
        share = compressed / dense
        filled = min(width, max(1, round(share * width)))
        text.append(f"{figure.short:>16} ")
        text.append("█" * filled, style="cyan" if figure.is_cost else "green")
        text.append("·" * (width - filled), style="dim")
        text.append(f" {share:.0%} of dense\n")
    return text
