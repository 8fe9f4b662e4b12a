"""Fit what was planned: at once, or target by target on the inputs that the compressed part already gives."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fewfold.assembled import Assembled
from fewfold.budget.plan import Choice
from fewfold.calibration.inputs import Batch
from fewfold.calibration.statistics import Drift, Statistics
from fewfold.calibration.streams import CannotStream, Streams, find_stacks
from fewfold.measure.modes import evaluating
from fewfold.methods.base import STORE
from fewfold.methods.registry import method_named
from fewfold.progress import track
from fewfold.store import stores_behind
from fewfold.stored import StoredEmbedding, StoredLinear
from fewfold.stored.codes import CodedMatrix
from fewfold.stored.kept import Kept
from fewfold.surgery.operators import tensor_of
from fewfold.surgery.replace import biases_of, replace_modules, weight_trains
from fewfold.surgery.targets import Target, read_bias

logger = logging.getLogger(__name__)

Replacement = tuple[Target, Assembled]


@dataclass(frozen=True)
class Fitter:
    """Everything that fitting one plan needs.

    :param model: the dense model; it is only read.
    :param weights: dense weights by target name.
    :param seed: of fresh weights.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    statistics: Statistics
    seed: int = 0

    def fresh(self, choices: Sequence[Choice]) -> list[Replacement]:
        """Modules with fresh weights, for training from scratch; biases begin as the model has them."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            pairs = []
            for choice in track(choices, "building"):
                made = self._empty(choice)
                if method_named(choice.unit.method).keeps_biases(choice.unit):
                    for target, module in made:
                        keep_biases(self.model, target, module)
                pairs += made
        modules = [module for _, module in pairs]
        for owner in (*modules, *stores_behind(modules)):
            round_leaves(owner)
        return pairs

    def at_once(self, choices: Sequence[Choice]) -> list[Replacement]:
        """Fit every choice on the dense model's inputs."""
        return [pair for choice in track(choices, "fitting") for pair in self._fit(choice, self.statistics)]

    def in_sequence(self, choices: Sequence[Choice], batches: Sequence[Batch]) -> list[Replacement]:
        """Fit target by target: each on the inputs that the compressed part before it gives.

        What stands outside of the model's stacks of blocks (tables, heads), and units of several targets, are
        fitted first and on the dense inputs. Where the blocks cannot be run by themselves, everything is.
        """
        done: list[Replacement] = []
        partial = copy.deepcopy(self.model).eval()
        with evaluating(self.model):
            refitted = [c for c in choices if method_named(c.unit.method).refits(c.unit)]
            targets = [c.unit.targets[0] for c in choices if self._is_staged(c)]
            targets += [target for c in refitted for target in c.unit.targets]
            stacks = find_stacks(self.model, targets)
            inside = {t.module for t in targets if any(t.module.startswith(f"{b}.") for s in stacks for b in s)}
            early = [c for c in choices if c.unit.targets[0].module not in inside or not self._is_staged(c)]
            waiting: dict[str, list[Choice]] = {}
            for choice in choices:
                if not any(choice is one for one in early):
                    waiting.setdefault(choice.unit.targets[0].module, []).append(choice)
            for choice in track(early, "fitting"):
                done += self._fit(choice, self.statistics)
            if done:
                replace_modules(partial, done)
            once_more = self._once_more(refitted, done, inside)
            for number, blocks in enumerate(stacks):
                streams = Streams(self.model, partial, blocks, targets, batches, first=number == 0)
                try:
                    stages = sum(any(m.startswith(f"{b}.") for b in blocks) for m in {*waiting, *once_more})
                    for drifts in track(streams.stages(), "fitting in sequence", total=stages):
                        self._refit(once_more, drifts)
                        fitted = self._stage(waiting, drifts)
                        if fitted:
                            replace_modules(partial, fitted)
                        done += fitted
                except CannotStream as reason:
                    logger.warning("fitting on the dense model's inputs instead of in sequence: %s", reason)
            for store in stores_behind(module for _, module in done):
                round_leaves(store)
            for left in track([c for group in waiting.values() for c in group], "fitting"):
                done += self._fit(left, self.statistics)
        return done

    def _is_staged(self, choice: Choice) -> bool:
        method = method_named(choice.unit.method)
        return len(choice.unit.targets) == 1 and method.calibrates(choice.unit) != "nothing"

    def _stage(self, waiting: dict[str, list[Choice]], drifts: Mapping[str, Drift]) -> list[Replacement]:
        statistics = replace(self.statistics, drift=dict(drifts))
        choices = [choice for module in drifts for choice in waiting.pop(module, [])]
        return [pair for choice in choices for pair in self._fit(choice, statistics)]

    def _once_more(
        self, choices: Sequence[Choice], done: Sequence[Replacement], inside: Collection[str]
    ) -> dict[str, list[tuple[Choice, Target, Assembled]]]:
        """By module: what of the units that are fitted already can be fitted again on the way."""
        modules = {target.name: module for target, module in done}
        found: dict[str, list[tuple[Choice, Target, Assembled]]] = {}
        for choice in choices:
            for target in choice.unit.targets:
                if target.module in inside:
                    found.setdefault(target.module, []).append((choice, target, modules[target.name]))
        return found

    def _refit(
        self, once_more: Mapping[str, list[tuple[Choice, Target, Assembled]]], drifts: Mapping[str, Drift]
    ) -> None:
        statistics = replace(self.statistics, drift=dict(drifts))
        for name, drift in drifts.items():
            for choice, target, module in once_more.get(name, []) if drift.count else []:
                weight, bias = self.weights[target.name], read_bias(self.model, target)
                method_named(choice.unit.method).refit(choice.unit, target, module, weight, bias, statistics)

    def _fit(self, choice: Choice, statistics: Statistics) -> list[Replacement]:
        unit, settings = choice.unit, choice.settings
        assert settings is not None
        tensors = method_named(unit.method).fit(unit, settings, self.weights, statistics)
        pairs = self._empty(choice)
        for store in stores_behind(module for _, module in pairs):
            fill(store, tensors[STORE], None)
        for target, module in pairs:
            fill(module, tensors[target.name], read_bias(self.model, target))
        return pairs

    def _empty(self, choice: Choice) -> list[Replacement]:
        """The empty modules of one choice, where and as the dense ones are."""
        unit, settings = choice.unit, choice.settings
        assert settings is not None
        like = tensor_of(self.model.get_submodule(unit.targets[0].module))
        method = method_named(unit.method)
        with torch.device(like.device):
            modules = method.modules(unit, settings, choice.store)
        pairs = [(target, modules[target.name]) for target in unit.targets]
        (store,) = stores_behind(modules.values()) or (None,)
        dense = [self.model.get_submodule(target.module) for target in unit.targets]
        moved: list[bool] = []  # of biases that the store owns from now on: whether they are trained
        for (_, module), old in zip(pairs, dense, strict=True):
            module.requires_grad_(weight_trains(old)).to(tensor_of(old).dtype)
            own = biases_of(module)
            for name, bias in biases_of(old).items():
                if name in own:
                    own[name].requires_grad_(bias.requires_grad)
                else:
                    moved.append(bias.requires_grad)
        if store is not None:
            store.requires_grad_(any(map(weight_trains, dense))).to(like.dtype)
            for name, parameter in store.named_parameters():
                if moved and name.endswith(".bias"):
                    parameter.requires_grad_(any(moved))
        return pairs


@torch.no_grad()
def keep_biases(model: nn.Module, target: Target, module: nn.Module) -> None:
    """Give a fresh module its own biases as the dense one has them: open forget gates, classes' frequencies."""
    dense = model.get_submodule(target.module)
    of_operators = [name for name, _ in module.named_parameters(recurse=False) if name.startswith("bias_")]
    for name in ("bias", *of_operators):
        fresh = getattr(module, name, None)
        bias = read_bias(model, target) if target.kind == "linear" else getattr(dense, name, None)
        if isinstance(fresh, Tensor) and isinstance(bias, Tensor) and fresh.shape == bias.shape and not fresh.is_meta:
            fresh.copy_(bias)


@torch.no_grad()
def fill(module: nn.Module, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
    """Copy fitted tensors into an empty assembled module (or a store) and put them on their stored grid.

    ``bias_shift`` is added to the dense module's bias; ``name.codes`` and ``name.scales`` set an integer-stored
    child directly, ``name.codes_S``, ``name.rank`` and ``name.scales`` a coded matrix.
    """
    for name, tensor in tensors.items():
        if name.endswith((".weight", ".bias")):
            module.get_parameter(name).copy_(tensor)
    own = getattr(module, "bias", None)
    if own is not None and bias is not None:
        shift = tensors.get("bias_shift")
        own.copy_(bias.double() + shift.to(bias.device) if shift is not None else bias)
    for name, leaf in module.named_modules():
        if isinstance(leaf, StoredLinear | StoredEmbedding):
            if f"{name}.codes" in tensors:
                leaf.set_grid_(tensors[f"{name}.codes"], tensors[f"{name}.scales"])
            else:
                leaf.round_()
        elif isinstance(leaf, CodedMatrix):
            prefix = f"{name}." if name else ""
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            leaf.take_(own)


def round_leaves(module: nn.Module) -> None:
    """Put every stored leaf on the grid of its kept form."""
    for leaf in module.modules():
        if isinstance(leaf, Kept):
            leaf.round_()
