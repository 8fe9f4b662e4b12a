"""How long batches are padded: few different lengths train faster in bfloat16."""

from __future__ import annotations

STRIDE = 8


def even_length(longest: int, bf16: bool, limit: int | None = None) -> int:
    """The length that a batch is padded to.

    On CPUs oneDNN generates code for every shape of a product in bfloat16 and keeps the last 1,024 shapes: with
    any length allowed, factored models never stop generating (a low-rank MiniLM trains 1.6 times faster on multiples
    of 8). GPUs multiply such shapes faster too. fp32 gains nothing, so nothing is added there.

    :param longest: tokens of the batch's longest text.
    :param limit: the most that the model reads.
    """
    if not bf16:
        return longest
    rounded = -(-longest // STRIDE) * STRIDE
    return max(longest, rounded if limit is None else min(rounded, limit))
