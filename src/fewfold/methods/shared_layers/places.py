"""Where a weight stands in its stack of layers, what it does there, and which weights have a block in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from fewfold.assembled import Assembled
from fewfold.errors import RecipeError
from fewfold.methods.shared_layers.maps import MapName, block_count, layer_map
from fewfold.methods.slices.layout import is_attention
from fewfold.surgery.roles import writes_residual
from fewfold.surgery.targets import Target

PARTS: dict[str, set[str]] = {
    "all": {"q", "k", "v", "o", "qkv", "ffn_in", "ffn_out"},
    "attention": {"q", "k", "v", "o", "qkv"},
    "ffn": {"ffn_in", "ffn_out"},
    "qk": {"q", "k"},
    "vo": {"v", "o"},
    "q": {"q"},
    "k": {"k"},
    "v": {"v"},
    "o": {"o"},
    "ffn_in": {"ffn_in"},
    "ffn_out": {"ffn_out"},
}
_NAMES = {
    "q": {"q", "q_proj", "query", "q_lin", "query_proj", "wq"},
    "k": {"k", "k_proj", "key", "k_lin", "key_proj", "wk"},
    "v": {"v", "v_proj", "value", "v_lin", "value_proj", "wv"},
}
# stores are not named after modules: transformers renames what looks like a module of an older checkpoint
_SHORT = {"ffn_in": "wide", "ffn_out": "narrow", "norm": "scale"}


@dataclass(frozen=True)
class Place:
    """Where a target stands.

    :param stack: the name of the list of layers.
    :param layer: 0-based, as the name says.
    :param path: what follows the layer in the name, a fused projection's part included.
    """

    stack: str
    layer: int
    path: str


def place_of(target: Target) -> Place:
    """The place of a target that lies in a layer."""
    pieces = target.name.split(".")
    number = next(index for index, piece in enumerate(pieces) if piece.isdigit())
    return Place(".".join(pieces[:number]), int(pieces[number]), ".".join(pieces[number + 1 :]))


def role_of(target: Target) -> str:
    """``q``, ``k``, ``v``, ``o``, ``qkv`` (fused), ``ffn_in``, ``ffn_out`` or ``norm``, told from names."""
    if target.kind == "norm":
        return "norm"
    if not is_attention(target):
        return "ffn_out" if writes_residual(target) else "ffn_in"
    if writes_residual(target):
        return "o"
    last = target.part.name if target.part is not None else target.module.rpartition(".")[2]
    return next((role for role, names in _NAMES.items() if last in names), "qkv")


def norms_in(model: nn.Module, layers: Sequence[str]) -> list[Target]:
    """The norms inside of these layers: leaves with a vector of weights, and a bias or none."""
    found = []
    for layer in layers:
        for name, module in model.get_submodule(layer).named_modules(prefix=layer):
            own = {key: value for key, value in module._parameters.items() if value is not None}
            if (
                "weight" in own
                and set(own) <= {"weight", "bias"}
                and own["weight"].dim() == 1
                and "norm" in type(module).__name__.lower()
                and not isinstance(module, nn.Linear | Conv1D | nn.Embedding | Assembled)
            ):
                found.append(Target(name, name, "norm", own["weight"].shape[0], 1, bias="bias" in own))
    return found


@dataclass(frozen=True)
class Group:
    """Weights of several layers that one block stands for.

    :param name: of its store, where that is free.
    :param targets: in the order of the layers.
    :param block: its number in the map.
    """

    name: str
    targets: tuple[Target, ...]
    block: int


@dataclass(frozen=True)
class Stacks:
    """The maps of all stacks.

    :param blocks: by stack, the block of every layer by its number.
    """

    blocks: Mapping[str, Mapping[int, int]]

    @classmethod
    def of(cls, targets: Sequence[Target], name: MapName | Sequence[int], blocks: int | str | None, who: str) -> Stacks:
        """Map every stack that the targets lie in.

        :param who: the config in words, for errors.
        :raises RecipeError: naming the stack whose layers the map does not fit.
        """
        layers: dict[str, set[int]] = defaultdict(set)
        for target in targets:
            place = place_of(target)
            layers[place.stack].add(place.layer)
        found = {}
        for stack, numbers in layers.items():
            try:
                mapped = layer_map(len(numbers), name, block_count(blocks, len(numbers), name))
            except RecipeError as error:
                raise RecipeError(f"{who}: {stack} has {len(numbers)} layers here; {error}") from None
            found[stack] = dict(zip(sorted(numbers), mapped, strict=True))
        return cls(found)

    def block(self, target: Target) -> int:
        """The block that serves a target."""
        place = place_of(target)
        return self.blocks[place.stack][place.layer]

    def layer_names(self) -> list[str]:
        """Every mapped layer's module name."""
        return [f"{stack}.{layer}" for stack, layers in self.blocks.items() for layer in layers]

    def groups(self, model: nn.Module, targets: Sequence[Target], across: bool) -> list[Group]:
        """Targets by block: of one stack, one path and one shape; with ``across``, of all stacks."""
        members: dict[tuple[str, str, int, int, int, bool], list[Target]] = {}
        for target in targets:
            place = place_of(target)
            stack, path = ("", role_path(model, place)) if across else (place.stack, place.path)
            key = (stack, path, self.block(target), target.rows, target.columns, target.bias)
            members.setdefault(key, []).append(target)
        numbers = {stack: number for number, stack in enumerate(dict.fromkeys(key[0] for key in members))}
        return [
            Group(
                f"stack{numbers[stack]}_b{block}_{_SHORT.get(role_of(found[0]), role_of(found[0]))}",
                tuple(found),
                block,
            )
            for (stack, _, block, *_), found in members.items()
        ]


def role_path(model: nn.Module, place: Place) -> str:
    """A path without numbers, so that encoder and decoder agree on it.

    A numbered part of a layer (T5's ``layer.1``) goes by the children in it that hold more than a vector:
    ``EncDecAttention``, ``DenseReluDense``.
    """
    pieces, found = place.path.split("."), []
    for number, piece in enumerate(pieces):
        if not piece.isdigit():
            found.append(piece)
            continue
        part = model.get_submodule(".".join([place.stack, str(place.layer), *pieces[: number + 1]]))
        inside = [name for name, child in part.named_children() if any(p.dim() > 1 for p in child.parameters())]
        if not inside or pieces[number + 1] in inside:
            continue
        found.append("+".join(inside))
    return ".".join(found)
