"""Entries out of records: rows of quality, evaluations, costs and runs, wherever in a JSON file they stand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from fewfold.report.html.entries import Entry, Score

# Figures of a run that say what it costs, by the names that records use.
_SIZES = {
    "bytes": ("bytes", "stored_bytes", "weight_file_bytes", "file_bytes"),
    "parameters": ("parameters", "unique_parameters"),
    "macs": ("macs", "macs_per_token"),
    "live": ("live_parameters",),
    "load": ("load_seconds",),
    "memory": ("resident_bytes",),
    "peak": ("peak_bytes",),
    "activations": ("activation_bytes",),
}


def entries_in(content: Any, origin: str) -> list[Entry]:
    """Everything measured in one JSON document.

    :param content: as it was parsed.
    :param origin: the file's name, for names and references.
    :return: the entries, in the document's order; none if the document holds nothing of the kind.
    """
    return list(_walk(content, _stem(origin), origin))


def _stem(origin: str) -> str:
    return PurePath(origin).stem


def _walk(content: Any, name: str, origin: str) -> Iterator[Entry]:
    if isinstance(content, list):
        for one in content:
            yield from _walk(one, name, origin)
    elif isinstance(content, dict):
        if "neighbour_overlap" in content and "bytes" in content:
            yield _row(content, name, origin)
        elif "task" in content and isinstance(content.get("metrics"), dict):
            yield _evaluation(content, name, origin)
        elif "models" in content and "environment" in content:
            yield from _costs(content, origin)
        elif {"quality", "latency"} <= content.keys() and isinstance(content["quality"], dict):
            yield _judged(content, name, origin)
        elif {"name", "kind", "numbers"} <= content.keys():
            yield from _run(content, origin)
        else:
            for key, value in content.items():
                yield from _walk(value, str(key), origin)


def _row(row: Mapping[str, Any], name: str, origin: str) -> Entry:
    """A row of the common table of quality; a row called by its place only takes the name of what holds it."""
    quality = {}
    sts = row.get("sts")
    if sts:
        quality["STS, Spearman"] = Score(sts["spearman"], sts.get("low"), sts.get("high"))
    quality[f"nn{row.get('neighbours', 10)}"] = Score(row["neighbour_overlap"])
    quality["cosine to dense"] = Score(row["cosine"])
    if row.get("hidden_error") is not None:
        quality["error of hidden states"] = Score(row["hidden_error"])
    seconds = row.get("seconds")
    calibration = row.get("calibration")
    return Entry(
        row.get("name") or name, origin, quality, row["bytes"], row.get("parameters"), row.get("macs"),
        minutes=None if seconds is None else seconds / 60, calibration=None if calibration == "-" else calibration,
    )  # fmt: skip


def _evaluation(result: Mapping[str, Any], name: str, origin: str) -> Entry:
    """An evaluation on a task; several seeds have a mean, one seed an interval over examples."""
    model, runs = result.get("model", {}), result.get("runs", [])
    quality = {}
    for metric, found in result["metrics"].items():
        single = runs[0]["metrics"].get(metric, {}) if len(runs) == 1 else {}
        quality[f"{result['task']}, {metric}"] = Score(found["mean"], single.get("low"), single.get("high"))
    folder = result.get("folder")
    return Entry(
        _folder_name(folder) if folder else name, origin, quality, model.get("bytes"), model.get("parameters"),
        minutes=result.get("minutes"), folder=folder_key(folder),
    )  # fmt: skip


def _costs(result: Mapping[str, Any], origin: str) -> Iterator[Entry]:
    """What ``fewfold measure --json`` prints: costs by model, and timings over a grid."""
    for folder, costs in result["models"].items():
        if not isinstance(costs, dict):
            continue
        first = f"{result['batch']}x{result['length']}" if "batch" in result and "length" in result else "latency"
        timings = {f"{one['batch']}x{one['length']}": _timing(one) for one in result.get("grid", {}).get(folder, ())}
        latency = {**_latency(costs, first), **{point: timing for point, timing in timings.items() if timing}}
        yield Entry(_folder_name(folder), origin, latency=latency, folder=folder_key(folder), **_sizes(costs))


def _judged(content: Mapping[str, Any], name: str, origin: str) -> Entry:
    """A row of quality with latencies beside it."""
    row = _row(content["quality"], name, origin)
    return Entry(**{**vars(row), "name": name, "latency": _latency(content, "latency")})


def _run(run: Mapping[str, Any], origin: str) -> Iterator[Entry]:
    """A record of a run: the rows within its numbers, or the numbers themselves."""
    numbers, found = run["numbers"], False
    for key, value in numbers.items():
        for entry in _walk(value, str(key), origin) if isinstance(value, dict) else ():
            found = True
            name = f"{run['name']}, {key}"
            yield Entry(**{**vars(entry), "name": name, "minutes": None if key == "before" else run.get("minutes")})
    known = {name for names in _SIZES.values() for name in names} | {"latency_ms"}
    scores = {key: score for key, value in numbers.items() if key not in known and (score := _score(value))}
    sizes, latency = _sizes(numbers), _latency(numbers, "latency")
    if scores or (not found and (sizes or latency)):
        yield Entry(
            run["name"], origin, scores, latency=latency, minutes=run.get("minutes"),
            calibration=(run.get("data") or {}).get("calibration"), **sizes,
        )  # fmt: skip


def _score(value: Any) -> Score | None:
    if isinstance(value, dict) and isinstance(value.get("value"), int | float):
        return Score(value["value"], value.get("low"), value.get("high"))
    return Score(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _sizes(costs: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        size: next((costs[name] for name in names if isinstance(costs.get(name), int | float)), None)
        for size, names in _SIZES.items()
    }
    return {size: value for size, value in found.items() if value is not None}


def _latency(costs: Mapping[str, Any], grid: str) -> dict[str, Score]:
    """Milliseconds by grid point, from one number or from a table of timings."""
    found = {grid: _timing(costs["latency_ms"])} if isinstance(costs.get("latency_ms"), int | float) else {}
    for key in ("latency", "latency_ms"):
        for point, timing in (costs[key] if isinstance(costs.get(key), dict) else {}).items():
            found[str(point)] = _timing(timing)
    return {point: timing for point, timing in found.items() if timing}


def _timing(timing: Any) -> Score | None:
    """A median, with its percentiles where they are told."""
    told = timing if isinstance(timing, dict) else {"median": timing}
    median = told.get("median")
    return Score(float(median), told.get("low"), told.get("high")) if isinstance(median, int | float) else None


def _folder_name(folder: str) -> str:
    return PurePath(folder).name or folder


def folder_key(folder: str | None) -> str | None:
    """One key for a folder, however it was given."""
    return None if folder is None else os.path.abspath(folder)
