"""The tasks that recovered models are fine-tuned on: what is trained, for how long, and what their texts are."""

from __future__ import annotations

from typing import Any

from common import BF16

from fewfold.tasks import FineTuning
from fewfold.tasks.glue import read_glue
from fewfold.tasks.squad import read_squad

TITLES = {"sst2": "SST-2 accuracy", "cola": "CoLA MCC", "squad": "SQuAD part F1"}
SETTINGS = {  # CoLA takes more and smaller steps: what quick ones end at differs much from run to run
    "sst2": FineTuning(1.5e-4, epochs=1, limit=8000, rates="by_size", bf16=BF16),
    "cola": FineTuning(1e-4, epochs=5, rates="by_size", bf16=BF16),
    "squad": FineTuning(1.5e-4, epochs=2, limit=3000, rates="by_size", bf16=BF16),
}
JUDGED: dict[str, dict[str, Any]] = {"squad": {"max_length": 192, "stride": 64, "eval_limit": 500}}
LENGTHS = {"squad": 192}  # tokens that distillation keeps of a row; 128 elsewhere


def rows(task: str) -> list[dict[str, str]]:
    """The training rows that a task's teacher has seen, without their labels."""
    if task == "squad":
        questions = read_squad("train").questions[: SETTINGS[task].limit]
        return [{"question": one.question, "sentence": one.context} for one in questions]
    return [{"text": example.first} for example in read_glue(task, "train").examples[: SETTINGS[task].limit]]


def texts(task: str) -> list[str]:
    """The same as single texts, to calibrate on."""
    return [text for row in rows(task) for text in row.values()]
