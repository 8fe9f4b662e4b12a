"""``fewfold distill``: a compressed model learns from the dense one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli import texts
from fewfold_cli.console import AsJson, Force, Fresh, Verbose, err, out, print_json, table, working
from fewfold_cli.files import check_output, loadable, model_files, tokenizer_of

EXAMPLE = "Example: fewfold distill ./all-MiniLM-L6-v2 ./small --data texts.txt --out ./recovered --minutes 20"


def distill(
    teacher: Annotated[str, typer.Argument(help="The dense model: a folder, or a name on the Hub.", metavar="TEACHER")],
    student: Annotated[str, typer.Argument(help="The compressed model: a folder.", metavar="STUDENT")],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    data: Annotated[list[str], typer.Option("--data", "-d", help=texts.ROWS_HELP)],
    config: Annotated[
        str, typer.Option("--config", "-c", help="A preset (general, task, published-stage-1, …) or a .yaml file.")
    ] = "general",
    minutes: Annotated[float | None, typer.Option(help="Wall-clock limit of everything.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of everything.")] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help=f"Evaluation sentences to keep out: text files, or {texts.EVALUATED}."),
    ] = None,
    cache_teacher: Annotated[
        Path | None,
        typer.Option(
            help="Run the teacher once over all texts, and keep its outputs in this folder: for a --config with losses "
            "on last hidden states, sentence vectors or logits."
        ),
    ] = None,
    local: Annotated[
        int,
        typer.Option(
            min=0,
            help="First fit every compressed linear to the dense layer's outputs, in so many steps (20 is usual).",
        ),
    ] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Autocast to bfloat16, where the hardware has it.")] = False,
    fresh: Fresh = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Win a compressed model's quality back by distillation from the dense model.

    OUT gets the trained model, distill.json with everything that happened, and distill.png with the loss curve. A run
    that was stopped goes on when the same command is given again. Several processes: torchrun -m fewfold_cli.main …
    """
    with working(verbose), model_files(teacher) as dense_files, model_files(student) as files:
        import fewfold
        from fewfold.distill.presets import phases_of
        from fewfold.progress import step
        from fewfold.training.processes import is_main_process

        check_output(output, force, files)
        phases = [phase.changed(bf16=bf16 or phase.bf16) for phase in phases_of(config)]
        if local:
            phases[0] = phases[0].changed(local_steps=local)
        rows, name = texts.rows(data)
        held_out = texts.excluded(exclude or [])
        with step("loading"):
            dense, small = fewfold.load(loadable(teacher, dense_files)), fewfold.load(loadable(student, files))
            tokenizer, own = tokenizer_of(dense_files), tokenizer_of(files)
        fewfold.distill(
            dense, small, rows, config=phases, tokenizer=tokenizer, student_tokenizer=own, out=output,
            minutes=minutes, steps=steps, exclude=held_out, cache_teacher=cache_teacher, resume=not fresh,
            source=files, data_name=name,
        )  # fmt: skip
        if is_main_process():
            _show(output, as_json)


def _show(folder: Path, as_json: bool) -> None:
    import json

    result: dict[str, Any] = json.loads((folder / "distill.json").read_text(encoding="utf-8"))
    if as_json:
        print_json({"folder": str(folder), **result})
        return
    show_recovery(result)
    out().print(f"saved to {folder}; the curve is {folder / 'distill.png'}")


def show_recovery(result: dict[str, Any]) -> None:
    """What a recovery did, phase by phase; ``result`` as of distill.json."""
    drawn = table(
        f"distilled in {result['minutes']:.1f} min", "phase", "steps", "tokens", "tokens/s", "loss", "ended by"
    )
    for phase in result["phases"]:
        points = phase["held_out"] or phase["curve"]
        drawn.add_row(
            phase["config"].get("name", "custom"), f"{phase['steps']:,}", f"{phase['tokens']:,}",
            f"{phase['tokens_a_second']:,.0f}", f"{points[0]['loss']:.4g} → {points[-1]['loss']:.4g}", phase["stopped"],
        )  # fmt: skip
    out().print(drawn)
    if result["data"]["excluded"]:
        err().print(f"{result['data']['excluded']:,} texts left out: they hold evaluation sentences")
