"""``fewfold evaluate``: what a saved model is worth on a task."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from fewfold_cli.console import AsJson, Verbose, count, megabytes, out, print_json, table, working
from fewfold_cli.files import check_files, existing_model, tokenizer_of

TASKS = "cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, squad, multi30k-en-de, multi30k-de-en, flickr8k-captions"
ON_TEXT = ("perplexity", "neighbours")
TRAINING = {"--limit", "--seeds", "--epochs", "--learning-rate", "--rates", "--batch", "--bf16"}
ALWAYS = ("folder", "task", "output", "as_json", "verbose")
BELONGS = {
    "--text": "--task perplexity and neighbours", "--against": "--task neighbours",
    "--stride": "--task squad and perplexity", "--beams": "translation and captions",
}  # fmt: skip
NEIGHBOURS = 10
WIKITEXT = {f"wikitext2-{split}": split for split in ("train", "valid", "test")}
EXAMPLE = (
    "Example: fewfold evaluate ./small --task sst2 --finetune --seeds 3 --limit 10000 --out sst2.json, "
    "or as it is: fewfold evaluate ./small --task stsb, "
    "or beside another: fewfold evaluate ./small --task neighbours --text sentences.txt --against ./model, "
    "or on a text: fewfold evaluate ./small-lm --task perplexity --text test.txt"
)


def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, compressed or dense.", metavar="DIR")],
    task: Annotated[
        str,
        typer.Option(
            "--task",
            "-t",
            help=f"{TASKS} (data from FEWFOLD_DATA, else from the Hub); perplexity of --text; or neighbours: the ten "
            "nearest texts of each line of --text, shared with --against.",
        ),
    ],
    finetune: Annotated[bool, typer.Option("--finetune", help="Train a copy on the task first.")] = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Leave the model as it is, and fit a logistic regression to its mean states."),
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Fine-tuned runs, seeds 0, 1, …")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on the first so many examples.")] = None,
    eval_limit: Annotated[
        int | None, typer.Option(min=1, help="Judge on the first so many examples (of perplexity: tokens).")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the training examples.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate; 2e-5 to 5e-5 is usual.")] = 3e-5,
    rates: Annotated[
        str, typer.Option(help="equal, or by_size: factors and sub-vectors take larger steps than weights.")
    ] = "equal",
    batch: Annotated[int, typer.Option(min=1, help="Examples a training step.")] = 32,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train in bfloat16.")] = False,
    max_length: Annotated[
        int | None, typer.Option(min=4, help="Tokens a text; 128, of squad 384, of perplexity 512.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of squad: tokens that windows share (128). Of perplexity: tokens a window moves on (half a "
            "window); of a masked model: mask every so manyth token at once (each alone)."
        ),
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Of translation and captions: beams; 1 is greedy.")] = 1,
    text: Annotated[
        Path | None,
        typer.Option(help=f"A text file (.txt, also packed as .gz or .xz), or {', '.join(WIKITEXT)}."),
    ] = None,
    against: Annotated[Path | None, typer.Option("--against", "-a", help="Model to compare neighbours with.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write the whole result as JSON. Fine-tuning that was killed goes on if started again: "
            "finished seeds and checkpoints stand in OUT.checkpoints until the result is written.",
        ),
    ] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write every prediction, a JSON object a line.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:  # fmt: skip
    """Judge a model on a task with its official metrics: as it is, after fine-tuning, or by a probe of its states.

    Intervals are 95 % bootstrap intervals over examples; over several seeds mean and standard deviation are given.
    """
    with working(verbose):
        existing_model(folder)
        check_files(output, predictions)
        import fewfold

        _check_options(task, {f"--{name.replace('_', '-')}" for name in context.params if _is_given(context, name)})
        import torch

        from fewfold.progress import step
        from fewfold.tasks.result import write_json

        with step("loading"):
            model = fewfold.load(folder)
            if torch.accelerator.is_available():
                model.to(torch.accelerator.current_accelerator())
            tokenizer = tokenizer_of(folder)
        if tokenizer is None:
            raise fewfold.TaskError(f"{folder} holds no tokenizer: save it beside the model")
        checkpoints = None
        if task in ON_TEXT:
            result = _on_text(folder, model, tokenizer, task, text, against, max_length, stride, eval_limit)
        else:
            from fewfold import tasks

            if probe:
                found = tasks.probe(
                    model, task, tokenizer=tokenizer, limit=limit, eval_limit=eval_limit, max_length=max_length or 128
                )
                if predictions is not None:
                    found.save_predictions(predictions)
            else:
                if output is not None and finetune:
                    checkpoints = output.with_name(f"{output.name}.checkpoints")
                settings = tasks.FineTuning(learning_rate, epochs, batch, bf16=bf16, limit=limit, rates=rates)
                found = tasks.evaluate(
                    model, task, tokenizer=tokenizer, finetune=settings if finetune else None, seeds=range(seeds),
                    max_length=max_length, stride=128 if stride is None else stride, eval_limit=eval_limit,
                    beams=beams, predictions=predictions, checkpoints=checkpoints,
                )  # fmt: skip
            result = {"folder": str(folder), **found.to_dict()}
        if output is not None:
            write_json(result, output)
        if checkpoints is not None:
            shutil.rmtree(checkpoints, ignore_errors=True)
        if as_json:
            print_json(result)
        else:
            _show(result, [file for file in (output, predictions) if file is not None])


def _check_options(task: str, given: set[str]) -> None:
    """Refuse options that would be ignored, before anything is loaded."""
    from fewfold import TaskError
    from fewfold.tasks.evaluate import GENERATED

    if {"--finetune", "--probe"} <= given:
        raise TaskError("--finetune trains the model and --probe leaves it as it is: give one of them")
    taken = {"--max-length", "--eval-limit"}
    if task in ON_TEXT:
        taken |= {"--text", "--against" if task == "neighbours" else "--stride"}
    else:
        taken |= {"--finetune", "--probe", "--predictions"}
        taken |= {"--stride"} if task == "squad" else {"--beams"} if task in GENERATED else set()
        taken |= TRAINING if "--finetune" in given else {"--limit"} if "--probe" in given else set()
    for option in sorted(given - taken):
        if option in TRAINING and task not in ON_TEXT:
            raise TaskError(f"{option} is of training: add --finetune, or leave it out")
        raise TaskError(f"{option} is of {BELONGS.get(option, 'tasks with examples')}, not of {task}: leave it out")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE" and name not in ALWAYS


def _on_text(
    folder: Path, model: Any, tokenizer: Any, task: str, text: Path | None, against: Path | None,
    max_length: int | None, stride: int | None, limit: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Judge a model on unlabelled text."""
    import time

    import fewfold
    from fewfold.measure.environment import environment
    from fewfold.tasks.perplexity import perplexity
    from fewfold.tasks.probe import count_tokens
    from fewfold.tasks.result import describe

    start = time.perf_counter()
    if text is None:
        raise fewfold.TaskError(f"--task {task} needs --text FILE")
    lines = _lines(text)
    if task == "perplexity":
        measured = perplexity(model, tokenizer, lines, max_length or 512, stride, limit).to_dict()
        metrics = {name: measured.pop(name) for name in ("perplexity", "word_perplexity")}
        data: dict[str, Any] = {"source": text.name, **measured}
        settings, tokens = {"max_length": max_length or 512, "stride": stride, "eval_limit": limit}, data["tokens"]
    else:
        length = max_length or 128
        if against is None:
            raise fewfold.TaskError("--task neighbours needs --against DIR, the model to compare with")
        lines = list(dict.fromkeys(line for line in lines if line.strip()))[:limit]
        if len(lines) < 11:
            holds = f"--text {text} holds" if limit is None or len(lines) < limit else f"--eval-limit {limit} leaves"
            raise fewfold.TaskError(f"{holds} {len(lines)} distinct lines; ten neighbours need at least 11")
        metrics = _nearness(model, tokenizer, existing_model(against), lines, length)
        data = {"source": text.name, "texts": len(lines), "against": str(against), "max_length": length}
        settings = {"max_length": length, "eval_limit": limit}
        tokens = count_tokens(tokenizer, lines, length)
    return {
        "folder": str(folder),
        "task": task,
        "metrics": {
            name: {"mean": value, "std": None, "values": [value]}
            for name, value in metrics.items()
            if value is not None
        },
        "model": describe(model),
        "data": data,
        "settings": settings,
        "seed": None,  # nothing is drawn
        "tokens": tokens,
        "minutes": (time.perf_counter() - start) / 60,
        "environment": environment(),
    }


def _nearness(model: Any, tokenizer: Any, against: Path, lines: list[str], length: int) -> dict[str, float | None]:
    """Beside a model that reads the same tokens: vectors, too; beside any other: neighbours alone."""
    import fewfold
    from fewfold.measure.fidelity import fidelity, nearest_neighbours, neighbour_overlap, sentence_embeddings

    other, words = fewfold.load(against).to(model.device), tokenizer_of(against) or tokenizer
    widths = [getattr(one.config.get_text_config(), "hidden_size", None) for one in (model, other)]
    if widths[0] == widths[1] and words(lines)["input_ids"] == tokenizer(lines)["input_ids"]:
        near = fidelity(other, model, tokenizer, lines, max_length=length)
        return {"nn10": near.neighbour_overlap, "cosine": near.cosine, "hidden_error": near.hidden_error}
    sides = ((other, words), (model, tokenizer))
    found = [nearest_neighbours(sentence_embeddings(*side, lines, max_length=length), NEIGHBOURS) for side in sides]
    return {"nn10": neighbour_overlap(*found)}


def _lines(text: Path) -> list[str]:
    """The lines of a text file; a missing one is an error of the system's."""
    import fewfold
    from fewfold.tasks.data import lines, wikitext2

    if str(text) in WIKITEXT and not text.exists():
        return wikitext2(WIKITEXT[str(text)])
    try:
        return lines(text.expanduser())
    except UnicodeDecodeError as error:
        raise fewfold.TaskError(f"--text {text} is no UTF-8 text: {error}") from error


def _show(result: dict[str, Any], written: list[Path]) -> None:
    console, model = out(), result["model"]
    state = "compressed" if model["compressed"] else "dense"
    console.print(
        f"[bold]{result['folder']}[/bold]: {state} {model['class']}, {count(model['parameters'])} parameters, "
        f"{megabytes(model['bytes'])}"
    )
    runs = result.get("runs", [])
    last = "standard deviation" if len(runs) > 1 else "95 % interval"
    console.print(f"{result['task']}{_how(result)}")
    drawn = table(None, "metric", "mean" if len(runs) > 1 else "value", last)
    for name, found in result["metrics"].items():
        if found["std"] is not None:
            spread = f"{found['std']:.4f}"
        elif runs:
            spread = "{low:.4f} … {high:.4f}".format(**runs[0]["metrics"][name])
        else:
            spread = "–"
        drawn.add_row(name, f"{found['mean']:.4f}", spread)
    console.print(drawn)
    for run in runs[:1]:
        for what, done in (("trained", run["training"]), ("judged", run["evaluation"])):
            if done:
                pace = f"{done['seconds']:.0f} s, {done['seconds_per_1000']:.1f} s per 1,000"
                console.print(f"{what} on {done['examples']:,} examples in {pace}")
    console.print(f"{result['minutes']:.1f} min in all" + "".join(f"; written: {file}" for file in written))


def _how(result: dict[str, Any]) -> str:
    """How the figures came about, for the line above the table."""
    if "runs" not in result:
        data = result["data"]
        return f" on {data['source']}" + (
            f", {data['kind']} model, {data['tokens']:,} tokens" if "kind" in data else ""
        )
    settings, runs = result["settings"], result["runs"]
    limits = ""
    if settings["finetune"] and settings["finetune"]["limit"]:
        limits += f", first {runs[0]['training']['examples']:,} training examples"
    if settings["eval_limit"]:
        limits += f", first {settings['eval_limit']:,} to judge on"
    if settings.get("probe"):
        return f": a linear probe, fitted to {result['data']['train']['examples']:,} training examples{limits}"
    if settings["finetune"]:
        return f": fine-tuned, {len(runs)} seed{'s' if len(runs) > 1 else ''}{limits}"
    ways = {"head": "", "cosines": ", by cosines of sentence vectors", "generation": f", {_search(result)}"}
    by = ways[runs[0]["evaluation"]["by"]]
    return f": as it is{by}{limits}"


def _search(result: dict[str, Any]) -> str:
    """How translations were found, and how BLEU was computed."""
    beams = result["settings"].get("beams", 1)
    return f"{'greedily' if beams == 1 else f'{beams} beams'}, {result['data'].get('signature')}"
