"""The report's table: columns that entries have, cells with the number behind the words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fewfold.report.html.entries import Entry, Score, metrics_of, more_is_better


@dataclass(frozen=True)
class Cell:
    """What is read, and what is sorted by and downloaded; an empty value is unknown and sorts last."""

    text: str
    value: str | float
    is_number: bool = True


@dataclass(frozen=True)
class Column:
    """A heading with its unit, and whether numbers stand below it."""

    name: str
    hint: str
    is_number: bool


def table_of(entries: Sequence[Entry]) -> tuple[list[Column], list[list[Cell]]]:
    """Columns that at least one entry has a value in, and a row of cells for each entry."""
    points = list(dict.fromkeys(point for entry in entries for point in entry.latency))
    columns: list[tuple[Column, Callable[[Entry], Any], Callable[[Any], str]]] = [
        (Column("model", "", False), lambda entry: entry.name, str),
        (Column("MB", "stored bytes, in millions", True), lambda entry: _million(entry.bytes), _two),
        (Column("parameters, M", "unique ones", True), lambda entry: _million(entry.parameters), _two),
        (Column("live, M", "parameters that a forward reads", True), lambda entry: _million(entry.live), _two),
        (Column("MACs a token, M", "multiply-accumulates", True), lambda entry: _million(entry.macs), _two),
    ]
    for point in points:
        name = "ms" if point == "latency" else f"ms at {point.replace('x', '×')}"
        hint = "median latency at batch × length (10th…90th percentile)"
        columns.append((Column(name, hint, True), _latency(point), _time))
    columns += [
        (Column("load, s", "in a process of its own", True), lambda entry: entry.load, _two),
        (Column("memory, MB", "of the loaded model", True), lambda entry: _million(entry.memory), _two),
        (Column("peak, MB", "most memory while loading", True), lambda entry: _million(entry.peak), _two),
        (Column("activations, MB", "at the largest input", True), lambda entry: _million(entry.activations), _two),
    ]
    for metric in metrics_of(entries):
        hint = "more is better" if more_is_better(metric) else "less is better"
        columns.append((Column(metric, hint, True), _quality(metric), _score))
    columns += [
        (Column("minutes", "wall time", True), lambda entry: entry.minutes, _two),
        (Column("calibration", "texts it was fitted to", False), lambda entry: entry.calibration, str),
        (Column("from", "the file", False), lambda entry: entry.origin, str),
    ]
    kept = [one for one in columns if any(one[1](entry) is not None for entry in entries)]
    rows = [[_cell(column, value(entry), words) for column, value, words in kept] for entry in entries]
    return [column for column, _, _ in kept], rows


def _cell(column: Column, value: Any, words: Callable[[Any], str]) -> Cell:
    if value is None:
        return Cell("–", "", column.is_number)
    return Cell(words(value), value.value if isinstance(value, Score) else value, column.is_number)


def _latency(point: str) -> Callable[[Entry], Any]:
    return lambda entry: entry.latency.get(point)


def _quality(metric: str) -> Callable[[Entry], Any]:
    return lambda entry: entry.quality.get(metric)


def _million(number: float | None) -> float | None:
    return None if number is None else number / 1e6


def _two(number: float) -> str:
    return f"{number:,.2f}"


def _time(timing: Score) -> str:
    told = f"{timing.value:,.2f}"
    return told if timing.low is None or timing.high is None else f"{told} ({timing.low:,.2f}…{timing.high:,.2f})"


def _score(score: Score) -> str:
    told = f"{score.value:.4f}" if abs(score.value) < 10 else f"{score.value:.2f}"
    return told if score.low is None or score.high is None else f"{told} ({score.low:.3f}…{score.high:.3f})"
