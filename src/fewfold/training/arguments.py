"""What all trainings tell transformers' Trainer."""

from __future__ import annotations

from typing import Any

import torch


def trainer_arguments(**values: Any) -> Any:
    """`TrainingArguments` of a training that shows and records its progress by itself, on one device a process.

    :param values: what is the training's own.
    """
    from transformers import TrainingArguments

    usual = {
        "use_cpu": not torch.accelerator.is_available(),
        "logging_nan_inf_filter": False,  # else a loss that is no number would count as none at all
        "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }  # fmt: skip
    return one_device(TrainingArguments(**{**usual, **values}))


def one_device(args: Any) -> Any:
    """Keep a process to one device: with several, Trainer would deal every batch to all of them by `DataParallel`.

    Batches would grow with the machine, and weights that are assembled from shared tensors would stay on the first
    device. Several devices take a process each (`torchrun`, `accelerate launch`).
    """
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args
