"""How long batches are padded: models of many shapes train faster on few different lengths."""

from __future__ import annotations

from torch import nn

STRIDE = 8
SHAPES = 12  # of matrices, with which all lengths of short texts still find room


def length_stride(model: nn.Module, bf16: bool) -> int:
    """What lengths of batches are multiples of: 8 for a model of many differently shaped matrices in bfloat16, else 1.

    On CPUs oneDNN generates code for every shape of a product in bfloat16 and keeps the last 1,024. A dense model has
    a handful of shapes; one whose layers have each a rank of their own has that many times the lengths, and never
    stops generating. fp32 has no such code.
    """
    shapes = {parameter.shape for parameter in model.parameters() if parameter.dim() == 2}
    return STRIDE if bf16 and len(shapes) > SHAPES else 1


def even_length(longest: int, stride: int, limit: int | None = None) -> int:
    """The length that a batch is padded to.

    :param longest: tokens of the batch's longest text.
    :param stride: as of :func:`length_stride`.
    :param limit: the most that the model reads.
    """
    rounded = -(-longest // stride) * stride
    return max(longest, rounded if limit is None else min(rounded, limit))
