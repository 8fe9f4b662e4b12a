"""What a weight does in its block, told from names: who reads the same input, who writes the residual stream."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from fewfold.surgery.targets import Target

_WRITERS = re.compile(
    r"(?:^|\.)(?:o|o_proj|out_proj|out_lin|c_proj|wo|Wo|fc2|fc_out|lin2|down_proj|w2|ffn_output|dense_4h_to_h|"
    r"output\.dense|(?:attention|attn|self_attn|self_attention)\.dense)$"
)
_MEMORY_WORDS = ("encoder_attn", "EncDecAttention", "crossattention")
_KEYS_AND_VALUES = {"k", "v", "k_proj", "v_proj", "key", "value", "kv", "c_attn"}


def writes_residual(target: Target) -> bool:
    """Whether a weight's output is added to the residual stream (attention output, second feed-forward weight)."""
    return _WRITERS.search(target.module) is not None


def reads_memory(name: str) -> bool:
    """Whether a module inside a decoder multiplies the encoder's output (keys and values of cross-attention)."""
    pieces = name.split(".")
    cross = any(word in piece for piece in pieces for word in _MEMORY_WORDS)
    return cross and pieces[-1] in _KEYS_AND_VALUES


def family_of(target: Target) -> str:
    """A name for the targets that are multiplied with the same input: q, k and v of one attention, gate and up.

    It is only a guess from names: whoever uses it compares the inputs themselves.
    """
    if target.part is not None:
        return target.module
    parent = target.module.rpartition(".")[0]
    if writes_residual(target):
        return target.module
    if reads_memory(target.module):
        return f"{parent}.(memory)"
    return f"{parent}.({target.columns})"


def model_width(targets: Sequence[Target]) -> int:
    """The size that most linear maps have on one of their sides: the width of the residual stream."""
    sides = Counter(size for t in targets if t.kind == "linear" for size in {t.rows, t.columns})
    return max(sides, key=lambda size: (sides[size], -size)) if sides else 0
