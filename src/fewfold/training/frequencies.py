"""Begin an output layer at how frequent the words are, which training would otherwise spend its first epoch on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Start = Literal["frequencies", "zeros"]  # of an output layer's bias, as settings of trainings name it


def begin_at_frequencies(model: nn.Module, counts: Tensor) -> bool:
    """Set the output layer's bias to the logs of words' shares of a text, each count raised by one.

    With small fresh weights the model foretells the frequencies from its first step on. Without that, tied tables learn
    them as a direction that all words share, and a recurrent model may stay there.

    :param counts: ``(vocab,)`` how often each word occurs; rows beyond them stand for no word.
    :return: False for an output layer without a bias of so many rows (or a ``final_logits_bias``, as Marian's), which
        stays as it is.
    """
    bias = getattr(model.get_output_embeddings(), "bias", None)  # type: ignore[operator]
    if bias is None:
        bias = getattr(model, "final_logits_bias", None)
    if not isinstance(bias, Tensor) or bias.numel() < len(counts):
        return False
    raised = torch.ones(bias.numel(), dtype=torch.float64)
    raised[: len(counts)] += counts
    with torch.no_grad():
        bias.copy_((raised / raised.sum()).log().view(bias.shape))
    return True
