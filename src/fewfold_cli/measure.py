"""``fewfold measure``: what saved models cost, side by side."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli.console import AsJson, Verbose, out, print_json, table, working
from fewfold_cli.files import check_files, existing_model

EXAMPLE = "Example: fewfold measure ./small ./all-MiniLM-L6-v2 --batch 1 --batch 8 --length 16 --length 128"


def measure(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of saved models; the last one is compared with.", metavar="DIR…")
    ],
    against: Annotated[Path | None, typer.Option("--against", "-a", help="One more model to compare with.")] = None,
    batch: Annotated[list[int], typer.Option(min=1, help="Sequences in a forward pass; may be given again.")] = [1],  # noqa: B006
    length: Annotated[list[int], typer.Option(min=1, help="Tokens in a sequence; may be given again.")] = [128],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before those.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: torch's own choice).")] = None,
    write: Annotated[Path | None, typer.Option(help="Write the JSON into this file too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture into this file (png, svg or pdf).")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure parameters, bytes on disk, work, load time, memory and latency.

    Models are timed in turns, so that all see the same machine; each is loaded in a process of its own for its load
    time and memory. What sharing does not save stands beside what it saves: parameters that a forward reads, work,
    activations.
    """
    with working(verbose):
        check_files(write, plot)
        paths = [existing_model(path) for path in (*folders, *([against] if against else []))]
        import fewfold
        from fewfold.measure.costs import costs_of, time_grid
        from fewfold.measure.environment import environment
        from fewfold.progress import step

        with step("loading"):
            models = {str(path): fewfold.load(path) for path in paths}
        costs: dict[str, dict[str, Any]] = {
            name: asdict(costs_of(Path(name), model, batch, length)) for name, model in models.items()
        }
        grid = time_grid(models, batch, length, repeats, warmup, threads)
        for name, points in grid.items():
            first = points[0]
            costs[name] |= {"latency_ms": first["median"], "latency_low_ms": first["low"]}
            costs[name] |= {"latency_high_ms": first["high"], "throughput": first["sequences_per_second"]}
        where = environment()
        result: dict[str, Any] = {
            "batch": batch[0],
            "length": length[0],
            "models": costs,
            "grid": grid,
            "environment": {**where, "threads": threads or where["threads"]},
        }
        if len(costs) > 1:
            result["ratios"] = _ratios(costs, grid)
        if write is not None:
            write.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if plot is not None:
            from fewfold.report.cost_plots import cost_plot

            cost_plot(
                dict(zip(_short(costs), costs.values(), strict=True)),
                dict(zip(_short(costs), grid.values(), strict=True)),
                plot,
            )
        if as_json:
            print_json(result)
        else:
            _show(result)


def _ratios(costs: dict[str, dict[str, Any]], grid: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """How many times less the first model costs than the last."""
    first, last = next(iter(costs)), list(costs)[-1]
    ratios = {name: costs[last][name] / costs[first][name] for name in _ROWS if costs[first].get(name)}
    ratios["latency_ms"] = grid[first][0]["speedup"][last]
    return ratios


def _millions(value: float) -> str:
    return f"{value / 1e6:,.2f}"


_ROWS = {
    "parameters": ("unique parameters", lambda value: f"{value:,.0f}"),
    "live_parameters": ("parameters a forward reads", lambda value: f"{value:,.0f}"),
    "weight_file_bytes": ("weight files, MB", _millions),
    "folder_bytes": ("whole folder, MB", _millions),
    "macs_per_token": ("MACs a token, M", _millions),
    "load_seconds": ("load time, s", lambda value: f"{value:.2f}"),
    "resident_bytes": ("memory of the loaded model, MB", lambda value: f"{value / 1e6:,.1f}"),
    "peak_bytes": ("most memory while loading, MB", lambda value: f"{value / 1e6:,.1f}"),
    "activation_bytes": ("activations at the largest input, MB", _millions),
}


def _short(names: Any) -> list[str]:
    """Names of folders without their paths, where they differ."""
    short = [Path(name).name or name for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _show(result: dict[str, Any]) -> None:
    ratios = result.get("ratios")
    models, grid = result["models"], result["grid"]
    title = f"batch {result['batch']}, length {result['length']}, {result['environment']['threads']} threads"
    drawn = table(title, "", *_short(models), *(["less"] if ratios else []))
    for key, (label, show) in _ROWS.items():
        cells = [show(costs[key]) for costs in models.values()]
        drawn.add_row(label, *cells, *([f"{ratios[key]:.2f}×" if key in ratios else "–"] if ratios else []))
    first, last = next(iter(grid)), list(grid)[-1]
    for place, point in enumerate(grid[first]):
        label = f"latency {point['batch']}×{point['length']}, ms (10th … 90th percentile)"
        cells = [f"{p['median']:,.2f} ({p['low']:,.2f} … {p['high']:,.2f})" for p in (g[place] for g in grid.values())]
        drawn.add_row(label, *cells, *([f"{point['speedup'][last]:.2f}×"] if ratios else []))
        cells = [f"{points[place]['sequences_per_second']:,.1f}" for points in grid.values()]
        drawn.add_row(f"sequences a second {point['batch']}×{point['length']}", *cells, *(["–"] if ratios else []))
    out().print(drawn)
