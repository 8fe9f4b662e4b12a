"""From parallel text to a saved translation model with a record of how it came about."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fewfold.checkpoint.folders import check_writable
from fewfold.checkpoint.save import save
from fewfold.measure.environment import environment
from fewfold.models.slim_tables import SlimTables
from fewfold.progress import step
from fewfold.report.curves import loss_plot
from fewfold.tasks.result import describe, write_json
from fewfold.tasks.translation.batching import encode_pairs
from fewfold.tasks.translation.build import build_model
from fewfold.tasks.translation.corpus import Corpus
from fewfold.tasks.translation.settings import TranslationTraining
from fewfold.tasks.translation.training import train_translation
from fewfold.tasks.translation.vocabulary import Vocabularies, train_vocabularies
from fewfold.training.frequencies import begin_at_frequencies
from fewfold.training.neighbours import begin_at_neighbours


def begin(model: Any, vocabularies: Vocabularies, train: Corpus, settings: TranslationTraining) -> None:
    """Set a fresh model's head and slim tables to what can be counted in the training text, as the settings say."""
    if settings.neighbours == "none" and settings.output_bias != "frequencies":
        return
    pairs = encode_pairs(vocabularies, train, settings.max_length)
    targets = torch.tensor([token for pair in pairs for token in pair.target])
    if settings.output_bias == "frequencies":
        begin_at_frequencies(model, torch.bincount(targets, minlength=len(vocabularies.target)))
    if settings.neighbours != "none":
        sources = torch.tensor([token for pair in pairs for token in pair.source])
        read, written = model.get_input_embeddings(), model.get_output_embeddings()
        if vocabularies.is_joint:
            sides = [([read, written], torch.cat([sources, targets]))]
        else:
            sides = [([read], sources), ([written], targets)]
        for tables, ids in sides:
            begin_at_neighbours(tables, ids, dense=settings.neighbours == "all")


def train_and_save(
    folder: Path, kind: str, train: Corpus, held_out: Corpus, settings: TranslationTraining, *,
    slim: SlimTables | None = None, vocabulary: int = 8000, joint: bool = True, lowercase: bool = False,
    size: int = 256, layers: int | None = None, dropout: float = 0.3, recipe: Any = None, resume: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train a model and write it, its tokenizers, `training.json` and `training.png` into a folder.

    A run's state is kept in `FOLDER.checkpoints`, and removed when the model is saved.

    :param folder: To write; one that holds something is replaced.
    :param kind: As of `build_model`, like `slim`, `size`, `layers`, `dropout` and `recipe`.
    :param train: Training pairs.
    :param held_out: Pairs that the loss is measured on.
    :param settings: How to train.
    :param vocabulary: Entries, as of `train_vocabularies`, like `joint` and `lowercase`.
    :param resume: Go on from the state in `FOLDER.checkpoints`.
    :return: The record.
    :raises FewfoldError: As the parts say.
    """
    folder = check_writable(folder)
    with step("training the vocabulary"):
        vocabularies = train_vocabularies(train, vocabulary, joint, lowercase)
    model = build_model(
        kind, vocabularies, size=size, layers=layers, dropout=dropout, slim=slim, recipe=recipe, seed=settings.seed
    )
    begin(model, vocabularies, train, settings)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    state = folder.with_name(f"{folder.name}.checkpoints")
    history = train_translation(model, vocabularies, train, held_out, settings, checkpoints=state, resume=resume)
    for point in history.held_out:
        point["perplexity"] = math.exp(point["loss"])
    record = {
        "model": describe(model),
        "settings": {
            **asdict(settings), "kind": kind, "size": size, "layers": layers, "dropout": dropout,
            "slim": None if slim is None else asdict(slim),
        },
        "vocabulary": {"entries": len(vocabularies.target), "joint": joint, "lowercase": lowercase},
        "data": {
            name: {"source": corpus.source, "pairs": len(corpus), "languages": list(corpus.languages)}
            for name, corpus in (("train", train), ("held_out", held_out))
        },
        "training": history.to_dict(),
        "environment": environment(),
    }  # fmt: skip
    save(model, folder, tokenizer=vocabularies)
    write_json(record, folder / "training.json")
    phase = {"config": {"name": kind}, "curve": history.curve, "held_out": history.held_out}
    loss_plot([phase], folder / "training.png")
    shutil.rmtree(state, ignore_errors=True)
    return record
