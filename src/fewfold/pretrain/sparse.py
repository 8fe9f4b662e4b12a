"""A masked language model that scores its labelled tokens alone: the same loss without most of the head's work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fewfold.measure.modes import evaluating
from fewfold.pretrain.masking import IGNORED


@contextmanager
def labelled_alone(model: nn.Module) -> Iterator[None]:
    """Let a model's body hand its head only the states that have a label, for calls with `labels`.

    The head of such a model looks at each token by itself, so loss and gradients stay what they were; logits are
    `(1, labelled, vocab)`. Calls without labels, and labels of which none counts, are left as they are.

    :param model: A masked language model whose head sits on the last hidden states of `model.base_model`.
    """
    chosen: list[torch.Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        chosen.clear()
        labels = kwargs.get("labels")
        if labels is None or not bool((labels != IGNORED).any()):
            return None
        chosen.append(labels != IGNORED)
        return args, {**kwargs, "labels": labels[chosen[0]][None]}

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if chosen:
            output.last_hidden_state = output.last_hidden_state[chosen.pop()][None]

    body: Any = model.base_model
    hooks = [model.register_forward_pre_hook(before, with_kwargs=True), body.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def scores_tokens_apart(model: nn.Module, batch: dict[str, torch.Tensor]) -> bool:
    """Try whether `labelled_alone` leaves a model's loss as it is.

    :param model: Any masked language model.
    :param batch: `input_ids` and `labels`, some of them labelled.
    """
    if getattr(model, "base_model", model) is model:
        return False
    device = next(model.parameters()).device
    moved = {name: tensor.to(device) for name, tensor in batch.items()}
    with evaluating(model), torch.inference_mode():
        whole = float(model(**moved).loss)
        try:
            with labelled_alone(model):
                part = float(model(**moved).loss)
        except (RuntimeError, ValueError, AttributeError, TypeError, IndexError):
            return False
    return abs(part - whole) <= 1e-4 * abs(whole)
