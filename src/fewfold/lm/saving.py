"""What is left of a training: the model, its tokenizer, the record and the curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewfold.checkpoint.folders import atomic_folder
from fewfold.lm.history import FILE
from fewfold.lm.run import Trained


def save_lm(trained: Trained, tokenizer: Any, folder: Path) -> None:
    """Write model, tokenizer, record (``lm.json``), history (``history.jsonl``) and, where matplotlib is, the curve.

    :raises CheckpointError: If the folder cannot be written, or holds other files and no model.
    """
    with atomic_folder(folder) as partial:
        trained.model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        record = json.dumps(trained.to_dict(), indent=1, ensure_ascii=False)
        (partial / "lm.json").write_text(f"{record}\n", encoding="utf-8")
        (partial / FILE).write_text("".join(json.dumps(point) + "\n" for point in trained.points), encoding="utf-8")
        with suppress(ImportError):  # the curve's numbers are in the history
            draw_curve(trained.points, partial / "lm.png")


def draw_curve(points: Sequence[dict[str, Any]], path: Path, name: str = "language model") -> Path:
    """Draw losses over minutes.

    :raises ImportError: If matplotlib is missing.
    """
    from fewfold.report.curves import loss_plot

    curves = {
        kind: [{key: point[key] for key in ("seconds", "loss")} for point in points if point["kind"] == kind]
        for kind in ("train", "valid")
    }
    return loss_plot([{"curve": curves["train"], "held_out": curves["valid"], "config": {"name": name}}], path)
