"""What a processor needs to train quickly, in one context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fewfold.training.attention import attention_for_training
from fewfold.training.memory import freed_memory_kept


@contextmanager
def quick_on_processors(bf16: bool) -> Iterator[None]:
    """Attention in the faster precision, and memory that stays with the process between steps.

    :param bf16: whether the training autocasts to bfloat16.
    """
    with attention_for_training(bf16), freed_memory_kept():
        yield
