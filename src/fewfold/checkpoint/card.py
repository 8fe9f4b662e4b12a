"""The model card of a compressed checkpoint: what was done, the numbers, how to load it."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from fewfold.checkpoint.config import structure_of
from fewfold.checkpoint.structure import Structure
from fewfold.measure.parameters import stored_bytes, unique_parameters


def write_card(
    model: nn.Module,
    folder: Path,
    *,
    source: str | os.PathLike[str] | None = None,
    numbers: dict[str, Any] | None = None,
) -> None:
    """Write ``README.md`` into a checkpoint folder; an original card found there is kept as ``README.original.md``."""
    structure = structure_of(model)
    assert structure is not None
    card_file, original = folder / "README.md", folder / "README.original.md"
    metadata: dict[str, Any] = {}
    if card_file.exists():
        metadata = _metadata(card_file)
        if "fewfold" not in (metadata.get("tags") or []):
            card_file.rename(original)
    base = base_model(model, source)
    if base and "/" not in base:  # a folder's name says less than its card
        base = _title(original) or base
    data = card_data(metadata, structure, base, sentence_encoder=(folder / "modules.json").is_file())
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{card_text(model, structure, base, numbers)}").save(card_file)


def base_model(model: nn.Module, source: str | os.PathLike[str] | None) -> str:
    """What the model was made from: its name on the Hub where it has one there, else the folder's name."""
    name = str(source) if source is not None else getattr(getattr(model, "config", None), "name_or_path", "") or ""
    is_place = Path(name).is_absolute() or Path(name).exists() or name.startswith(".") or name.count("/") > 1
    return Path(name).name if is_place else name


def card_data(metadata: dict[str, Any], structure: Structure, base: str, sentence_encoder: bool) -> ModelCardData:
    """The card's header: what the original card says of licence, language and data, and what is new.

    :param metadata: header of the original card; empty if there is none.
    :param base: as of `base_model`; a header takes names on the Hub only.
    :param sentence_encoder: whether sentence-transformers' files stand beside the weights.
    """
    kept = {key: metadata[key] for key in ("license", "language", "pipeline_tag", "datasets") if metadata.get(key)}
    methods = dict.fromkeys(record.method.replace("_", "-") for record in structure.targets)
    tags = dict.fromkeys([*(metadata.get("tags") or []), "fewfold", "compression", *methods])
    known = base if "/" in base else metadata.get("base_model")
    library = metadata.get("library_name") or ("sentence-transformers" if sentence_encoder else "transformers")
    # "quantized" is the Hub's word for smaller versions of the same model; there is none for factored ones.
    relation: dict[str, Any] = {"base_model": known, "base_model_relation": "quantized"} if known else {}
    return ModelCardData(library_name=library, tags=list(tags), **relation, **kept)


def restore_card(folder: Path) -> None:
    """Put the original card back beside a plain model: that of a compressed one tells what no longer holds."""
    original, card = folder / "README.original.md", folder / "README.md"
    if original.is_file():
        original.replace(card)
    elif card.is_file() and "fewfold" in (_metadata(card).get("tags") or []):
        card.unlink()


def _title(card: Path) -> str:
    """The heading that a card begins with; empty where it has none that could be a name."""
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"\A---\n.*?\n---\n|<!--.*?-->", "", text, flags=re.DOTALL)
    heading = re.match(r"\s*# +([\w.@ -]{1,80}?) *\n", text)
    return heading[1] if heading else ""


def _metadata(card: Path) -> dict[str, Any]:
    """The header of a card; empty where it has none, or one that cannot be read."""
    try:
        return ModelCard(card.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data.to_dict()
    except ValueError:
        return {}


def card_text(model: nn.Module, structure: Structure, base: str, numbers: dict[str, Any] | None) -> str:
    """The card's body."""
    architecture = type(model).__name__
    origin = f"[`{base}`](https://huggingface.co/{base})" if "/" in base else f"`{base}`"
    is_public = hasattr(transformers, architecture)
    loader = f"or transformers.{architecture}.from_pretrained(…)" if is_public else f"a {architecture}"
    lines = [
        f"# {Path(base).name or architecture}, compressed with fewfold",
        "",
        f"A {architecture} with **{unique_parameters(model):,} unique parameters** in "
        f"**{stored_bytes(model) / 1e6:.2f} MB** of weights" + (f", made from {origin}." if base else "."),
        "",
        "## How to load",
        "",
        "```python",
        f'import fewfold  # pip install fewfold\nmodel = fewfold.load("name or folder")  # {loader}',
        "```",
        "",
        "Without `import fewfold` loading stops with a size mismatch: the dense weights are not in the file.",
        "",
        "## What was done",
        "",
    ]
    for step in structure.provenance.get("steps", []):
        calibration = step["calibration"]
        lines.append(
            f"- recipe `{step['recipe']}`"
            + (f" ({step['source']})" if step.get("source") else "")
            + f", fewfold {step['fewfold']}; calibration: {calibration['name']}"
            + (f" ({calibration['texts']} texts, {calibration['tokens']:,} tokens)" if calibration["texts"] else "")
        )
        lines += [
            f"  - budget `{budget['asked']}`: limit {budget['limit']:,.6g}, reached {budget['reached']:,.6g}"
            for budget in step["budgets"]
        ]
    lines += [
        f"- recovered by distillation `{step['config']}` on {step['data']}: {step['steps']:,} steps, "
        f"{step['tokens']:,} tokens, {step['minutes']:.1f} minutes"
        for step in structure.provenance.get("recoveries", [])
    ]
    counted = Counter((record.method, record.stored_dtype, record.kind) for record in structure.targets)
    lines += ["", "| method | stored dtype | kind | weights |", "|---|---|---|---|"]
    lines += [f"| {method} | {dtype} | {kind} | {count} |" for (method, dtype, kind), count in counted.items()]
    if numbers:
        lines += ["", "## Measured", "", "| figure | value |", "|---|---|"]
        lines += [f"| {name} | {_figure(value)} |" for name, value in numbers.items()]
    return "\n".join(lines) + "\n"


def _figure(value: Any) -> str:
    """A number to four places, a count with its thousands apart; everything else as it is."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
