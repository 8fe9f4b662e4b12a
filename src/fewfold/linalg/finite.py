"""Whether all numbers of a tensor are finite, without a copy of it."""

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither a NaN nor an infinity; `torch.isfinite` would hold two more tensors of its size.

    :param tensor: Real floating-point numbers, of any shape.
    """
    return tensor.numel() == 0 or bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())
