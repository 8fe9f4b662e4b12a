"""Where the linear maps of a model that is trained from scratch begin."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def draw_linears(model: Any) -> None:
    """Draw linear maps as `nn.Linear` draws its own: uniform with variance `1 / (3 · in)`; biases become 0.

    Behind a residual sum that is normalised afterwards, as Marian's are, maps of variance `1 / in` drown what the
    layer was given, and a model learns late: a small translation model needed half as many steps again. Vocabulary
    heads and maps that are tied to a table stay.

    :param model: a transformers model with fresh weights.
    """
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head and module.weight not in tables:
            module.reset_parameters()
            if module.bias is not None:
                module.bias.zero_()
