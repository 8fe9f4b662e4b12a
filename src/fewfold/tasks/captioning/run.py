"""From images with captions to a saved captioner with a record of how it came about."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fewfold.checkpoint.folders import check_writable
from fewfold.checkpoint.save import save
from fewfold.measure.environment import environment
from fewfold.measure.likelihood import perplexity_of
from fewfold.pretrain.settings import PretrainSettings
from fewfold.progress import step
from fewfold.report.curves import loss_plot
from fewfold.tasks.captioning.build import build_captioner, train_vocabulary
from fewfold.tasks.captioning.images import read_captions
from fewfold.tasks.captioning.training import train_captioner
from fewfold.tasks.result import describe, write_json


def train_and_save(
    folder: Path, settings: PretrainSettings, *, vocabulary: int = 2000, image_size: int = 64,
    limit: int | None = None, resume: bool = True, **sizes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train a captioner and write it, its tokenizer, `training.json` and `training.png` into a folder.

    A run's state is kept in `FOLDER.checkpoints`, and removed when the model is saved.

    :param folder: To write; one that holds something is replaced.
    :param settings: How to train.
    :param vocabulary: Entries of the subword vocabulary.
    :param image_size: Pixels of a side.
    :param limit: Train on the first so many images.
    :param resume: Go on from the state in `FOLDER.checkpoints`.
    :param sizes: As of `build_captioner`, `recipe` among them.
    :return: The record.
    :raises FewfoldError: As the parts say.
    """
    folder = check_writable(folder)
    train, held_out = read_captions("train", image_size).first(limit), read_captions("val", image_size)
    with step("training the vocabulary"):
        tokenizer = train_vocabulary(train, vocabulary)
    model = build_captioner(tokenizer, image_size=image_size, seed=settings.seed, **sizes)
    state = folder.with_name(f"{folder.name}.checkpoints")
    history = train_captioner(model, tokenizer, train, held_out, settings, folder=state, resume=resume)
    for point in history.held_out:
        point["perplexity"] = perplexity_of(point["loss"])
    shown = {name: value for name, value in sizes.items() if name != "recipe"}
    record = {
        "model": describe(model),
        "settings": {**settings.model_dump(mode="json"), **shown, "image_size": image_size},
        "vocabulary": {"entries": len(tokenizer)},
        "data": {
            name: {"source": data.source, "images": len(data)} for name, data in (("train", train), ("val", held_out))
        },
        "training": history.to_dict(),
        "environment": environment(),
    }
    save(model, folder, tokenizer=tokenizer)
    write_json(record, folder / "training.json")
    loss_plot(
        [{"config": {"name": "captioner"}, "curve": history.curve, "held_out": history.held_out}],
        folder / "training.png",
    )
    shutil.rmtree(state, ignore_errors=True)
    return record
