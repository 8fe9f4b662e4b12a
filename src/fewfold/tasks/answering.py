"""SQuAD v1.1 at work: questions and paragraphs in, spans out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from fewfold.measure.inputs import clipped_length
from fewfold.progress import track
from fewfold.tasks.answers import n_best
from fewfold.tasks.batches import Row, accepted_inputs, token_total
from fewfold.tasks.heads import Kind, has_head
from fewfold.tasks.interval import mean_interval
from fewfold.tasks.judged import Judged
from fewfold.tasks.metrics import Score
from fewfold.tasks.predict import span_logits
from fewfold.tasks.squad import SquadSplit, read_squad
from fewfold.tasks.squad_metrics import exact_match, token_f1
from fewfold.tasks.windows import Window, windows

KEPT_ANSWERS = 5  # of the n best, in a prediction's record


class Answering:
    """SQuAD v1.1 with its data, read once, and a tokenizer."""

    kind: Kind = "question-answering"
    name = "squad"
    num_labels = 2

    def __init__(self, tokenizer: Any, max_length: int = 384, stride: int = 128, eval_limit: int | None = None) -> None:
        """Read what is judged on; the training split is read when it is asked for.

        :param tokenizer: The model's; a fast one.
        :param max_length: Tokens a window: 384 in the papers; 256 or 192 save time and cut more paragraphs.
        :param stride: Tokens that neighbouring windows share.
        :param eval_limit: Judge on the first so many questions; None for all.
        """
        self.tokenizer, self.max_length, self.stride, self.eval_limit = tokenizer, max_length, stride, eval_limit
        self.dev = read_squad("dev")
        self.train: SquadSplit | None = None
        self._windows: dict[tuple[str, int | None], list[Window]] = {}

    def judges(self, model: nn.Module) -> bool:
        """Say whether a model has the head."""
        return has_head(model, kind=self.kind)

    def training_rows(self, model: nn.Module, limit: int | None) -> tuple[list[Row], int]:
        """Cut windows around the first questions of the training split."""
        self.train = self.train or read_squad("train")
        found = self._cut(model, "train", self.train, limit)
        rows = [
            {**inputs, "start_positions": window.start, "end_positions": window.end}
            for window, inputs in zip(found, _inputs(model, found), strict=True)
        ]
        return rows, len(self.train.questions[:limit])

    def judged_on(self) -> Sequence[Any]:
        """The questions to judge on."""
        return self.dev.questions[: self.eval_limit]

    def judge(self, model: nn.Module, batch_size: int, resamples: int) -> Judged:
        """Let a model answer the questions of the dev split, and score its answers."""
        questions = self.dev.questions[: self.eval_limit]
        found = self._cut(model, "dev", self.dev, self.eval_limit)
        rows = _inputs(model, found)
        start = time.perf_counter()
        starts, ends = span_logits(model, self.tokenizer, rows, batch_size)
        of_question: list[list[int]] = [[] for _ in questions]
        for place, window in enumerate(found):
            of_question[window.question].append(place)
        answers = [
            n_best(question.context, [found[i] for i in places], [starts[i] for i in places], [ends[i] for i in places])
            for question, places in zip(track(questions, "answering"), of_question, strict=True)
        ]
        seconds = time.perf_counter() - start
        records: list[dict[str, Any]] = [
            {
                "id": question.id,
                "prediction": best[0].text,
                "exact_match": exact_match(best[0].text, question.answers),
                "f1": token_f1(best[0].text, question.answers),
                "answers": list(dict.fromkeys(question.answers)),
                "n_best": [[answer.text, round(answer.probability, 5)] for answer in best[:KEPT_ANSWERS]],
            }
            for question, best in zip(questions, answers, strict=True)
        ]
        metrics = {}
        for name in ("f1", "exact_match"):
            values = [record[name] for record in records]
            metrics[name] = Score(sum(values) / len(values), *mean_interval(values, resamples))
        return Judged(metrics, records, len(questions), len(rows), token_total(rows), seconds)

    def data(self) -> dict[str, Any]:
        """Describe the data in use."""
        used = {"dev": self.dev} if self.train is None else {"train": self.train, "dev": self.dev}
        return {
            **{split: {"source": found.source, "questions": len(found.questions)} for split, found in used.items()},
            "stride": self.stride,
        }

    def _cut(self, model: nn.Module, split: str, data: SquadSplit, limit: int | None) -> list[Window]:
        if (split, limit) not in self._windows:
            length = clipped_length(model.config, self.max_length)
            self._windows[split, limit] = windows(
                self.tokenizer, data.questions[:limit], length, self.stride, with_answers=split == "train"
            )
        return self._windows[split, limit]


def _inputs(model: nn.Module, found: Sequence[Window]) -> list[Row]:
    """The inputs of windows that the model takes."""
    accepted = accepted_inputs(model)
    return [{name: value for name, value in window.inputs.items() if name in accepted} for window in found]
