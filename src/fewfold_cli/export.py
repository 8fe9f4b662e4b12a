"""``fewfold export``: a model where it runs."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli.console import AsJson, Force, Verbose, megabytes, out, print_json, working
from fewfold_cli.files import check_output, existing_model

EXAMPLE = "Example: fewfold export ./small ./small-onnx --to onnx"


class OptimizeFor(str, Enum):
    """What an ONNX graph is made for."""

    speed = "speed"
    balance = "balance"
    memory = "memory"


class Form(str, Enum):
    """What can be written."""

    onnx = "onnx"
    onnx_int8 = "onnx-int8"
    standalone = "standalone"
    dense = "dense"


def export(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model.", metavar="DIR")],
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUT")],
    to: Annotated[
        Form,
        typer.Option(
            help="onnx: onnx/model.onnx, compared in ONNX Runtime. onnx-int8: the same with dynamic int8 quantization. "
            "standalone: a checkpoint that loads without fewfold. dense: a plain model."
        ),
    ] = Form.onnx,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Refuse ONNX whose outputs differ by more than this share of the largest output."),
    ] = None,
    optimize_for: Annotated[
        OptimizeFor,
        typer.Option(
            help="Of ONNX. speed: dense weights are made and packed once, when a session starts. balance: codes are "
            "looked up then, and packed at every run. memory: each weight is made at every run, before its product."
        ),
    ] = OptimizeFor.balance,
    with_past: Annotated[
        bool,
        typer.Option(
            "--with-past",
            help="Of a decoder's ONNX: past keys and values are inputs and outputs; a call reads new tokens only.",
        ),
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a model as ONNX, as a checkpoint that needs no fewfold, or dense.

    Tokenizer and sentence-transformers files are kept beside it. ONNX is run and compared before it counts as written.
    """
    with working(verbose):
        existing_model(folder)
        check_output(output, force, folder)
        if to not in (Form.onnx, Form.onnx_int8):
            _refuse_onnx_options(to, tolerance is not None, optimize_for is not OptimizeFor.balance, with_past)
        import fewfold
        from fewfold.progress import step

        with step("loading"):
            model = fewfold.load(folder)
        if to in (Form.onnx, Form.onnx_int8):
            result = _onnx(
                model, folder, output, int8=to is Form.onnx_int8, tolerance=tolerance, optimize_for=optimize_for.value,
                with_past=with_past,
            )  # fmt: skip
        else:
            result = _checkpoint(model, folder, output, to)
        result = {"folder": str(output), "to": to.value, "architecture": type(model).__name__, **result}
        if as_json:
            print_json(result)
        else:
            _show(result)


def _refuse_onnx_options(to: Form, *given: bool) -> None:
    from fewfold.errors import ModelError

    for option, is_given in zip(("--tolerance", "--optimize-for", "--with-past"), given, strict=True):
        if is_given:
            raise ModelError(f"{option} is about ONNX graphs: leave it out with --to {to.value}")


def _onnx(model: Any, folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    from fewfold.checkpoint.card import restore_card
    from fewfold.checkpoint.folders import atomic_folder, copy_side_files
    from fewfold.export.onnx import export_onnx

    with atomic_folder(output) as partial:
        copy_side_files(folder, partial)
        restore_card(partial)
        config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        config.pop("quantization_config", None)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        report = export_onnx(model, partial / "onnx" / "model.onnx", **options)
    return {
        "file": str(output / "onnx" / "model.onnx"),
        "bytes": report.bytes,
        "unique_bytes": report.unique_bytes,
        "overhead": report.overhead,
        "output": report.output,
        "max_difference": report.difference,
        "largest_output": report.largest,
        "external_data": report.external,
        "optimized_for": "speed" if options["int8"] else options["optimize_for"],
        "with_past": options["with_past"],
    }


def _checkpoint(model: Any, folder: Path, output: Path, to: Form) -> dict[str, Any]:
    import fewfold
    from fewfold.export.standalone import export_standalone
    from fewfold.measure.disk import file_bytes
    from fewfold.measure.parameters import stored_bytes
    from fewfold.progress import step

    unique = stored_bytes(model)
    with step("saving"):
        if to is Form.dense:
            fewfold.save(fewfold.densify(model), output, source=folder)
        else:
            export_standalone(model, output, source=folder)
    return {"bytes": file_bytes(output), "unique_bytes": unique, "overhead": file_bytes(output) / max(unique, 1)}


_NEXT = {
    "standalone": "load it with trust_remote_code=True; fewfold is not needed",
    "dense": "a plain model; fewfold is not needed",
}


def _show(result: dict[str, Any]) -> None:
    console = out()
    size = f"{megabytes(result['bytes'])}, {result['overhead']:.3f}× its unique stored tensors"
    if "file" not in result:
        console.print(f"saved to {result['folder']}: {size}; {_NEXT[result['to']]}")
        return
    console.print(f"saved to {result['file']}: {size}")
    console.print(
        f"ONNX Runtime's {result['output']} differs from torch's by at most {result['max_difference']:.3g} "
        f"(largest {result['largest_output']:.3g}); batch and length are free, made for {result['optimized_for']}"
    )
