"""The main line of a language model: make it, train it, judge it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewfold.errors import TaskError
from fewfold.lm.config import LMTraining
from fewfold.lm.corpus import Corpus
from fewfold.lm.judge import Judgement, judge
from fewfold.lm.training import LMTrainer, Progress
from fewfold.measure.environment import environment
from fewfold.measure.parameters import stored_bytes, unique_parameters
from fewfold.stored.kept import round_stored
from fewfold.training.frequencies import begin_at_frequencies
from fewfold.training.neighbours import begin_at_neighbours


@dataclass
class Trained:
    """A trained model and what happened.

    :param valid: its judgement on the valid text, the state carried from the first word to the last; None without one.
    :param test: likewise on the test text.
    """

    model: Any
    progress: Progress
    points: list[dict[str, Any]]
    valid: Judgement | None
    test: Judgement | None
    data: dict[str, Any]
    training: LMTraining
    environment: dict[str, Any] = field(default_factory=environment)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the curve left out."""
        progress = {name: value for name, value in asdict(self.progress).items() if name != "sums"}
        return {
            "parameters": unique_parameters(self.model),
            "bytes": stored_bytes(self.model),
            **{name: None if found is None else found.to_dict() for name, found in
               (("valid", self.valid), ("test", self.test))},
            "progress": {**progress, "tokens_a_second": self.progress.tokens_a_second},
            "training": self.training.model_dump(mode="json"),
            "model": self.model.config.to_diff_dict(),
            "data": self.data,
            "environment": self.environment,
        }  # fmt: skip


def train_lm(
    config: Any, corpus: Corpus, training: LMTraining, *, checkpoints: Path | None = None, resume: bool = True,
    tell: Callable[[dict[str, Any]], None] | None = None, streams: int = 1, recipe: Any = None,
) -> Trained:  # fmt: skip
    """Make a model, train and judge it.

    :param config: A model's config, such as `SlimLMConfig`, of at least as many words as the corpus has.
    :param corpus: What it learns from and is judged on.
    :param training: How it learns.
    :param checkpoints: Folder of checkpoints and history; None for none.
    :param resume: Go on from the checkpoint that is there.
    :param tell: Called with every point of the history.
    :param streams: Stretches that texts are judged in at the end; 1 is exact.
    :param recipe: Methods that the model is built from, as `fewfold.compress` takes them; None for the model as it is.
    :return: The model and the record.
    :raises TaskError: If a text is too short, the config has fewer words than the corpus, or the loss is not finite.
    :raises CheckpointError: If the folder holds a training with other settings.
    """
    from transformers import AutoModelForCausalLM

    words = len(corpus.tokenizer)
    if config.vocab_size < words:
        raise TaskError(
            f"the config has vocab_size={config.vocab_size}, and the corpus has {words} words: give {words}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    if not hasattr(model, "detach_state"):
        raise TaskError(f"{type(model).__name__} carries no state: streams need a recurrent model such as SlimLMConfig")
    if recipe is not None:
        from fewfold.compress import compress

        compress(model, recipe, fit=False, seed=training.seed)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    counts = torch.from_numpy(np.bincount(corpus.train.ids, minlength=config.vocab_size))
    if getattr(model, "word_counts", None) is not None:
        model.set_word_counts(counts)  # type: ignore[operator]
    if training.output_bias == "frequencies":
        begin_at_frequencies(model, counts)
    if training.neighbours != "none":
        tables = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
        ids = torch.from_numpy(corpus.train.ids.astype(np.int64))
        begin_at_neighbours(tables, ids, dense=training.neighbours == "all")
    trainer = LMTrainer(
        model, corpus.train, training, corpus.boundary, valid=corpus.valid, folder=checkpoints, resume=resume, tell=tell
    )
    progress = trainer.train()
    round_stored(model)  # what is judged is what is saved
    valid, test = (
        None if text is None else judge(model, text, corpus.boundary, streams) for text in (corpus.valid, corpus.test)
    )
    data: dict[str, Any] = {
        name: None if text is None else {"name": text.name, "tokens": len(text.ids), "unknown": text.unknown}
        for name, text in (("train", corpus.train), ("valid", corpus.valid), ("test", corpus.test))
    }
    data["vocabulary"] = words
    return Trained(model, progress, trainer.history.points, valid, test, data, training)
