"""What every task gives: training rows, and a judgement of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn

from fewfold.tasks.batches import Row
from fewfold.tasks.heads import Kind
from fewfold.tasks.metrics import Score


@dataclass(frozen=True)
class Judged:
    """A model's predictions on the examples to judge on, and their scores.

    :param metrics: By name, the main one first; 0…1, correlations -1…1, BLEU 0…100.
    :param predictions: One record an example, ready for JSON.
    :param examples: How many examples.
    :param rows: What they became for the model: of SQuAD, windows.
    :param tokens: Tokens of the rows, padding left out.
    :param seconds: Wall time of the predictions, tokenizing and metrics left out.
    :param by: What predicted: the head, cosines of sentence vectors (STS-B without a head), what was generated, or a
        probe of the frozen body.
    """

    metrics: dict[str, Score]
    predictions: list[dict[str, Any]]
    examples: int
    rows: int
    tokens: int
    seconds: float
    by: Literal["head", "cosines", "generation", "probe"] = "head"

    @property
    def seconds_per_1000(self) -> float:
        """Seconds that 1,000 examples took."""
        return 1000 * self.seconds / self.examples


class Task(Protocol):
    """A task with its data and its tokenizer."""

    name: str
    kind: Kind
    num_labels: int
    max_length: int

    def judges(self, model: nn.Module) -> bool:
        """Say whether it can judge a model as it is."""

    def training_rows(self, model: nn.Module, limit: int | None) -> tuple[list[Row], int]:
        """Tokenize the first examples of the training split: the rows, and how many examples they stand for."""

    def judged_on(self) -> Sequence[Any]:
        """The examples that a fine-tuned model is judged on."""

    def judge(self, model: nn.Module, batch_size: int, resamples: int) -> Judged:
        """Let a model predict and score what it says."""

    def data(self) -> dict[str, Any]:
        """Describe the data in use: names, sizes, lengths."""
