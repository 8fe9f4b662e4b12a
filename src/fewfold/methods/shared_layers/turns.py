"""Exact changes of order and frame inside of a layer: of neurons and heads, whose weights all turn together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewfold.linalg.alignment import match_neurons
from fewfold.linalg.heads import Heads, match_heads, rotate_heads, rows_of_heads
from fewfold.measure.modes import evaluating
from fewfold.surgery.targets import Target

HALVES = (torch.float16, torch.bfloat16)
IDLE = 3e-5  # largest change of an output, relative, that counts as rounding in fp32
SCORES: tuple[Literal["products", "rows"], ...] = ("products", "rows")
ROUNDS = 4  # of turning every layer of a block towards the others
GAIN = 1e-3  # of the squared norm of their sum, below which another round is not worth its time


@dataclass(frozen=True)
class Turn:
    """An orthogonal map of one side of a weight: an order, then a frame.

    :param order: ``(n,)``: what stands at each place now.
    :param frame: ``(n, n)`` float64 rotation that follows, or None.
    """

    order: Tensor
    frame: Tensor | None = None

    def __call__(self, values: Tensor, dim: int = 0) -> Tensor:
        """``values`` with its dimension ``dim`` turned, in float64."""
        found = values.double().index_select(dim, self.order.to(values.device))
        if self.frame is None:
            return found
        return torch.tensordot(self.frame.to(values.device), found, dims=([1], [dim])).movedim(0, dim)


@dataclass(frozen=True)
class Turns:
    """What happens to the two sides of one weight; None where a side stays.

    :param rows: of the outputs, and the bias.
    :param columns: of the inputs.
    """

    rows: Turn | None = None
    columns: Turn | None = None

    def weight(self, weight: Tensor) -> Tensor:
        """``(out, in)`` float64."""
        return self.inputs(self.outputs(weight), 1)

    def outputs(self, values: Tensor) -> Tensor:
        """Rows, or a bias, turned."""
        return values.double() if self.rows is None else self.rows(values)

    def inputs(self, values: Tensor, dim: int = 0) -> Tensor:
        """What goes along the inputs, turned."""
        return values.double() if self.columns is None else self.columns(values, dim)

    def moment(self, moment: Tensor) -> Tensor:
        """The second moment of turned inputs."""
        return self.inputs(self.inputs(moment), 1)


@dataclass(frozen=True)
class Bundle:
    """Weights of one layer that turn together.

    :param kind: ``neurons`` of a feed-forward part or ``heads`` of an attention.
    :param members: by role; of a gated feed-forward part ``ffn_in`` and ``gate``.
    :param heads: number of query heads, and of key and value heads.
    """

    kind: str
    members: Mapping[str, Target]
    heads: tuple[int, int] = (1, 1)

    def alike(self, other: Bundle) -> bool:
        """Whether two bundles have the same shapes."""
        shapes = [
            {role: (target.rows, target.columns, target.bias) for role, target in bundle.members.items()}
            for bundle in (self, other)
        ]
        return self.kind == other.kind and self.heads == other.heads and shapes[0] == shapes[1]


Tensors = Mapping[str, tuple[Tensor, Tensor | None]]


def match(
    reference: Tensors, other: Tensors, bundle: Bundle, values: bool = False, queries: bool = False
) -> dict[str, Turns]:
    """The turns that bring a layer's bundle near to a reference: never further from it than the bundle is unturned.

    :param reference: weight and bias by role.
    :param other: those to be turned.
    :param values: whether heads' values are rotated into one frame, exactly.
    :param queries: the same of queries and keys.
    """
    if bundle.kind == "neurons":
        roles = [role for role in bundle.members if role != "ffn_out"]
        rows = [
            [*(_with_bias(*side[role]) for role in roles), side["ffn_out"][0].double().t()]
            for side in (reference, other)
        ]
        order = Turn(match_neurons(rows[0], rows[1]))
        return {role: Turns(columns=order) if role == "ffn_out" else Turns(rows=order) for role in bundle.members}
    first, second = _heads(reference, bundle), _heads(other, bundle)
    chosen, best = torch.arange(first.heads), -math.inf
    # products of heads say nothing of the frames that stay, and the largest part of the distance may lie in those
    for scores in SCORES if values or queries else SCORES[1:]:
        order_of_heads = match_heads(first, second, scores=scores)
        permuted = second.permuted(order_of_heads)
        if values or queries:
            permuted = _rotated(first, permuted, values, queries)
        found = _closeness(first, permuted)
        if found > best:
            chosen, best = order_of_heads, found
        if values and queries and found >= _closeness(first, second):
            break
    return _head_turns(first, second.permuted(chosen), chosen, bundle, values, queries)


def match_all(
    members: Sequence[Tensors], bundle: Bundle, values: bool = False, queries: bool = False
) -> list[Mapping[str, Turns]]:
    """The turns of several layers that bring them near to their mean: never further from it than they are unturned.

    All are turned towards the first one. Where their mean is then further from them than that of the unturned layers,
    each is turned towards the sum of the others instead, as often as that brings them nearer.

    :param members: weight and bias by role, a layer each; the first one only turns in the second case.
    :param values: whether heads' values may be rotated.
    :param queries: the same of queries and keys.
    """
    unturned: list[Mapping[str, Turns]] = [{} for _ in members]
    found: list[Mapping[str, Turns]] = [{}]
    found += [match(members[0], other, bundle, values, queries) for other in members[1:]]
    if len(members) < 3:
        return found
    total = _sum(_turned(one, own) for one, own in zip(members, unturned, strict=True))
    # turns keep norms: the larger the sum, the nearer its parts
    if _energy(_sum(_turned(one, own) for one, own in zip(members, found, strict=True))) >= _energy(total):
        return found
    found = unturned
    for _ in range(ROUNDS):
        before = _energy(total)
        for number, one in enumerate(members):
            others = _sum([total, _turned(one, found[number])], -1)
            turns = match(others, one, bundle, values, queries)
            moved = _sum([others, _turned(one, turns)])
            if _energy(moved) > _energy(total):
                found[number], total = turns, moved
        if _energy(total) <= before * (1 + GAIN):
            break
    return found


def random_turns(bundle: Bundle, kind: str) -> dict[str, Turns]:
    """Turns at random, to see whether a model is indifferent to them.

    :param kind: ``neurons`` and ``heads`` change the order, ``values`` and ``queries`` rotate.
    """
    generator = torch.Generator().manual_seed(0)
    if kind == "neurons":
        order = Turn(torch.randperm(bundle.members["ffn_out"].columns, generator=generator))
        return {role: Turns(columns=order) if role == "ffn_out" else Turns(rows=order) for role in bundle.members}
    heads, groups = bundle.heads
    size = heads // groups
    order_of_heads = torch.arange(heads)
    if kind == "heads":
        inner = torch.stack([torch.randperm(size, generator=generator) for _ in range(groups)])
        outer = torch.randperm(groups, generator=generator)
        order_of_heads = (inner + size * outer[:, None]).flatten()
    frames: dict[str, Tensor] = {}
    for pair in {"values": ("v", "o"), "queries": ("k", "q")}.get(kind, ()):
        width = bundle.members["v" if kind == "values" else "k"].rows // groups
        own = torch.randn(groups, width, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        rotations = torch.linalg.qr(own)[0]
        frames[pair] = rotations if pair in "vk" else rotations.repeat_interleave(size, 0)
    return _turns(order_of_heads, bundle, frames)


def _turned(tensors: Tensors, turns: Mapping[str, Turns]) -> Tensors:
    """Weights and biases in float64, turned."""
    return {
        role: (
            turns.get(role, Turns()).weight(weight),
            None if bias is None else turns.get(role, Turns()).outputs(bias),
        )
        for role, (weight, bias) in tensors.items()
    }


def _sum(parts: Iterable[Tensors], sign: float = 1.0) -> Tensors:
    """The first of the parts, and the others times ``sign``."""
    first, *others = parts
    found = dict(first)
    for other in others:
        for role, (weight, bias) in other.items():
            before, shift = found[role]
            found[role] = before + sign * weight, None if bias is None or shift is None else shift + sign * bias
    return found


def _energy(tensors: Tensors) -> float:
    return sum(float(part.square().sum()) for pair in tensors.values() for part in pair if part is not None)


def _rotated(reference: Heads, other: Heads, values: bool, queries: bool) -> Heads:
    """Heads of which only these frames are turned towards the reference."""
    turned = rotate_heads(reference, other, query_key=queries)
    return turned if values else replace(turned, value=other.value, output=other.output)


def _closeness(first: Heads, second: Heads) -> float:
    """The inner product of all numbers: the larger, the nearer."""
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(first.split(), second.split(), strict=True))


def _head_turns(
    reference: Heads, permuted: Heads, order: Tensor, bundle: Bundle, values: bool, queries: bool
) -> dict[str, Turns]:
    frames: dict[str, Tensor] = {}
    if values or queries:
        turned = _rotated(reference, permuted, values, queries)
        for number, role in enumerate("qkvo"):
            if values if role in "vo" else queries:
                before, after = permuted.split()[number].double(), turned.split()[number].double()
                left, _, right = torch.linalg.svd(after @ before.transpose(1, 2))
                frames[role] = left @ right
    return _turns(order, bundle, frames)


def _turns(order: Tensor, bundle: Bundle, frames: Mapping[str, Tensor]) -> dict[str, Turns]:
    size = bundle.heads[0] // bundle.heads[1]
    groups = order[::size] // size
    found = {}
    for role, target in bundle.members.items():
        width = target.columns if role == "o" else target.rows
        frame = torch.block_diag(*frames[role]) if role in frames else None
        turn = Turn(rows_of_heads(groups if role in "kv" else order, width), frame)
        found[role] = Turns(columns=turn) if role == "o" else Turns(rows=turn)
    return found


def _with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.double()
    return weight if bias is None else torch.cat([weight, bias.double()[:, None]], 1)


def _heads(tensors: Tensors, bundle: Bundle) -> Heads:
    query, key, value = (_with_bias(*tensors[role]) for role in "qkv")
    return Heads(query, key, value, tensors["o"][0].double(), *bundle.heads)


@contextmanager
def turned(model: nn.Module, bundle: Bundle, turns: Mapping[str, Turns]) -> Iterator[None]:
    """The model with one bundle turned, and afterwards as it was."""
    modules: dict[str, Any] = {target.module: model.get_submodule(target.module) for target in bundle.members.values()}
    kept = {
        name: (module.weight.detach().clone(), None if module.bias is None else module.bias.detach().clone())
        for name, module in modules.items()
    }
    try:
        with torch.no_grad():
            for role, target in bundle.members.items():
                module = modules[target.module]
                weight = module.weight.t() if target.transposed else module.weight
                _write(weight, target, turns[role].weight(_read(weight, target)))
                if module.bias is not None:
                    _write(module.bias, target, turns[role].outputs(_read(module.bias, target)))
        yield
    finally:
        with torch.no_grad():
            for name, (weight, bias) in kept.items():
                modules[name].weight.copy_(weight)
                if bias is not None:
                    modules[name].bias.copy_(bias)


def _read(values: Tensor, target: Target) -> Tensor:
    return values if target.part is None else target.part.take(values)


def _write(values: Tensor, target: Target, new: Tensor) -> None:
    part = target.part
    if part is None:
        values.copy_(new)
    else:
        blocks = values.unflatten(0, (part.blocks, -1))
        blocks[:, part.start : part.stop].copy_(new.unflatten(0, (part.blocks, -1)))


def changes_nothing(model: nn.Module, bundle: Bundle, kind: str, inputs: Mapping[str, Tensor]) -> bool:
    """Whether the output of the part that a bundle belongs to stays when the bundle is turned at random.

    Position biases of single heads (ALiBi, T5), norms between the weights, rotary positions: all of it
    shows here. In half precision that part alone is tried in fp32, as rounding would hide what a turn changes.

    :raises RuntimeError: if the model does not run that part.
    """
    part = _around(model, bundle)
    with evaluating(model), torch.no_grad(), _in_fp32(part):
        before = _output_of(part, model, inputs)
        with turned(model, bundle, random_turns(bundle, kind)):
            after = _output_of(part, model, inputs)
    change = (after.double() - before.double()).abs().max() / before.double().abs().max().clamp_min(1e-30)
    return bool(change <= IDLE)


def _around(model: nn.Module, bundle: Bundle) -> nn.Module:
    """The smallest module that holds a bundle and is called."""
    pieces = [target.module.split(".") for target in bundle.members.values()]
    name = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*pieces, strict=False))]
    while isinstance(model.get_submodule(".".join(name)), nn.ModuleList | nn.ModuleDict):
        name.pop()
    return model.get_submodule(".".join(name))


@contextmanager
def _in_fp32(part: nn.Module) -> Iterator[None]:
    """A part whose numbers in half precision are fp32 for now, and afterwards the same tensors as before."""
    held = [t for t in (*part.parameters(), *part.buffers()) if t.dtype in HALVES]
    kept = [tensor.data for tensor in held]
    try:
        for tensor in held:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(held, kept, strict=True):
            tensor.data = data


class _Seen(Exception):
    """Ends a forward pass whose further results nobody wants."""


def _output_of(part: nn.Module, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """What a part gives at its first call, its inputs in fp32 where they were in half precision."""
    seen: list[Tensor] = []

    def enter(_: nn.Module, given: Any, named: Any) -> Any:
        return _widened(given), _widened(named)

    def leave(_: nn.Module, __: Any, ___: Any, result: Any) -> None:
        seen.append(_outputs(result))
        raise _Seen

    hooks = [
        part.register_forward_pre_hook(enter, with_kwargs=True),
        part.register_forward_hook(leave, with_kwargs=True),
    ]
    try:
        with suppress(_Seen):
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise RuntimeError(f"the model does not call its {type(part).__name__}")
    return seen[0]


def _widened(value: Any) -> Any:
    """Tensors in half precision as fp32, in tuples, lists and dictionaries too."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALVES else value
    if type(value) in (tuple, list):
        return type(value)(_widened(item) for item in value)
    if type(value) is dict:
        return {key: _widened(item) for key, item in value.items()}
    return value


def _outputs(result: Any) -> Tensor:
    if isinstance(result, Tensor):
        return result
    values = result.values() if hasattr(result, "values") else result
    return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())
