"""Put assembled modules where dense ones stood, and dense ones back."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fewfold.assembled import Assembled, AssembledEmbedding
from fewfold.errors import TargetError
from fewfold.store import attach_stores, drop_unused_stores, stores_behind
from fewfold.stored.modules import Stored
from fewfold.surgery.layouts import FusedLinear, fused_parts, join
from fewfold.surgery.operators import relink
from fewfold.surgery.targets import Target, read_bias, read_weight
from fewfold.surgery.ties import EmbeddingAlias, TiedHead, drop_tie_declarations, restore_tie_declarations, untie

Replaced = (Assembled, FusedLinear, TiedHead, EmbeddingAlias)


def hollow(module: nn.Module) -> nn.Module:
    """A copy of a leaf module whose tensors are on the meta device: its class and settings without its memory."""
    shell = copy.copy(module)
    shell.__dict__ = dict(module.__dict__)
    shell._parameters = {
        name: None if value is None else nn.Parameter(torch.empty_like(value, device="meta"), value.requires_grad)
        for name, value in module._parameters.items()
    }
    shell._buffers = dict(module._buffers)
    shell._modules = {}
    return relink(shell)


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """By the id of each module: every parent and name that holds it (a module may have several parents)."""
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places[id(child)].append((parent, name))
    return places


def _swap(places: Mapping[int, list[tuple[nn.Module, str]]], old: nn.Module, new: nn.Module) -> None:
    for parent, name in places[id(old)]:
        parent._modules[name] = new


def _original_of(module: nn.Module) -> tuple[nn.Module, ...]:
    return module.original if isinstance(module, Replaced) else (hollow(module),)


def _fuse(model: nn.Module, module_name: str, parts: Mapping[str, tuple[Target, Assembled]]) -> FusedLinear:
    """Join replaced parts; parts that stay dense become a plain ``nn.Linear``."""
    module: Any = model.get_submodule(module_name)
    whole = next(iter(parts.values()))[0]
    rows = module.weight.shape[1] if whole.transposed else module.weight.shape[0]
    children: dict[str, nn.Module] = {}
    fused = fused_parts(module_name, rows, model)
    assert fused is not None
    for part in fused:
        if part.name in parts:
            children[part.name] = parts[part.name][1]
            continue
        target = Target(
            f"{module_name}:{part.name}", module_name, "linear", part.rows, whole.columns,
            bias=whole.bias, transposed=whole.transposed, part=part,
        )  # fmt: skip
        dense = nn.Linear(target.columns, target.rows, bias=target.bias, device=module.weight.device)
        dense.to(module.weight.dtype)
        if not module.weight.is_meta:
            with torch.no_grad():
                dense.weight.copy_(read_weight(model, target))
                bias = read_bias(model, target)
                if bias is not None:
                    dense.bias.copy_(bias)
                    dense.bias.requires_grad_(module.bias.requires_grad)
        dense.weight.requires_grad_(weight_trains(module))
        children[part.name] = dense
    return FusedLinear(children, fused.blocks)


def replace_modules(model: nn.Module, replacements: Sequence[tuple[Target, Assembled]]) -> None:
    """Swap the modules of ``model`` for assembled ones, in place.

    Every module is built before the first one is swapped, so an error leaves the model as it was. Modules that were
    tied to a replaced table become pointers to it.
    """
    by_module: dict[str, list[tuple[Target, Assembled]]] = defaultdict(list)
    for target, module in replacements:
        by_module[target.module].append((target, module))
    swaps: list[tuple[nn.Module, nn.Module]] = []
    untied: set[str] = set()
    for name, group in by_module.items():
        old = model.get_submodule(name)
        new: nn.Module = group[0][1]
        if group[0][0].part is not None:
            new = _fuse(model, name, {target.part.name: (target, part) for target, part in group if target.part})
        swaps.append((old, new))
        if group[0][0].kind == "embedding":
            untied.add(name)
        for tie in group[0][0].ties:
            tied: Any = model.get_submodule(tie.module)
            table = group[0][1]
            assert isinstance(table, AssembledEmbedding)
            pointer: nn.Module = (
                TiedHead(table, tied.bias)
                if tie.role == "head"
                else EmbeddingAlias(table, tie.scale, getattr(tied, "padding_idx", None))
            )
            swaps.append((tied, pointer))
            untied.add(tie.module)
    places = _places(model)
    for old, _ in swaps:
        if not places.get(id(old)):
            raise TargetError(f"{type(old).__name__} is the model itself; wrap it in a module to replace it")
    attach_stores(model, stores_behind(module for _, module in replacements))
    for old, new in swaps:
        original = _original_of(old)
        new.original = original  # type: ignore[assignment]
        new.train(old.training)
        _swap(places, old, new)
    drop_tie_declarations(model, untied)
    drop_unused_stores(model)


Shared = dict[tuple[Any, ...], nn.Parameter]


def _refill(shell: nn.Module, module: nn.Module, shared: Shared | None = None) -> nn.Module:
    """The original module again, with the assembled weights and the present biases.

    :param shared: what modules that are assembled alike have in common, where that is to stay so.
    """
    dense = copy.copy(shell)
    dense.__dict__ = dict(shell.__dict__)
    dense._parameters, dense._buffers = dict(shell._parameters), _buffers(shell, module)
    keys: dict[str, tuple[Any, ...]] = {}
    if isinstance(module, FusedLinear):
        weights = {"weight": join([_dense_weight(part) for part in module.parts.values()], module.blocks)}
    else:
        assert isinstance(module, Assembled)
        weights, keys = module.weights(), module.shared_weights()
    if isinstance(module, AssembledEmbedding):
        dense.num_embeddings, dense.padding_idx = module.num_embeddings, module.padding_idx  # type: ignore[assignment]
    elif isinstance(plain := shell._parameters.get("weight"), nn.Parameter) and plain.dim() == 1:
        weights = {"weight": weights["weight"][:, 0]}
    elif isinstance(shell, Conv1D):
        weights = {"weight": weights["weight"].t()}
        dense.nf = weights["weight"].shape[1]  # type: ignore[assignment]
    elif isinstance(shell, nn.Linear):
        dense.out_features = weights["weight"].shape[0]  # type: ignore[assignment]
    trains = weight_trains(module)
    for name, weight in weights.items():
        key = (*keys[name], isinstance(shell, Conv1D)) if shared is not None and name in keys else None
        if key is None or shared is None:
            dense._parameters[name] = nn.Parameter(weight.detach().clone().contiguous(), trains)
            continue
        if key not in shared:
            shared[key] = nn.Parameter(weight.detach().clone().contiguous(), trains)
        dense._parameters[name] = shared[key]
    for name in [name for name in shell._parameters if name not in weights]:
        bias = _dense_bias(module, name)
        if bias is not None:
            own = isinstance(bias, nn.Parameter)
            dense._parameters[name] = bias if own else nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return relink(dense.train(module.training))


def _buffers(shell: nn.Module, module: Any) -> dict[str, torch.Tensor | None]:
    """The buffers of a shell; what it got from the empty skeleton that a checkpoint was loaded into is made anew.

    :raises TargetError: naming a buffer of which the numbers are not known.
    """
    buffers = dict(shell._buffers)
    for name, buffer in shell._buffers.items():
        if buffer is None or not buffer.is_meta or module.weight.is_meta:
            continue
        if name != "embed_scale":
            raise TargetError(f"{type(shell).__name__} cannot be dense again: loading left its buffer {name} empty")
        buffers[name] = torch.tensor(module.scale, dtype=buffer.dtype, device=module.weight.device)
    return buffers


def biases_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The biases of a dense or replaced module by their names in it, without those that a store owns."""
    names = ["bias", *(name for name, _ in module.named_parameters(recurse=False) if name.startswith("bias_"))]
    return {name: bias for name in names if isinstance(bias := getattr(module, name, None), nn.Parameter)}


def weight_trains(module: nn.Module) -> bool:
    """Whether anything that the weight of a dense or replaced module is made of is trained."""
    if isinstance(module, FusedLinear):
        return any(weight_trains(part) for part in module.parts.values())
    biases = {id(bias) for bias in biases_of(module).values()}
    held = [module, *(module.leaves() if isinstance(module, Assembled) else ())]
    packed = (leaf for owner in held for leaf in owner.modules() if isinstance(leaf, Stored) and leaf.is_packed)
    parameters = (parameter for owner in held for parameter in owner.parameters() if id(parameter) not in biases)
    return any(leaf.trains for leaf in packed) or any(parameter.requires_grad for parameter in parameters)


@torch.enable_grad()
def _dense_bias(module: nn.Module, name: str) -> Any:
    """A replaced module's bias; put together with gradients on, so that it says whether it is trained."""
    if not isinstance(module, FusedLinear):
        return getattr(module, name, None)
    parts: list[Any] = [getattr(part, name, None) for part in module.parts.values()]
    return None if parts[0] is None else join(parts, module.blocks)


def _dense_weight(module: Any) -> torch.Tensor:
    return module.assembled_weight() if isinstance(module, Assembled) else module.weight


@torch.no_grad()
def restore_modules(model: nn.Module, share: bool = False, only: Collection[str] | None = None) -> int:
    """Put plain dense modules back wherever an assembled one stands, in place.

    :param share: modules that are assembled from the very same tensors get one Parameter in common.
    :param only: names of linear maps and norms; None restores everything, tied modules included.
    :return: how many modules were restored.
    """
    if only is None:
        replaced = [module for module in model.modules() if isinstance(module, Replaced)]
    else:
        replaced = [model.get_submodule(name) for name in only]  # type: ignore[misc]
    inner = {id(part) for module in replaced if isinstance(module, FusedLinear) for part in module.parts.values()}
    replaced = [module for module in replaced if id(module) not in inner]
    tables: dict[int, nn.Module] = {}
    shared: Shared | None = {} if share else None
    places = _places(model)
    for module in replaced:
        if not isinstance(module, TiedHead | EmbeddingAlias):
            dense = _refill(module.original[0], module, shared)
            tables[id(module)] = dense
            _swap(places, module, dense)
    for module in replaced:
        if isinstance(module, TiedHead | EmbeddingAlias):
            dense = copy.copy(module.original[0])
            dense.__dict__ = dict(module.original[0].__dict__)
            dense._parameters = dict(module.original[0]._parameters)
            dense._buffers = _buffers(module.original[0], module)
            dense._parameters["weight"] = tables[id(module.table)].weight  # type: ignore[assignment]
            own = module.table.head_weight() if isinstance(module, TiedHead) else None
            if own is not None:
                dense._parameters["weight"] = nn.Parameter(own.detach().clone(), weight_trains(module.table))
                untie(model)
            if isinstance(module, TiedHead):
                dense._parameters["bias"] = module.bias  # type: ignore[assignment]
                dense.out_features = module.out_features  # type: ignore[assignment]
            else:
                dense.num_embeddings = module.num_embeddings  # type: ignore[assignment]
            _swap(places, module, dense.train(module.training))
    if only is None:
        restore_tie_declarations(model)
    drop_unused_stores(model)
    return len(replaced)
