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
from fewfold.methods.shared_layers.turns import Bundle, Turns, changes_nothing, match
from fewfold.surgery.layouts import FusedLinear
from fewfold.surgery.targets import Target, read_bias

logger = logging.getLogger(__name__)

HEAD_NAMES = ("num_attention_heads", "num_heads", "n_heads", "n_head")
GROUP_NAMES = ("num_key_value_heads", "num_kv_heads")


class Alignment:
    """The turns of all targets towards the layers that their blocks begin with.

    Only what a probe of the model shows to change nothing is turned, and only where all weights of a bundle are shared.

    :param model: the dense model; it is read when a turn is first asked for.
    :param targets: everything that is shared.
    :param starts: by stack and block: the layer that others are turned towards.
    :param wish: ``none``, ``permute`` or ``rotate``.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        stacks: Stacks,
        starts: Mapping[tuple[str, int], tuple[str, int]],
        wish: str,
        across: bool = False,
    ) -> None:
        self.model, self.stacks, self.starts, self.wish = model, stacks, starts, wish
        self.bundles: dict[tuple[str, int, str], Bundle] = {}
        self.place: dict[str, tuple[tuple[str, int, str], str]] = {}
        self._found: dict[tuple[str, int, str], dict[str, Turns]] = {}
        self._exact: dict[tuple[str, str, str], bool] = {}
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
            self._found[key] = self._match(key, weights)
        return self._found[key].get(role, Turns())

    def _match(self, key: tuple[str, int, str], weights: Mapping[str, Tensor]) -> dict[str, Turns]:
        bundle, reference = self.bundles[key], self._reference(key)
        if reference is None or reference is bundle or not reference.alike(bundle):
            return {}
        if not self._is_exact(key, bundle.kind):
            return {}
        rotate = self.wish == "rotate" and bundle.kind == "heads"
        values, queries = (rotate and self._is_exact(key, kind) for kind in ("values", "queries"))
        return match(self._tensors(reference, weights), self._tensors(bundle, weights), bundle, values, queries)

    def _reference(self, key: tuple[str, int, str]) -> Bundle | None:
        """The bundle of the layer that the block begins with, else of the first layer of the block that has one."""
        stack, layer, path = key
        block = self.stacks.blocks[stack][layer]
        start = self.starts[stack, block]
        first = self.bundles.get((start[0], start[1], path))
        if first is not None:
            return first
        return next(
            (
                bundle
                for (other, number, its), bundle in self.bundles.items()
                if its == path and self.stacks.blocks[other][number] == block
            ),
            None,
        )

    def _is_exact(self, key: tuple[str, int, str], kind: str) -> bool:
        stack, _, path = key
        if (stack, path, kind) not in self._exact:
            bundle = self.bundles[key]
            try:
                inputs = dummy_inputs(self.model, 1, 16)
                found = changes_nothing(self.model, bundle, kind, inputs)
            except (ValueError, TypeError, RuntimeError, StopIteration) as error:
                logger.warning("not aligned, as the model could not be tried on made-up inputs: %s", error)
                found = False
            if not found:
                logger.info("%s: turning the %s of %s would change the outputs; they stay", stack, kind, path)
            self._exact[stack, path, kind] = found
        return self._exact[stack, path, kind]

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
