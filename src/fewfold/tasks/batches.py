"""Tokenized texts in batches that waste little padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.measure.inputs import clipped_length
from fewfold.progress import track
from fewfold.tasks.glue import Example

Row = dict[str, Any]
_LABELS = ("labels", "start_positions", "end_positions")
_AT_ONCE = 1000  # texts tokenized between two moves of the progress bar


def text_rows(
    model: nn.Module, tokenizer: Any, examples: Sequence[Example], max_length: int, outputs: Sequence[int] = ()
) -> list[Row]:
    """Tokenize texts and pairs for a model with a classification head.

    :param model: It says which inputs it takes, how long they may be, and whether labels are classes or scores.
    :param tokenizer: Its tokenizer.
    :param examples: The examples.
    :param max_length: Tokens a text or pair; of what is longer the ends are cut.
    :param outputs: The model's output for each class; none where they are in order.
    :return: A row an example: inputs, lists of one number a token, and `labels`.
    """
    accepted = accepted_inputs(model)
    config: Any = model.config
    length = clipped_length(config, max_length)
    rows: list[Row] = []
    for start in track(range(0, len(examples), _AT_ONCE), "tokenizing"):
        some = examples[start : start + _AT_ONCE]
        texts = [[example.first for example in some], [example.second for example in some]]
        encoded = tokenizer(*texts[: 1 if some[0].second is None else 2], truncation=True, max_length=length)
        names = [name for name in encoded if name in accepted]
        for place, example in enumerate(some):
            label: float = example.label
            if config.num_labels > 1:
                label = outputs[int(label)] if outputs else int(label)
            rows.append({**{name: encoded[name][place] for name in names}, "labels": label})
    return rows


def accepted_inputs(model: nn.Module) -> set[str]:
    """Name the inputs that a model's forward takes."""
    return set(inspect.signature(model.forward).parameters)


class Padding:
    """Pads rows on the right to the longest among them, as tensors; Trainer takes it as its collator."""

    def __init__(self, tokenizer: Any, padded: Callable[[int], int] | None = None) -> None:
        """Take what fills the gaps from the tokenizer; one without a padding token fills with its end token.

        :param tokenizer: The model's.
        :param padded: The length of a batch whose longest row has so many tokens; None: as long.
        """
        self.padded = padded
        self.filler = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Pad rows.

        :param rows: Lists of one number a token, and labels of one number a row.
        :return: Tensors `(rows, tokens)`, labels `(rows,)`.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        longest = longest if self.padded is None else self.padded(longest)
        batch = {name: torch.tensor([row[name] for row in rows]) for name in _LABELS if name in rows[0]}
        for name in (name for name in rows[0] if name not in _LABELS):
            filler = self.filler if name == "input_ids" else 0
            batch[name] = torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows])
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        return batch


def by_length(rows: Sequence[Row], batch_size: int) -> Iterator[list[int]]:
    """Group rows of like length, longest first.

    :param rows: The rows.
    :param batch_size: Rows a batch.
    :return: Places of the rows of each batch.
    """
    order = sorted(range(len(rows)), key=lambda place: (-len(rows[place]["input_ids"]), place))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def token_total(rows: Sequence[Row]) -> int:
    """Count the tokens of rows, special ones included, padding left out."""
    return sum(len(row["input_ids"]) for row in rows)
