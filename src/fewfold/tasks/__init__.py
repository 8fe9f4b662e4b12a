"""Data and metrics of the tasks that compressed models are judged on."""

from fewfold.tasks.evaluate import TASKS, evaluate
from fewfold.tasks.finetune import FineTuning, fine_tune
from fewfold.tasks.heads import has_head, with_head
from fewfold.tasks.probe import probe

__all__ = ["TASKS", "FineTuning", "evaluate", "fine_tune", "has_head", "probe", "with_head"]
