"""The model card of a compressed checkpoint: what was done, the numbers, how to load it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

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
    card_file = folder / "README.md"
    metadata: dict[str, Any] = {}
    if card_file.exists():
        metadata = _metadata(card_file)
        if "fewfold" not in (metadata.get("tags") or []):
            card_file.rename(folder / "README.original.md")
    kept = {key: metadata[key] for key in ("license", "language", "pipeline_tag", "datasets") if metadata.get(key)}
    tags = [tag for tag in metadata.get("tags") or [] if tag != "fewfold"] + ["fewfold"]
    base = Path(source).name if source is not None else getattr(getattr(model, "config", None), "name_or_path", "")
    data = ModelCardData(library_name=metadata.get("library_name") or "transformers", tags=tags, **kept)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{card_text(model, structure, str(base), numbers)}").save(card_file)


def restore_card(folder: Path) -> None:
    """Put the original card back beside a plain model: that of a compressed one tells what no longer holds."""
    original, card = folder / "README.original.md", folder / "README.md"
    if original.is_file():
        original.replace(card)
    elif card.is_file() and "fewfold" in (_metadata(card).get("tags") or []):
        card.unlink()


def _metadata(card: Path) -> dict[str, Any]:
    """The header of a card; empty where it has none, or one that cannot be read."""
    try:
        return ModelCard(card.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data.to_dict()
    except ValueError:
        return {}


def card_text(model: nn.Module, structure: Structure, base: str, numbers: dict[str, Any] | None) -> str:
    """The card's body."""
    architecture = type(model).__name__
    lines = [
        f"# {Path(base).name or architecture}, compressed with fewfold",
        "",
        f"A {architecture} with **{unique_parameters(model):,} unique parameters** in "
        f"**{stored_bytes(model) / 1e6:.2f} MB** of weights" + (f", made from `{Path(base).name}`." if base else "."),
        "",
        "## How to load",
        "",
        "```python",
        f'import fewfold  # pip install fewfold\nmodel = fewfold.load("path/to/this/folder")  # or '
        f"{architecture}.from_pretrained(…)",
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
        lines += [f"| {name} | {value} |" for name, value in numbers.items()]
    return "\n".join(lines) + "\n"
