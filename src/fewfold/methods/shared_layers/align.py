"""Align: which turn every weight takes, found once for all groups of a recipe step."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewfold.assembled import Assembled
from fewfold.measure.inputs import dummy_inputs
from fewfold.methods.shared_layers.places import Stacks, place_of, role_of, role_path
from fewfold.methods.shared_layers.turns import Bundle, Turns, changes_nothing, match, match_all
from fewfold.surgery.layouts import FusedLinear
from fewfold.surgery.targets import Target, read_bias

logger = logging.getLogger(__name__)

HEAD_NAMES = ("num_attention_heads", "num_heads", "n_heads", "n_head")
GROUP_NAMES = ("num_key_value_heads", "num_kv_heads")


class Alignment:
    """The turns of all targets that bring the layers of a block near to each other, or to the layer it begins with.

    Only what a probe of every layer of a block shows to change nothing is turned, and only where all weights of a
    bundle are shared.

    :param model: the dense model; it is read when a turn is first asked for.
    :param targets: everything that is shared.
    :param starts: by stack and block: the layer that others are turned towards.
    :param wish: ``none``, ``permute`` or ``rotate``.
    :param across: whether layers of several stacks have blocks in common.
    :param fixed: whether the block is that one layer, which then stays as it is; else it is a mean.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        stacks: Stacks,
        starts: Mapping[tuple[str, int], tuple[str, int]],
        wish: str,
        across: bool = False,
        fixed: bool = False,
    ) -> None:
        self.model, self.stacks, self.starts, self.wish = model, stacks, starts, wish
        self.across, self.fixed = across, fixed
        self.bundles: dict[tuple[str, int, str], Bundle] = {}
        self.place: dict[str, tuple[tuple[str, int, str], str]] = {}
        self._found: dict[tuple[str, int, str], Mapping[str, Turns]] = {}
        self._exact: dict[tuple[tuple[str, int, str], str], bool] = {}
        self._told: set[str] = set()
        if wish != "none":
            for key, bundle in _bundles(model, targets, across).items():
                self.bundles[key] = bundle
                self.place.update({target.name: (key, role) for role, target in bundle.members.items()})

    def may_turn(self, targets: Sequence[Target]) -> bool:
        """Whether one of the targets belongs to a bundle that may be turned."""
        return any(target.name in self.place for target in targets)

    def turns(self, target: Target, weights: Mapping[str, Tensor]) -> Turns:
        """What happens to a target's weight and bias before it is averaged."""
        if target.name not in self.place:
            return Turns()
        key, role = self.place[target.name]
        if key not in self._found:
            self._found.update(self._match(key, weights))
        return self._found[key].get(role, Turns())

    def _match(
        self, key: tuple[str, int, str], weights: Mapping[str, Tensor]
    ) -> dict[tuple[str, int, str], Mapping[str, Turns]]:
        """The turns of all bundles at this one's place in the layers of its block."""
        family = self._family(key)
        found: dict[tuple[str, int, str], Mapping[str, Turns]] = {other: {} for other in family}
        reference = self._reference(family)
        alike = [other for other in family if self.bundles[other].alike(reference)]
        turning = [other for other in alike if self.bundles[other] is not reference]
        if not turning or not self._are_exact(alike, reference.kind):
            return found
        rotate = self.wish == "rotate" and reference.kind == "heads"
        frames = [rotate and self._are_exact(alike, kind) for kind in ("values", "queries")]
        first = self._tensors(reference, weights)
        others = [self._tensors(self.bundles[other], weights) for other in turning]
        if self.fixed:
            return found | {
                other: match(first, tensors, reference, *frames) for other, tensors in zip(turning, others, strict=True)
            }
        mine = next(other for other in alike if self.bundles[other] is reference)
        return found | dict(zip([mine, *turning], match_all([first, *others], reference, *frames), strict=True))

    def _family(self, key: tuple[str, int, str]) -> list[tuple[str, int, str]]:
        """Where the layers of a block have bundles of one path."""
        stack, layer, path = key
        block = self.stacks.blocks[stack][layer]
        return [
            (other, number, its)
            for other, number, its in self.bundles
            if its == path and (self.across or other == stack) and self.stacks.blocks[other][number] == block
        ]

    def _reference(self, family: Sequence[tuple[str, int, str]]) -> Bundle:
        """The bundle of the layer that the block begins with, else of the first layer of the block that has one."""
        stack, layer, path = family[0]
        start = self.starts[stack, self.stacks.blocks[stack][layer]]
        return self.bundles.get((*start, path), self.bundles[family[0]])

    def _are_exact(self, keys: Sequence[tuple[str, int, str]], kind: str) -> bool:
        return all(self._is_exact(key, kind) for key in keys)

    def _is_exact(self, key: tuple[str, int, str], kind: str) -> bool:
        if (key, kind) not in self._exact:
            stack, layer, path = key
            try:
                inputs = dummy_inputs(self.model, 1, 16)
                found = changes_nothing(self.model, self.bundles[key], kind, inputs)
            except (ValueError, TypeError, RuntimeError, StopIteration) as error:
                self._warn(f"not aligned, as the model could not be tried on made-up inputs: {error}")
                found = False
            if not found:
                logger.info("%s.%d: turning the %s of %s would change the outputs; they stay", stack, layer, kind, path)
            self._exact[key, kind] = found
        return self._exact[key, kind]

    def _warn(self, text: str) -> None:
        if text not in self._told:
            logger.warning(text)
            self._told.add(text)

    def _tensors(self, bundle: Bundle, weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor | None]]:
        found = {}
        for role, target in bundle.members.items():
            bias = read_bias(self.model, target)
            found[role] = weights[target.name], None if bias is None else bias.cpu()
        return found


def _bundles(model: nn.Module, targets: Sequence[Target], across: bool) -> dict[tuple[str, int, str], Bundle]:
    """Feed-forward parts and attentions of which every weight is there, by stack, layer and path."""
    found: dict[tuple[str, int, str], dict[str, list[Target]]] = defaultdict(lambda: defaultdict(list))
    for target in targets:
        place, role = place_of(target), role_of(target)
        path = role_path(model, place) if across else place.path
        attention = _attention(path)
        found[place.stack, place.layer, attention or "(ffn)"][role].append(target)
    bundles = {}
    for (stack, layer, path), roles in found.items():
        plain = not any(
            isinstance(model.get_submodule(t.module), Assembled | FusedLinear) for own in roles.values() for t in own
        )
        bundle = (_ffn(roles) if path == "(ffn)" else _heads(model, roles)) if plain else None
        if bundle is not None:
            bundles[stack, layer, path] = bundle
    return bundles


def _attention(path: str) -> str:
    """The part of a path up to the attention, or nothing."""
    pieces = path.split(".")
    number = next((n for n, piece in enumerate(pieces) if "att" in piece.lower()), None)
    return "" if number is None else ".".join(pieces[: number + 1]).partition(":")[0]


def _ffn(roles: Mapping[str, Sequence[Target]]) -> Bundle | None:
    """One weight out and one or two (gated) in, of as many neurons."""
    inward, outward = roles.get("ffn_in", ()), roles.get("ffn_out", ())
    if len(outward) != 1 or len(inward) not in (1, 2) or any(t.rows != outward[0].columns for t in inward):
        return None
    return Bundle("neurons", {**dict(zip(("ffn_in", "gate"), inward, strict=False)), "ffn_out": outward[0]})


def _heads(model: nn.Module, roles: Mapping[str, Sequence[Target]]) -> Bundle | None:
    if set(roles) != set("qkvo") or any(len(own) != 1 for own in roles.values()):
        return None
    members = {role: roles[role][0] for role in "qkvo"}
    heads = _heads_of(model, members["q"].module)
    if heads is None or any(
        members[role].rows % count for role, count in zip("qkv", (heads[0], heads[1], heads[1]), strict=True)
    ):
        return None
    if members["k"].rows * heads[0] != members["q"].rows * heads[1] or members["o"].columns % heads[0]:
        return None
    return Bundle("heads", members, heads)


def _heads_of(model: nn.Module, name: str) -> tuple[int, int] | None:
    """Query heads and key and value heads, asked of the nearest module around a query that knows, or its config."""
    while name:
        name = name.rpartition(".")[0]
        module = model.get_submodule(name)
        for source in (module, getattr(module, "config", None)):
            heads = _number(source, HEAD_NAMES)
            if heads is not None:
                config = getattr(module, "config", None)
                groups = _number(source, GROUP_NAMES) or _number(config, GROUP_NAMES) or heads
                return heads, groups
    return None


def _number(source: Any, names: Sequence[str]) -> int | None:
    values = (getattr(source, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool) and value), None)
