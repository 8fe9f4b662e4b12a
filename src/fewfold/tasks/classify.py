"""GLUE's tasks at work: texts and pairs in, classes or scores out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fewfold.measure.fidelity import sentence_embeddings
from fewfold.tasks.batches import Row, text_rows, token_total
from fewfold.tasks.glue import GLUE, Example, GlueSplit, read_glue
from fewfold.tasks.heads import Kind, has_head
from fewfold.tasks.judged import Judged
from fewfold.tasks.metrics import scores
from fewfold.tasks.predict import class_logits


class Classification:
    """A task of GLUE with its data, read once, and a tokenizer."""

    kind: Kind = "classification"

    def __init__(self, name: str, tokenizer: Any, max_length: int = 128, eval_limit: int | None = None) -> None:
        """Read what is judged on; the training split is read when it is asked for.

        :param name: A key of `GLUE`.
        :param tokenizer: The model's.
        :param max_length: Tokens a text or pair.
        :param eval_limit: Judge on the first so many examples of each split; None for all.
        """
        self.task, self.name, self.num_labels = GLUE[name], name, GLUE[name].num_labels
        self.tokenizer, self.max_length, self.eval_limit = tokenizer, max_length, eval_limit
        self.dev = {split: read_glue(name, split) for split in self.task.dev}
        self.train: GlueSplit | None = None
        self._rows: dict[tuple[Any, ...], list[Row]] = {}

    def judges(self, model: nn.Module) -> bool:
        """Say whether a model has the head; for STS-B, sentence vectors do without one."""
        return has_head(model, self.num_labels) or (not self.task.labels and _is_body(model))

    def training_rows(self, model: nn.Module, limit: int | None) -> tuple[list[Row], int]:
        """Tokenize the first examples of the training split."""
        self.train = self.train or read_glue(self.name, "train")
        rows = self._tokenized(model, "train", self.train.examples, limit)
        return rows, len(rows)

    def judged_on(self) -> Sequence[Any]:
        """The examples to judge on, split by split."""
        return [found.examples[: self.eval_limit] for found in self.dev.values()]

    def judge(self, model: nn.Module, batch_size: int, resamples: int) -> Judged:
        """Let a model predict every split to judge on, and score what it says."""
        metrics, records, counts, seconds = {}, [], np.zeros(2, dtype=int), 0.0
        has_its_head = has_head(model, self.num_labels)
        for split, found in self.dev.items():
            examples = found.examples[: self.eval_limit]
            start = time.perf_counter()
            if has_its_head:
                rows = self._tokenized(model, split, found.examples, self.eval_limit)
                tokens, start = token_total(rows), time.perf_counter()
                logits = class_logits(model, self.tokenizer, rows, batch_size)[:, self._outputs(model)]
            else:
                logits, tokens = self._cosines(model, examples, batch_size)
            seconds += time.perf_counter() - start
            labels = np.array([example.label for example in examples])
            predicted = logits[:, 0] if self.num_labels == 1 else logits.argmax(axis=1)
            ending = f"_{split.removeprefix('dev_')}" if len(self.dev) > 1 else ""
            named = scores(self.task.metrics, labels, predicted, resamples)
            metrics.update({name + ending: score for name, score in named.items()})
            records += [
                {"split": split, "index": place, "label": _plain(labels[place]), "prediction": _plain(predicted[place]),
                 "logits": [round(float(value), 5) for value in logits[place]]}
                for place in range(len(examples))
            ]  # fmt: skip
            counts += (len(examples), tokens)
        by = "head" if has_its_head else "cosines"
        return Judged(metrics, records, int(counts[0]), int(counts[0]), int(counts[1]), seconds, by)  # type: ignore[arg-type]

    def data(self) -> dict[str, Any]:
        """Describe the data in use."""
        used = self.dev if self.train is None else {"train": self.train, **self.dev}
        return {split: {"source": found.source, "examples": len(found.examples)} for split, found in used.items()}

    def _tokenized(self, model: nn.Module, split: str, examples: Sequence[Example], limit: int | None) -> list[Row]:
        outputs = self._outputs(model)
        key = split, limit, *outputs
        if key not in self._rows:
            self._rows[key] = text_rows(model, self.tokenizer, examples[:limit], self.max_length, outputs)
        return self._rows[key]

    def _outputs(self, model: nn.Module) -> list[int]:
        """The model's output for each class: published models of entailment name theirs in another order."""
        config: Any = model.config
        named = {str(name).lower(): number for name, number in (config.label2id or {}).items()}
        if self.task.labels and all(label in named for label in self.task.labels):
            return [named[label] for label in self.task.labels]
        return list(range(self.num_labels))

    def _cosines(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> tuple[NDArray, int]:
        """Cosines of mean-pooled sentence vectors, `(pairs, 1)`, and the tokens that they took."""
        texts = list(dict.fromkeys(str(text) for example in examples for text in (example.first, example.second)))
        place = {text: index for index, text in enumerate(texts)}
        vectors = sentence_embeddings(model, self.tokenizer, texts, batch_size, self.max_length).double().numpy()
        firsts = vectors[[place[example.first] for example in examples]]
        seconds = vectors[[place[str(example.second)] for example in examples]]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        return (firsts * seconds).sum(axis=1, keepdims=True), sum(map(len, encoded))


def _plain(value: Any) -> int | float:
    """A class as an int, a score as it is."""
    return int(value) if float(value).is_integer() else round(float(value), 5)


def _is_body(model: nn.Module) -> bool:
    return getattr(model, "base_model", None) is model
