"""Which weights are carved out of which table, and into which slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from fewfold.errors import RecipeError
from fewfold.methods.embedding_sharing.config import EmbeddingSharing
from fewfold.methods.embedding_sharing.slots import Slot, allocate, columns_needed
from fewfold.surgery.roles import model_width
from fewfold.surgery.targets import Target


@dataclass(frozen=True)
class Sharing:
    """The layout of one table's unit.

    :param slots: by name.
    :param used: by target name: the slot of each of its weights, by the weight's name in its module.
    :param roles: by target name: that name with ``*`` for its layer.
    :param columns: of the expanded table, 0 where the table itself is carved.
    :param width: of the hidden states that the weights multiply.
    """

    slots: dict[str, Slot]
    used: dict[str, dict[str, str]]
    roles: dict[str, str]
    columns: int
    width: int


def by_table(
    config: EmbeddingSharing, model: nn.Module, targets: Sequence[Target]
) -> list[tuple[Target, list[Target]]]:
    """Each table with the weights that are carved out of it: those whose names begin as its own, or a tie's, does.

    Of tables that are equally near the one with the most rows is taken; a table for which no weight is left stays.
    Vocabulary heads are left out: a model's output layer, and maps outside of all layers to as many outputs as the
    table has rows.

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
    outputs, heads = _output_layers(model), []
    for target in others:
        nearest = max(tables, key=lambda table: (_nearness(table, target), table.rows))
        alike = target.kind == "linear" and target.rows == nearest.rows and target.layer is None
        if alike or id(model.get_submodule(target.module)) in outputs:
            heads.append(target.name)
        else:
            groups[nearest.name].append(target)
    found = [(table, groups[table.name]) for table in tables if groups[table.name]]
    if not found:
        kept = f" ({heads[0]} is taken for a vocabulary head, which stays dense)" if heads else ""
        raise RecipeError(
            f"EmbeddingSharing(targets={config.targets!r}) names tables ({tables[0].name}, …) and nothing to carve out "
            f"of them{kept}; name linear maps, convolutions or recurrent layers too"
        )
    return found


def _output_layers(model: nn.Module) -> set[int]:
    """The ids of the layers that give logits over a vocabulary, as the model and those inside of it say."""
    found = (module.get_output_embeddings() for module in model.modules() if isinstance(module, PreTrainedModel))
    return {id(output) for output in found if output is not None}


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


def lay_out(config: EmbeddingSharing, model: nn.Module, table: Target, targets: Sequence[Target]) -> Sharing:
    """Slots for all weights of a unit.

    :raises RecipeError: if they need more columns than there are.
    """
    width = model_width(targets) or table.columns
    shapes: dict[str, tuple[int, ...]] = {}
    used: dict[str, dict[str, str]] = {}
    roles: dict[str, str] = {}
    for target in targets:
        place = _layer_place(model, target.module)
        used[target.name], roles[target.name] = {}, _shared_name(target.name, place, "all")
        for weight, wish, shape in _weights(target, place, config.share):
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
    return Sharing(slots, used, roles, (columns or needed) if config.expansion else 0, width)


def _weights(target: Target, place: int | None, share: str | int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The weights of a target: their names in its module, the names of their slots, and their shapes."""
    name = _shared_name(target.name, place, share)
    if target.kind == "linear":
        yield "weight", name, (target.columns, target.rows)
        return
    for weight, shape in target.shapes.items():
        if target.kind == "conv":
            yield weight, name, shape
        else:
            yield weight, f"{name}.{shared_level(weight, share)}", shape


def _layer_place(model: nn.Module, name: str) -> int | None:
    """Which piece of a module's name is the number of its layer, None outside of all lists.

    The first number; where what it counts is made of stacks of layers and has no other weights, the number in that
    stack. So experts, heads and other parts of a layer do not count as layers.
    """
    pieces = name.split(".")
    found = None
    for place, piece in enumerate(pieces):
        if not piece.isdigit():
            continue
        if found is None:
            found = place
        elif _is_stack(model.get_submodule(".".join(pieces[:place]))):
            block = model.get_submodule(".".join(pieces[: found + 1]))
            weights = {id(weight) for weight in block.parameters() if weight.dim() > 1}
            stacks = (module for module in block.modules() if _is_stack(module))
            if weights <= {id(weight) for stack in stacks for weight in stack.parameters()}:
                found = place
    return found


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is a list of several blocks of one type."""
    blocks = list(module.children())
    return (
        isinstance(module, nn.ModuleList | nn.Sequential)
        and len(blocks) > 1
        and len({type(block) for block in blocks}) == 1
        and (isinstance(blocks[0], nn.RNNBase) or any(True for _ in blocks[0].children()))
    )


def _shared_name(name: str, place: int | None, share: str | int) -> str:
    """A target's name with its layer's number as far as it counts: ``layer.3.q`` is ``layer.*.q`` if all share.

    :param place: of the number among the name's pieces.
    """
    pieces = name.split(".")
    if place is not None:
        pieces[place] = _group(int(pieces[place]), share)
    return ".".join(pieces)


def shared_level(weight: str, share: str | int) -> str:
    """A recurrent module's tensor by the layer inside of it that it serves: ``weight_hh_l1`` is ``weight_hh_l*``."""
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
