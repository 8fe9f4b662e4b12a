"""Begin an output layer at how frequent the words are, which training would otherwise spend its first epoch on."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def begin_at_frequencies(model: nn.Module, counts: Tensor) -> bool:
    """Set the output layer's bias to the logs of words' shares of a text, each count raised by one.

    With small fresh weights the model foretells the frequencies from its first step on. Without that, tied tables learn
    them as a direction that all words share, and a recurrent model may stay there.

    :param counts: ``(vocab,)`` how often each word occurs; rows beyond them stand for no word.
    :return: False for an output layer without a bias of so many rows, which stays as it is.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    bias = getattr(head, "bias", None)
    if not isinstance(bias, Tensor) or bias.shape[0] < counts.shape[0]:
        return False
    raised = torch.ones(bias.shape[0], dtype=torch.float64)
    raised[: counts.shape[0]] += counts
    with torch.no_grad():
        bias.copy_((raised / raised.sum()).log())
    return True
