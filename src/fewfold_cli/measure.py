"""``fewfold measure``: what a saved model costs, beside another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli.console import AsJson, Verbose, out, print_json, table, working
from fewfold_cli.files import existing_model

EXAMPLE = "Example: fewfold measure ./small --against ./all-MiniLM-L6-v2 --batch 1 --length 16"


def measure(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model.", metavar="DIR")],
    against: Annotated[Path | None, typer.Option("--against", "-a", help="Another model to compare with.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a forward pass.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens in a sequence.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: torch's own choice).")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure parameters, bytes on disk, work, load time, memory and latency.

    Two models are timed in turns, so that both see the same machine; each is loaded in a process of its own for its
    load time and memory.
    """
    with working(verbose):
        folders = [existing_model(path) for path in (folder, against) if path is not None]
        import fewfold
        from fewfold.measure.environment import environment
        from fewfold.measure.latency import latency
        from fewfold.progress import step

        with step("loading"):
            models = {str(path): fewfold.load(path) for path in folders}
        costs = {name: _costs(Path(name), model, batch, length) for name, model in models.items()}
        timings = latency(models, batch, length, repeats, threads=threads)
        for name, timing in timings.items():
            costs[name] |= {"latency_ms": timing.median, "latency_low_ms": timing.low, "latency_high_ms": timing.high}
        names = [str(path) for path in folders]
        result: dict[str, Any] = {
            "batch": batch,
            "length": length,
            "models": {name: costs[name] for name in names},
            "environment": environment(),
        }
        if against is not None:
            this, other = costs[names[0]], costs[names[-1]]
            result["ratios"] = {name: other[name] / this[name] for name in _ROWS if this[name]}
            result["ratios"]["latency_ms"] = timings[names[0]].speedup[names[-1]]
        if as_json:
            print_json(result)
        else:
            _show(result)


def _costs(folder: Path, model: Any, batch: int, length: int) -> dict[str, float]:
    """Everything but latency of one model."""
    from fewfold.measure.disk import file_bytes, folder_bytes
    from fewfold.measure.macs import macs_per_token
    from fewfold.measure.memory import load_cost
    from fewfold.measure.parameters import unique_parameters
    from fewfold.progress import step

    with step(f"loading {folder.name} in a new process"):
        load = load_cost(folder)
    return {
        "parameters": unique_parameters(model),
        "weight_file_bytes": file_bytes(folder),
        "folder_bytes": folder_bytes(folder),
        "macs_per_token": macs_per_token(model, batch=batch, length=length).total,
        "load_seconds": load.seconds,
        "resident_bytes": load.resident_after_bytes - load.resident_before_bytes,
        "peak_bytes": load.peak_bytes - load.resident_before_bytes,
    }


_ROWS = {
    "parameters": ("unique parameters", lambda value: f"{value:,.0f}"),
    "weight_file_bytes": ("weight files, MB", lambda value: f"{value / 1e6:,.2f}"),
    "folder_bytes": ("whole folder, MB", lambda value: f"{value / 1e6:,.2f}"),
    "macs_per_token": ("MACs a token, M", lambda value: f"{value / 1e6:,.2f}"),
    "load_seconds": ("load time, s", lambda value: f"{value:.2f}"),
    "resident_bytes": ("memory of the loaded model, MB", lambda value: f"{value / 1e6:,.1f}"),
    "peak_bytes": ("most memory while loading, MB", lambda value: f"{value / 1e6:,.1f}"),
    "latency_ms": ("latency, ms", lambda value: f"{value:,.2f}"),
}


def _show(result: dict[str, Any]) -> None:
    ratios = result.get("ratios")
    models = result["models"]
    title = f"batch {result['batch']}, length {result['length']}, {result['environment']['threads']} threads"
    headers = [Path(name).name or name for name in models]
    headers = headers if len(set(headers)) == len(headers) else list(models)
    drawn = table(title, "", *headers, *(["less"] if ratios else []))
    for key, (label, show) in _ROWS.items():
        cells = [show(costs[key]) for costs in models.values()]
        drawn.add_row(label, *cells, *([f"{ratios[key]:.2f}×" if key in ratios else "–"] if ratios else []))
    out().print(drawn)
