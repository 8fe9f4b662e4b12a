"""Maps: which of M stored blocks serves which of N executed layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, get_args

from fewfold.errors import RecipeError

MapName = Literal["unshared", "all", "sequence", "albert", "cycle", "cycle_rev", "pairs", "sandwich"]


def layer_map(layers: int, name: MapName | Sequence[int], blocks: int | None = None) -> list[int]:
    """The block of every layer, 0-based, all blocks in use.

    ``unshared``: a block a layer. ``all``: one for all (Dehghani et al., Universal Transformers, ICLR 2019; Lan et
    al., ALBERT, ICLR 2020). ``sequence`` (AABBCC, ``ceil(N / M)`` layers a block), ``cycle`` (ABCABC) and ``cycle_rev``
    (ABCCBA) are those of Takase and Kiyono, Lessons on Parameter Sharing across Layers in Transformers (SustaiNLP
    2023). ``albert``: ALBERT's groups, ``floor(i · M / N)``. ``pairs``: every block twice in a row (MobileLLM-LS, Liu
    et al., ICML 2024). ``sandwich`` (ABBBBC): Subformer (Reid et al., EMNLP 2021).

    :param layers: N.
    :param name: of a map, or the blocks themselves, one number a layer.
    :param blocks: M, where the map leaves it open.
    :raises RecipeError: if the map cannot be made of these numbers.
    """
    if not isinstance(name, str):
        return _explicit(layers, list(name), blocks)
    known = {"unshared": layers, "all": 1, "pairs": -(-layers // 2), "sandwich": 3}
    if name in known:
        if name == "sandwich" and layers < 3:
            raise RecipeError(
                f"map='sandwich' keeps the first and the last layer apart; it needs 3 layers, not {layers}"
            )
        if blocks not in (None, known[name]):
            raise RecipeError(f"map={name!r} has {known[name]} blocks for {layers} layers; drop blocks={blocks}")
        blocks = known[name]
    elif blocks is None:
        raise RecipeError(f"map={name!r} leaves the number of blocks open; give blocks=1…{layers}")
    if not 1 <= blocks <= layers:
        raise RecipeError(f"blocks={blocks}: {layers} layers have 1…{layers} blocks")
    if name == "sequence":
        _check_sequence(layers, blocks)
    if name == "cycle_rev" and blocks < layers < 2 * blocks:
        raise RecipeError(
            f"map='cycle_rev' runs the last {blocks} layers through its {blocks} blocks in reverse, after all of them "
            f"were used: {layers} layers are too few; give blocks=1…{layers // 2}"
        )
    found = [_RULES[name](layer, layers, blocks) for layer in range(layers)]
    return list(range(layers)) if blocks == layers else found


_RULES: dict[str, Callable[[int, int, int], int]] = {
    "unshared": lambda i, n, m: i,
    "all": lambda i, n, m: 0,
    "sequence": lambda i, n, m: i // -(-n // m),
    "albert": lambda i, n, m: i * m // n,
    "cycle": lambda i, n, m: i % m,
    "cycle_rev": lambda i, n, m: i % m if i < n - m else n - 1 - i,
    "pairs": lambda i, n, m: i // 2,
    "sandwich": lambda i, n, m: 0 if i == 0 else 2 if i == n - 1 else 1,
}
assert set(_RULES) == set(get_args(MapName))


def block_count(blocks: int | str | None, layers: int, name: MapName | Sequence[int] = "cycle") -> int | None:
    """How many blocks ``layers`` layers get: as given, or about the share that ``'1/2'`` says, at least one.

    :param name: of the map; of a share, ``sequence`` and ``cycle_rev`` get the largest number up to it that they take.
    """
    if not isinstance(blocks, str):
        return blocks
    wanted = max(1, round(Fraction(blocks) * layers))
    if name == "sequence":
        return next(m for m in range(wanted, 0, -1) if m in _sequence_counts(layers))
    if name == "cycle_rev" and wanted < layers:
        return max(1, min(wanted, layers // 2))
    return wanted


def is_share(text: str) -> bool:
    """Whether a text is a share of the layers, more than nothing and at most all."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    return match is not None and 0 < int(match[1]) <= int(match[2])


def stepwise_layers(layers: int, blocks: int) -> list[int]:
    """The layers that blocks begin from: evenly spaced, first and last among them (Bae et al., ICLR 2025)."""
    return [0] if blocks == 1 else [round(block * (layers - 1) / (blocks - 1)) for block in range(blocks)]


def anchor(members: list[int], layers: int, block: int, blocks: int) -> int:
    """The layer that a block is anchored at: the stack's last layer, else its nearest to where stepwise begins it.

    What the last layer gives is the model's output: of all layers its weights bear a mixture least.

    :param members: the places of the block's layers in their stack.
    """
    if layers - 1 in members:
        return layers - 1
    wanted = (layers - 1) * block / (blocks - 1)  # a single block has the last layer
    return min(members, key=lambda place: abs(place - wanted))


def _explicit(layers: int, wanted: list[int], blocks: int | None) -> list[int]:
    if len(wanted) != layers:
        raise RecipeError(f"map={wanted}: it names the blocks of {len(wanted)} layers; there are {layers}")
    count = max(wanted) + 1
    missing = sorted(set(range(count)) - set(wanted))
    if min(wanted) < 0 or missing:
        raise RecipeError(f"map={wanted}: blocks are 0…{count - 1}, each in use; missing {missing or min(wanted)}")
    if blocks not in (None, count):
        raise RecipeError(f"map={wanted} has {count} blocks; drop blocks={blocks}")
    return wanted


def _check_sequence(layers: int, blocks: int) -> None:
    fitting = _sequence_counts(layers)
    if blocks not in fitting:
        run = -(-layers // blocks)
        found = -(-layers // run)
        raise RecipeError(
            f"map='sequence', blocks={blocks}: {layers} layers in runs of {run} make {found} blocks, not {blocks}; "
            f"give blocks={', '.join(map(str, fitting))}, or map='albert', which spreads them evenly"
        )


def _sequence_counts(layers: int) -> list[int]:
    """The numbers of blocks that runs of one length make."""
    return [m for m in range(1, layers + 1) if -(-layers // -(-layers // m)) == m]
