"""From text files to a saved masked language model with a record of how it came about."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.checkpoint.folders import check_writable
from fewfold.checkpoint.save import save
from fewfold.errors import TaskError
from fewfold.measure.environment import environment
from fewfold.measure.likelihood import perplexity_of
from fewfold.measure.modes import evaluating
from fewfold.optional import require
from fewfold.pretrain.build import build_masked_lm
from fewfold.pretrain.checkpoints import identity_of
from fewfold.pretrain.config import PretrainConfig
from fewfold.pretrain.frequencies import counts_of, frequency_loss
from fewfold.pretrain.masking import IGNORED, Masking
from fewfold.pretrain.sparse import labelled_alone, scores_tokens_apart
from fewfold.pretrain.text import first_and_last, read_texts, train_tokenizer, windows
from fewfold.pretrain.training import pretrain
from fewfold.report.curves import loss_plot
from fewfold.tasks.result import describe, write_json
from fewfold.training.frequencies import begin_at_frequencies
from fewfold.training.history import TrainingHistory
from fewfold.training.neighbours import begin_at_neighbours

BATCH, SHARE, MOST = 32, 0.02, 512  # held-out windows: of a forward, of all where none are given, and at most


def pretrain_masked_lm(
    model: nn.Module, masking: Masking, rows: Tensor, judged: Tensor, config: PretrainConfig, *, folder: Path,
    resume: bool = True,
) -> TrainingHistory:  # fmt: skip
    """Train all parameters of a masked language model, in place; every pass masks anew.

    :param model: Such as `build_masked_lm` makes.
    :param masking: What is to be foretold.
    :param rows: Windows to learn from, `(windows, length)`.
    :param judged: Windows that the loss is measured on.
    :param config: Its training settings are used.
    :param folder: For checkpoints.
    :param resume: Go on from the last one.
    :return: What was done; losses are nats a masked token.
    :raises FewfoldError: As of `pretrain`.
    """
    identity = {
        **identity_of(model), "masking": [masking.share, masking.most],
        "data": [list(rows.shape), int(rows.long().sum())],
    }  # fmt: skip
    first = collate([masking(rows[0], torch.Generator().manual_seed(0))])
    sparse = config.sparse_head and scores_tokens_apart(model, first)
    with labelled_alone(model) if sparse else nullcontext():
        return pretrain(
            model, len(rows), lambda place, generator: masking(rows[place], generator), collate, config.training,
            folder=folder, held_out=lambda trained: held_out_loss(trained, masking, judged), tokens=rows.shape[1],
            resume=resume, identity=identity,
        )  # fmt: skip


def collate(masked: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Stack masked windows: `input_ids` and `labels`, `(windows, length)`."""
    inputs, labels = zip(*masked, strict=True)
    return {"input_ids": torch.stack(inputs), "labels": torch.stack(labels)}


def held_out_loss(model: nn.Module, masking: Masking, rows: Tensor) -> float:
    """Mean cross-entropy a masked token in nats, always of the same tokens."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            places = range(start, min(start + BATCH, len(rows)))
            batch = collate([masking(rows[place], torch.Generator().manual_seed(place)) for place in places])
            tokens = int((batch["labels"] != IGNORED).sum())
            total += float(model(**{name: value.to(device) for name, value in batch.items()}).loss) * tokens
            count += tokens
    return total / count


def pretrain_and_save(
    folder: str | Path, config: PretrainConfig, files: Sequence[str | Path], held_out: Sequence[str | Path] = (),
    resume: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train a masked language model and write it, its tokenizer, `training.json` and `training.png` into a folder.

    Under `torchrun` or `accelerate launch` every process reads the text, and the first one trains the vocabulary and
    writes. A run's state is kept in `FOLDER.checkpoints`, and removed when the model is saved.

    :param folder: To write; one that holds something is replaced.
    :param config: What is trained, and how.
    :param files: Text to learn from.
    :param held_out: Text that the loss is measured on; none: the last windows (2 %, at most 512) are held out.
    :param resume: Go on from the state in `FOLDER.checkpoints`.
    :return: The record.
    :raises FewfoldError: As the parts say.
    """
    texts_in, judged_in = [Path(file) for file in files], [Path(file) for file in held_out]
    folder = check_writable(folder)
    state = folder.with_name(f"{folder.name}.checkpoints")
    process = require("accelerate").PartialState(cpu=not torch.accelerator.is_available())
    texts = read_texts(texts_in)
    with process.main_process_first():
        tokenizer = _tokenizer(config, texts, state, anew=not resume and process.is_main_process)
    rows = windows(tokenizer, texts, config.length)
    if judged_in:
        judged = windows(tokenizer, read_texts(judged_in), config.length)
    else:
        kept = len(rows) - min(MOST, max(1, round(SHARE * len(rows))))
        if not kept:
            raise TaskError(f"the text fills one window of {config.length} tokens: give more, or a held-out file")
        rows, judged = rows[:kept], rows[kept:]
    masking = Masking.of(tokenizer, config.mask_share, config.most_masked)
    model, floor = build_masked_lm(config, tokenizer), frequency_loss(masking, rows, judged)
    if config.output_bias == "frequencies":
        begin_at_frequencies(model, counts_of(masking, rows))
    if config.neighbours != "none":
        tables = [model.get_input_embeddings(), model.get_output_embeddings()]
        begin_at_neighbours(tables, rows[:, 1:-1].flatten().long(), dense=config.neighbours == "all")
    history = pretrain_masked_lm(model, masking, rows, judged, config, folder=state, resume=resume)
    for point in history.held_out:
        point["perplexity"] = perplexity_of(point["loss"])
    record = {
        "model": describe(model),
        "config": config.model_dump(mode="json"),
        "processes": process.num_processes,
        "data": {
            "train": {"files": [file.name for file in texts_in], "windows": len(rows)},
            "held_out": {
                "files": [file.name for file in judged_in],
                "windows": len(judged),
                "token_frequencies": {"loss": floor, "perplexity": perplexity_of(floor)},
            },
            "vocabulary": len(tokenizer),
        },
        "training": history.to_dict(),
        "environment": environment(),
    }
    if process.is_main_process:
        save(model, folder, tokenizer=tokenizer)
        write_json(record, folder / "training.json")
        curve = {
            "config": {"name": "masked language model"}, "curve": history.curve, "held_out": history.held_out,
            "levels": {"token frequencies alone": floor},
        }  # fmt: skip
        loss_plot([curve], folder / "training.png")
        shutil.rmtree(state, ignore_errors=True)
    process.wait_for_everyone()
    return record


def _tokenizer(config: PretrainConfig, texts: Sequence[str], folder: Path, anew: bool) -> Any:
    """The tokenizer that is named, the one that was trained before of the same text in the same way, or a new one."""
    from transformers import AutoTokenizer

    if config.tokenizer is not None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
        except (OSError, ValueError) as error:
            raise TaskError(f"tokenizer={config.tokenizer!r} cannot be loaded: {error}") from error
    else:
        digest = hashlib.blake2b(f"{config.vocabulary_kind} {config.vocabulary}".encode(), digest_size=8)
        for text in texts:
            digest.update(text.encode() + b"\n")
        kept = folder / f"tokenizer-{digest.hexdigest()}"
        if kept.is_dir() and not anew:
            tokenizer = AutoTokenizer.from_pretrained(kept)
        else:
            tokenizer = train_tokenizer(texts, config.vocabulary, config.vocabulary_kind)
            tokenizer.save_pretrained(kept)
    first_and_last(tokenizer)
    return tokenizer
