"""Run a dense model and its half-compressed copy side by side, block by block.

Fitting a target on the inputs that the already compressed part gives, towards the outputs that the dense model
gives, lets every target repair some of the error made before it. Block by block means that nothing is computed
twice: both streams keep their hidden states between blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.calibration.collect import is_called_each_step, padding_mask, rows_of
from fewfold.calibration.inputs import Batch
from fewfold.calibration.statistics import Drift
from fewfold.surgery.targets import Target


class CannotStream(Exception):
    """The model's blocks cannot be run one after the other by themselves."""


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """No part of a model makes a cache of keys and values: a block that is run again would add to it."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    cached = [config for config in configs.values() if getattr(config, "use_cache", False)]
    for config in cached:
        config.use_cache = False
    try:
        yield
    finally:
        for config in cached:
            config.use_cache = True


class _Stop(Exception):
    """Ends a forward pass once everything wanted was seen."""


@dataclass
class _Call:
    """How the model called one block on one batch; the hidden states are left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: bool
    checksum: float

    def run(self, block: nn.Module, hidden_states: Tensor) -> Tensor:
        if self.keyword:
            output = block(*self.args, **{**self.kwargs, "hidden_states": hidden_states})
        else:
            output = block(hidden_states, *self.args, **self.kwargs)
        output = output[0] if isinstance(output, tuple) else output
        if not isinstance(output, Tensor):
            raise CannotStream(f"{type(block).__name__} returns {type(output).__name__}")
        return output


def find_stacks(model: nn.Module, targets: Sequence[Target]) -> list[list[str]]:
    """The names of the blocks of every stack (nn.ModuleList) that holds targets, in the model's order."""
    stacks: list[list[str]] = []
    for name, module in model.named_modules():
        inside_another = any(name.startswith(f"{block}.") for stack in stacks for block in stack)
        if not isinstance(module, nn.ModuleList) or inside_another or not name:
            continue
        blocks = [f"{name}.{index}" for index in range(len(module))]
        if any(target.module.startswith(f"{block}.") for target in targets for block in blocks):
            stacks.append(blocks)
    return stacks


class Streams:
    """Two hidden-state streams through one stack of blocks.

    :param dense: the model as it was.
    :param copy: a copy of it that is being compressed; it is read again at every step.
    :param blocks: names of the stack's blocks, in order.
    :param targets: the targets inside, by module.
    :param first: whether no other stack runs before this one (what a decoder is given depends on its encoder).
    """

    def __init__(
        self,
        dense: nn.Module,
        copy: nn.Module,
        blocks: Sequence[str],
        targets: Sequence[Target],
        batches: Sequence[Batch],
        first: bool = True,
    ) -> None:
        self.dense, self.copy, self.blocks, self.batches = dense, copy, list(blocks), list(batches)
        self.first = first
        self.targets = {target.module: target for target in targets}

    @torch.no_grad()
    def stages(self) -> Iterator[dict[str, Drift]]:
        """Drifts of the inputs of one stage after the other: targets with the same input are one stage.

        The caller replaces the stage's modules in ``copy`` before it takes the next.

        :raises CannotStream: before the first stage, if the blocks cannot be run by themselves.
        """
        calls, dense_states = self._calls(self.dense)
        own_calls, states = self._calls(self.copy, entry_only=self.first)
        own_calls = calls if self.first else own_calls
        for number, name in enumerate(self.blocks):
            order, inputs, dense_states = self._dense_block(name, calls[number], dense_states)
            if number + 1 < len(self.blocks):
                self._compare(dense_states, calls[number + 1], self.blocks[number + 1])
            for stage in order:
                yield self._drift(name, stage, own_calls[number], states, inputs)
            if number + 1 < len(self.blocks):
                block = self.copy.get_submodule(name)
                states = [call.run(block, state) for call, state in zip(own_calls[number], states, strict=True)]

    def _calls(self, model: nn.Module, entry_only: bool = False) -> tuple[list[list[_Call]], list[Tensor]]:
        """How ``model`` calls its blocks on every batch, and the hidden states that enter the first.

        :param entry_only: stop at the first block.
        """
        calls: list[list[_Call]] = [[] for _ in self.blocks]
        states: list[Tensor] = []

        def hook(number: int) -> Callable[..., None]:
            def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
                del module
                keyword = not args
                hidden = kwargs.get("hidden_states") if keyword else args[0]
                if not isinstance(hidden, Tensor):
                    raise CannotStream("the blocks are not called with hidden states")
                if number == 0:
                    states.append(hidden)
                rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
                calls[number].append(_Call(() if keyword else args[1:], rest, keyword, float(hidden.double().sum())))
                if entry_only:
                    raise _Stop

            return record

        handles = [
            model.get_submodule(name).register_forward_pre_hook(hook(number), with_kwargs=True)
            for number, name in enumerate(self.blocks)
        ]
        uncached = "use_cache" in inspect.signature(model.forward).parameters
        try:
            with without_cache(model):
                for batch in self.batches:
                    with suppress(_Stop):
                        model(**batch, **({"use_cache": False} if uncached else {}))
        finally:
            for handle in handles:
                handle.remove()
        if any(len(called) != len(self.batches) for called in calls[: 1 if entry_only else None]):
            raise CannotStream("the blocks are not each called once a forward pass")
        return calls, states

    def _dense_block(
        self, name: str, calls: Sequence[_Call], states: Sequence[Tensor]
    ) -> tuple[list[list[str]], dict[str, list[list[Tensor]]], list[Tensor]]:
        """Run a dense block; the order of its stages, the rows that enter each stage, and what leaves the block.

        Rows are those of every batch, call by call: a recurrent layer calls its maps once a step.
        """
        block = self.dense.get_submodule(name)
        inside = [module for module in self.targets if module.startswith(f"{name}.") or module == name]
        order: list[list[str]] = []
        inputs: dict[str, list[list[Tensor]]] = {}
        seen: list[tuple[Tensor, list[str]]] = []
        batch_number = 0

        def hook(module_name: str) -> Callable[..., None]:
            stepwise = is_called_each_step(self.dense, module_name)

            def record(module: nn.Module, args: tuple) -> None:
                del module
                stage = next((stage for tensor, stage in seen if tensor is args[0]), None)
                if stage is None:
                    stage = next((stage for stage in order if stage[0] == module_name), None)
                    if stage is None:
                        stage = [module_name]
                        order.append(stage)
                    seen.append((args[0], stage))
                    found = inputs.setdefault(stage[0], [[] for _ in self.batches])[batch_number]
                    mask = padding_mask(
                        self.batches[batch_number], module_name, args[0], len(found) if stepwise else None
                    )
                    found.append(rows_of(args[0], mask))
                if module_name not in stage:
                    stage.append(module_name)

            return record

        handles = [self.dense.get_submodule(module).register_forward_pre_hook(hook(module)) for module in inside]
        outputs = []
        try:
            for batch_number, (call, state) in enumerate(zip(calls, states, strict=True)):  # noqa: B007
                seen.clear()
                outputs.append(call.run(block, state))
        finally:
            for handle in handles:
                handle.remove()
        return order, inputs, outputs

    def _drift(
        self,
        block_name: str,
        stage: Sequence[str],
        calls: Sequence[_Call],
        states: Sequence[Tensor],
        inputs: dict[str, list[list[Tensor]]],
    ) -> dict[str, Drift]:
        """Moments of what enters a stage in the copy, against what enters it in the dense model.

        :raises CannotStream: if the copy reads more or fewer rows.
        """
        block, leader = self.copy.get_submodule(block_name), stage[0]
        caught: list[Tensor] = []
        expected, stepwise = 1, is_called_each_step(self.copy, leader)

        def catch(module: nn.Module, args: tuple) -> None:
            del module
            mask = padding_mask(self.batches[number], leader, args[0], len(caught) if stepwise else None)
            caught.append(rows_of(args[0], mask))
            if len(caught) == expected:
                raise _Stop

        handle = self.copy.get_submodule(leader).register_forward_pre_hook(catch)
        drift = Drift(next(rows for called in inputs[leader] for rows in called).shape[-1])
        try:
            for number, (call, state) in enumerate(zip(calls, states, strict=True)):
                caught.clear()
                expected = len(inputs[leader][number])
                with suppress(_Stop):
                    call.run(block, state)
                dense_rows, rows = inputs[leader][number], caught
                if sum(map(len, dense_rows)) != sum(map(len, rows)):
                    raise CannotStream(f"{leader} does not read the same rows in the dense model and in its copy")
                if rows:
                    drift.add(torch.cat(dense_rows), torch.cat(rows))
        finally:
            handle.remove()
        return dict.fromkeys(stage, drift)

    def _compare(self, states: Sequence[Tensor], calls: Sequence[_Call], name: str) -> None:
        """Refuse to go on where something happens between the blocks that this walk does not see."""
        for state, call in zip(states, calls, strict=True):
            scale = float(state.double().abs().sum()) + 1e-9
            if abs(float(state.double().sum()) - call.checksum) > 1e-4 * scale:
                raise CannotStream(f"{name} is not fed with the output of the block before it")
