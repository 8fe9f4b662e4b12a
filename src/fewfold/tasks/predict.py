"""What a model with a head says of rows, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fewfold.errors import TaskError
from fewfold.measure.modes import evaluating
from fewfold.progress import track
from fewfold.tasks.batches import Padding, Row, by_length


def class_logits(model: nn.Module, tokenizer: Any, rows: Sequence[Row], batch_size: int = 64) -> NDArray:
    """Run a classification model.

    :param model: A model with a classification head.
    :param tokenizer: Its tokenizer, for padding.
    :param rows: As `text_rows` makes.
    :param batch_size: Rows a forward; rows of like length go together.
    :return: Logits, or scores in a single column, `(rows, labels)`, float32.
    :raises TaskError: If the model gives something that is not a number.
    """
    found: list[NDArray] = [np.empty(0)] * len(rows)
    for places, output in _outputs(model, tokenizer, rows, batch_size):
        for place, logits in zip(places, output.logits.float().cpu().numpy(), strict=True):
            found[place] = logits
    return _finite(model, np.stack(found))


def span_logits(
    model: nn.Module, tokenizer: Any, rows: Sequence[Row], batch_size: int = 32
) -> tuple[list[NDArray], list[NDArray]]:
    """Run a question-answering model.

    :param model: A model with a question-answering head.
    :param tokenizer: Its tokenizer, for padding.
    :param rows: The inputs of windows.
    :param batch_size: Rows a forward; rows of like length go together.
    :return: Start logits and end logits of each row, `(tokens,)` without padding, float32.
    :raises TaskError: If the model gives something that is not a number.
    """
    starts: list[NDArray] = [np.empty(0)] * len(rows)
    ends: list[NDArray] = [np.empty(0)] * len(rows)
    for places, output in _outputs(model, tokenizer, rows, batch_size):
        first, last = output.start_logits.float().cpu().numpy(), output.end_logits.float().cpu().numpy()
        for row, place in enumerate(places):
            tokens = len(rows[place]["input_ids"])
            starts[place], ends[place] = _finite(model, first[row, :tokens]), _finite(model, last[row, :tokens])
    return starts, ends


def _outputs(model: nn.Module, tokenizer: Any, rows: Sequence[Row], batch_size: int) -> Iterator[tuple[list[int], Any]]:
    """Yield the places of the rows of each batch and the model's output, labels left out."""
    device, pad = next(parameter.device for parameter in model.parameters()), Padding(tokenizer)
    bare = [{name: value for name, value in row.items() if isinstance(value, list)} for row in rows]
    with evaluating(model), torch.inference_mode():
        batches = by_length(bare, batch_size)
        for places in track(batches, "predicting", total=-(-len(rows) // batch_size)):
            batch = {name: tensor.to(device) for name, tensor in pad([bare[place] for place in places]).items()}
            yield places, model(**batch)


def _finite(model: nn.Module, values: NDArray) -> NDArray:
    if not np.isfinite(values).all():
        raise TaskError(
            f"{type(model).__name__} gives NaN or infinity: its weights or its dtype are unfit for the task"
        )
    return values
