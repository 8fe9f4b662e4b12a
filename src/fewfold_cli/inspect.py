"""``fewfold inspect``: what a saved model is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli.console import AsJson, Verbose, count, megabytes, out, print_json, table, working
from fewfold_cli.files import existing_model

EXAMPLE = "Example: fewfold inspect ./small --json, or the names for a recipe: fewfold inspect ./model --targets"


def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, compressed or dense.", metavar="DIR")],
    targets: Annotated[
        bool, typer.Option("--targets", help="Name every weight that a recipe could replace, and those it could not.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show every replaced weight, the budgets asked and reached, and where the model comes from."""
    with working(verbose):
        existing_model(folder)
        import fewfold
        from fewfold.checkpoint.config import structure_of
        from fewfold.measure.disk import file_bytes
        from fewfold.progress import step

        with step("loading"):
            model = fewfold.load(folder)
        structure = structure_of(model)
        result = {
            "folder": str(folder),
            "architecture": type(model).__name__,
            "compressed": structure is not None,
            "weight_file_bytes": file_bytes(folder),
            **fewfold.summary(model).to_dict(),
            "compressible": _compressible(model),
            "provenance": structure.provenance if structure is not None else {},
        }
        if targets:
            result["targets"] = _targets(model)
        if as_json:
            print_json(result)
        else:
            _show(result)


def _compressible(model: Any) -> dict[str, dict[str, int]]:
    """Weights that a recipe could replace now, by kind."""
    from fewfold.surgery.targets import find_targets

    kinds: dict[str, dict[str, int]] = {}
    for target in find_targets(model):
        kind = kinds.setdefault(f"{target.kind}s", {"weights": 0, "parameters": 0})
        kind["weights"] += 1
        kind["parameters"] += target.numel
    return kinds


def _targets(model: Any) -> list[dict[str, Any]]:
    """Those weights one by one, by the names that recipes use."""
    from fewfold.surgery.targets import find_targets

    return [
        {"name": target.name, "kind": target.kind, "rows": target.rows, "columns": target.columns,
         "parameters": target.numel, "also": [tie.module for tie in target.ties], "refused": target.refusal}
        for target in find_targets(model)
    ]  # fmt: skip


def _show(result: dict[str, Any]) -> None:
    console = out()
    state = "compressed" if result["compressed"] else "dense"
    console.print(f"[bold]{result['folder']}[/bold]: {state} {result['architecture']}")
    if result["rows"]:
        columns = ("target", "method", "rank", "form", "stored", "parameters", "dense", "bytes", "MACs")
        drawn = table(None, *columns, left=5)
        for row in result["rows"]:
            numbers = (f"{row[name]:,}" for name in ("parameters", "dense", "bytes", "macs"))
            drawn.add_row(row["target"], row["method"], row["rank"], row["form"], row["stored"], *numbers)
        console.print(drawn)
    fewer = result["dense_parameters"] / max(result["parameters"], 1)
    console.print(
        f"{count(result['parameters'])} unique parameters"
        + (f" (dense {count(result['dense_parameters'])}, {fewer:.2f}× fewer)" if result["rows"] else "")
        + f", {megabytes(result['weight_file_bytes'])} of weights on disk"
    )
    if "targets" in result:
        drawn = table("weights that a recipe may name", "target", "kind", "shape", "parameters", "", left=3)
        for one in result["targets"]:
            said = (
                f"refused: {one['refused']}" if one["refused"] else ", ".join(f"tied: {name}" for name in one["also"])
            )
            drawn.add_row(one["name"], one["kind"], f"{one['rows']}×{one['columns']}", f"{one['parameters']:,}", said)
        console.print(drawn)
    for kind, found in result["compressible"].items():
        console.print(f"still dense: {found['weights']} {kind} with {count(found['parameters'])} parameters")
    for asked in result["budgets"]:
        console.print(f"budget {asked['asked']}: limit {asked['limit']:,.6g}, reached {asked['reached']:,.6g}")
    for taken in result["provenance"].get("steps", []):
        data = taken["calibration"]
        console.print(
            f"recipe {taken['recipe']}" + (f" ({taken['source']})" if taken.get("source") else "")
            + f", fewfold {taken['fewfold']}, calibration {data['name']}"
            + (f" ({data['texts']} texts, {data['tokens']:,} tokens)" if data["texts"] else "")
            + ("" if taken["fitted"] else ", not fitted")
        )  # fmt: skip
