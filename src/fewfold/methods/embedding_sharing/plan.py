"""Which weights are carved out of which table, and into which slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fewfold.errors import RecipeError
from fewfold.methods.embedding_sharing.config import EmbeddingSharing
from fewfold.methods.embedding_sharing.slots import Slot, allocate, columns_needed
from fewfold.surgery.targets import Target


@dataclass(frozen=True)
class Sharing:
    """The layout of one table's unit.

    :param slots: by name.
    :param used: by target name: the slot of each of its weights, by the weight's name in its module.
    :param columns: of the expanded table, 0 where the table itself is carved.
    """

    slots: dict[str, Slot]
    used: dict[str, dict[str, str]]
    columns: int


def by_table(config: EmbeddingSharing, targets: Sequence[Target]) -> list[tuple[Target, list[Target]]]:
    """Each table with the weights that are carved out of it: those whose names begin as its own, or a tie's, does.

    Of tables that are equally near the one with the most rows is taken; a table for which no weight is left stays.

    :raises RecipeError: without a table, or without anything to carve.
    """
    tables = [target for target in targets if target.kind == "embedding"]
    others = [target for target in targets if target.kind != "embedding"]
    if not tables:
        raise RecipeError(
            f"EmbeddingSharing(targets={config.targets!r}) names no token table to carve {others[0].name} out of; name "
            "one beside the weights (overrides cannot part weights from their table)"
        )
    groups: dict[str, list[Target]] = {table.name: [] for table in tables}
    for target in others:
        nearest = max(tables, key=lambda table: (_nearness(table, target), table.rows))
        if target.kind == "linear" and target.rows >= nearest.rows:
            continue
        groups[nearest.name].append(target)
    found = [(table, groups[table.name]) for table in tables if groups[table.name]]
    if not found:
        raise RecipeError(
            f"EmbeddingSharing(targets={config.targets!r}) names tables ({tables[0].name}, …) and nothing to carve out "
            "of them; name linear maps, convolutions or recurrent layers too"
        )
    return found


def _nearness(table: Target, target: Target) -> int:
    """Leading pieces that a weight's name has in common with the table's, or with that of a module tied to it."""
    return max(_common(home, target.module) for home in (table.module, *(tie.module for tie in table.ties)))


def _common(first: str, second: str) -> int:
    count = 0
    for one, other in zip(first.split("."), second.split("."), strict=False):
        if one != other:
            break
        count += 1
    return count


def lay_out(config: EmbeddingSharing, table: Target, targets: Sequence[Target], width: int) -> Sharing:
    """Slots for all weights of a unit.

    :param width: the model's.
    :raises RecipeError: if they need more columns than there are.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    used: dict[str, dict[str, str]] = {}
    for target in targets:
        used[target.name] = {}
        for weight, wish, shape in _weights(target, config.share):
            name = wish if shapes.get(wish, shape) == shape else f"{wish}[{'×'.join(map(str, shape))}]"
            shapes[name] = shape
            used[target.name][weight] = name
    columns: int | None = None
    if not config.expansion:
        columns = table.columns
    elif config.order == "reference":
        columns = width
    needed = columns_needed(shapes, table.rows)
    if columns is not None and needed > columns:
        what = "the expansion of order='reference'" if config.expansion else f"{table.name}, carved itself,"
        raise RecipeError(
            f"EmbeddingSharing(share={config.share!r}): the weights take {needed} columns of {table.rows} numbers, and "
            f"{what} has {columns}. Let more layers share"
            + (", or take order='packed'" if config.expansion else ", or take expansion=True")
        )
    slots = allocate(shapes, table.rows, config.order, columns)
    return Sharing(slots, used, (columns or needed) if config.expansion else 0)


def _weights(target: Target, share: str | int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The weights of a target: their names in its module, the names of their slots, and their shapes."""
    name = _shared_name(target.name, share)
    if target.kind == "linear":
        yield "weight", name, (target.columns, target.rows)
        return
    for weight, shape in target.shapes.items():
        if target.kind == "conv":
            yield weight, name, shape
        else:
            yield weight, f"{name}.{_shared_level(weight, share)}", shape


def _shared_name(name: str, share: str | int) -> str:
    """A target's name with its layer's number as far as it counts: ``layer.3.q`` is ``layer.*.q`` if all share."""
    pieces = name.split(".")
    place = next((place for place, piece in enumerate(pieces) if piece.isdigit()), None)
    if place is not None:
        pieces[place] = _group(int(pieces[place]), share)
    return ".".join(pieces)


def _shared_level(weight: str, share: str | int) -> str:
    """The same for the layers inside of a recurrent module: ``weight_hh_l1`` is ``weight_hh_l*``."""
    head, _, tail = weight.rpartition("_l")
    number, _, direction = tail.partition("_")
    return f"{head}_l{_group(int(number), share)}" + (f"_{direction}" if direction else "")


def _group(number: int, share: str | int) -> str:
    if share == "all":
        return "*"
    if share == "none":
        return str(number)
    assert isinstance(share, int)
    return f"{number // share * share}+"
