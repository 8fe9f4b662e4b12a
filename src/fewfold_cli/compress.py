"""``fewfold compress``: a model in, a smaller one out."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fewfold_cli import texts
from fewfold_cli.console import AsJson, Force, Fresh, Verbose, count, megabytes, out, print_json, table, working
from fewfold_cli.distill import show_recovery
from fewfold_cli.files import check_output, loadable, model_files, tokenizer_of

AS_EVER = "as ever"  # --recover without a value
EXAMPLE = (
    "Example: fewfold compress ./all-MiniLM-L6-v2 ./small --recipe low-rank-int8 "
    '--budget "parameters=1/4 of linears" --calibration texts.txt'
)


class Compress(TyperCommand):
    """A command whose option --recover may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever, with the value that a bare option stands for."""
        filled = []
        for place, argument in enumerate(args):
            filled.append(argument)
            following = args[place + 1 : place + 2]
            if argument == "--recover" and (not following or following[0].startswith("-")):
                filled.append(AS_EVER)
        return super().parse_args(ctx, filled)


def compress(
    model: Annotated[str, typer.Argument(help="Folder of a saved model, or its name on the Hub.", metavar="MODEL")],
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT")],
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="A preset (see `fewfold recipes`) or a recipe file (.yaml).")
    ],
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            "-b",
            help="What it may cost: 'parameters=1/4 of linears', 'bytes=20MB', 'macs=3M', 'latency=2.5ms at 1x16'. "
            "Give several for several parts.",
        ),
    ] = None,
    calibration: Annotated[str | None, typer.Option("--calibration", "-c", help=texts.HELP)] = None,
    fit: Annotated[
        bool, typer.Option("--fit/--no-fit", help="Fit to the model's weights, or only build the structure to train.")
    ] = True,
    recover: Annotated[
        str | None,
        typer.Option(
            help="Distil from MODEL afterwards: '20min', '300 steps', a preset or .yaml of `fewfold distill`; without "
            "a value as the recipe says, else one pass over the texts.",
            metavar="[HOW]",
        ),
    ] = None,
    recover_data: Annotated[
        list[str] | None,
        typer.Option(help="Texts to distil on, as of `fewfold distill --data` (else --calibration's)."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help=f"Evaluation sentences to keep out of recovery: a text file, or {texts.EVALUATED}."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens kept of a calibration text.")] = 128,
    fresh: Fresh = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compress a model and save it with its tokenizer and the files beside it.

    OUT then loads as MODEL did, through AutoModel.from_pretrained or SentenceTransformer, after `import fewfold`.
    """
    with working(verbose, told), model_files(model) as files:
        import fewfold
        from fewfold.distill.records import keep_history
        from fewfold.distill.recovery import Recovery
        from fewfold.measure.disk import file_bytes
        from fewfold.measure.parameters import stored_bytes, unique_parameters
        from fewfold.progress import step

        folder = check_output(output, force, files)
        steps = fewfold.Recipe.of(recipe)
        calibrating, name = texts.calibration_texts(calibration) if calibration else (None, None)
        with step("loading"):
            loaded = fewfold.load(loadable(model, files))
            tokenizer = tokenizer_of(files) if calibrating or recover_data else None
        if recover == AS_EVER:
            recover = None if steps.recover else "general"
        recovery = None
        if recover is None and not steps.recover and (recover_data or exclude):
            option = "--recover-data" if recover_data else "--exclude"
            raise fewfold.RecipeError(f"{option} is of recovery, and none is asked for: give --recover too")
        if recover is not None or steps.recover:
            learning, learned = texts.rows(recover_data) if recover_data else (calibrating, name)
            work = folder.with_name(f"{folder.name}.checkpoints")
            if fresh:
                shutil.rmtree(work, ignore_errors=True)
            recovery = Recovery(learning, texts.excluded(exclude or []), work, learned)
        before = {"parameters": unique_parameters(loaded), "bytes": stored_bytes(loaded)}
        start = time.perf_counter()
        fewfold.compress(
            loaded, steps, budget=budget, calibration=calibrating, tokenizer=tokenizer, fit=fit, seed=seed,
            max_length=max_length, calibration_name=name, recover=recover, recovery=recovery,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        with step("saving"):
            fewfold.save(loaded, output, source=files)
            if recovery is not None and recovery.folder is not None:
                keep_history(recovery.folder, output)
        result = {
            "folder": str(output),
            "seconds": seconds,
            "before": before,
            "weight_file_bytes": file_bytes(output),
            **fewfold.summary(loaded).to_dict(),
        }
        if recovery is not None:
            result["recovery"] = json.loads((output / "distill.json").read_text(encoding="utf-8"))
        if as_json:
            print_json(result)
        else:
            _show(result, type(loaded).__name__)


def told(message: str) -> str:
    """A warning in the command's own words."""
    if not message.startswith("no calibration data"):
        return message
    return (
        "no --calibration: fitted to the weights alone, which keeps much less quality. Give texts like those the model "
        f"will see, or --calibration {texts.MANUAL}"
    )


def _show(result: dict[str, Any], architecture: str) -> None:
    console = out()
    before = result["before"]
    drawn = table(f"{architecture} compressed in {result['seconds']:.1f} s", "", "before", "after", "fewer")
    for label, show, was, now in (
        ("unique parameters", count, before["parameters"], result["parameters"]),
        ("weight bytes", megabytes, before["bytes"], result["bytes"]),
    ):
        drawn.add_row(label, show(was), show(now), f"{was / max(now, 1):.2f}×")
    console.print(drawn)
    for asked in result["budgets"]:
        console.print(f"budget {asked['asked']}: limit {asked['limit']:,.6g}, reached {asked['reached']:,.6g}")
    kinds = sorted({(row["method"], row["stored"]) for row in result["rows"]})
    console.print(f"{len(result['rows'])} weights replaced: " + ", ".join(f"{m} in {s}" for m, s in kinds))
    if "recovery" in result:
        show_recovery(result["recovery"])
    console.print(f'saved to {result["folder"]}; load it with: import fewfold; fewfold.load("{result["folder"]}")')
