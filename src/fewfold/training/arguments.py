"""What transformers' Trainer would do behind our back."""

from __future__ import annotations

from typing import Any


def one_device(args: Any) -> Any:
    """Keep a process to one device: with several, Trainer would deal every batch to all of them by `DataParallel`.

    Batches would grow with the machine, and weights that are assembled from shared tensors would stay on the first
    device. Several devices take a process each (`torchrun`, `accelerate launch`).
    """
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args
