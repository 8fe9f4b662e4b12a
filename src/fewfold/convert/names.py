"""The names of one tensor in BERT, ALBERT and ELECTRA."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

# inside of a layer: BERT's name, ALBERT's
LAYER = (
    ("attention.self.query", "attention.query"),
    ("attention.self.key", "attention.key"),
    ("attention.self.value", "attention.value"),
    ("attention.output.dense", "attention.dense"),
    ("attention.output.LayerNorm", "attention.LayerNorm"),
    ("intermediate.dense", "ffn"),
    ("output.dense", "ffn_output"),
    ("output.LayerNorm", "full_layer_layer_norm"),
)
# around the layers
OUTSIDE = (
    ("pooler.dense", "pooler"),
    ("cls.predictions.transform.dense", "predictions.dense"),
    ("cls.predictions.transform.LayerNorm", "predictions.LayerNorm"),
    ("cls.predictions.decoder", "predictions.decoder"),
    ("cls.predictions", "predictions"),
)
_BERT_LAYER = re.compile(r"^(?:bert\.)?encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$")
_ALBERT_LAYER = re.compile(
    r"^(?:albert\.)?encoder\.albert_layer_groups\.(\d+)\.albert_layers\.(\d+)\.(.+)\.(weight|bias)$"
)


def albert_names(name: str, place: Callable[[int], tuple[int, int]]) -> Iterator[str]:
    """ALBERT's names of a tensor of BERT.

    :param place: group and inner number of a layer.
    """
    prefix, found = "albert." if name.startswith("bert.") else "", _BERT_LAYER.match(name)
    if found:
        group, inner = place(int(found[1]))
        yield f"{prefix}encoder.albert_layer_groups.{group}.albert_layers.{inner}.{dict(LAYER)[found[2]]}.{found[3]}"
    else:
        yield prefix + _outside(name.removeprefix("bert."), OUTSIDE)


def bert_names(name: str, blocks: Sequence[tuple[int, int]]) -> Iterator[str]:
    """BERT's names of a tensor of ALBERT: one for every layer that runs through it.

    :param blocks: by layer, its group and inner number.
    """
    prefix, found = "bert." if name.startswith("albert.") else "", _ALBERT_LAYER.match(name)
    if not found:
        yield prefix + _outside(name.removeprefix("albert."), [(albert, bert) for bert, albert in OUTSIDE])
        return
    inside = {albert: bert for bert, albert in LAYER}[found[3]]
    for layer, place in enumerate(blocks):
        if place == (int(found[1]), int(found[2])):
            yield f"{prefix}encoder.layer.{layer}.{inside}.{found[4]}"


def electra_names(name: str, blocks: Sequence[tuple[int, int]]) -> Iterator[str]:
    """ELECTRA's names: BERT's, but no pooler."""
    return (found for found in bert_names(name, blocks) if not found.startswith("pooler."))


def _outside(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name
