"""Quantization-aware training: passes run on the grids of few-bit tensors, and the steps go to floats behind them.

Rounding passes gradients straight through (Bengio et al. 2013; Jacob et al., CVPR 2018). The floats are set aside for
the forward and backward passes of a step rather than rounded inside of them, so every method's modules train alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback

from fewfold.linalg.quantize import codes_on, followed_scales, round_onto_
from fewfold.stored.modules import Stored
from fewfold.training.sharded import spread_again, whole

REFRESH = 10  # steps after which scales follow the floats


class Rounding(nn.Module):
    """The grids of all that a model trains and keeps in 2, 3 or 4 bits; int8 loses nothing that training could mend.

    Scales are buffers ``(rows, groups)``: they are part of a checkpoint.

    :param model: its few-bit tensors train as floats; it is no submodule of this one.
    :param trained: what is trained, if the model is only a part of it.
    """

    def __init__(self, model: nn.Module, trained: nn.Module | None = None) -> None:
        super().__init__()
        self.trained = (model if trained is None else trained,)  # in a tuple: not registered
        self.leaves = tuple(leaf for leaf in model.modules() if isinstance(leaf, Stored) and _is_trained(leaf))
        self.floats: list[Tensor] | None = None
        for number, leaf in enumerate(self.leaves):
            self.register_buffer(f"scales_{number}", leaf.grid()[1].float())

    @torch.no_grad()
    def apply_(self, step: int = 0) -> None:
        """Put the tensors on their grids and the floats aside; nothing happens where they are already.

        :param step: of the training; every tenth lets scales follow the floats.
        """
        if self.floats is not None or not self.leaves:
            return
        self.floats = []
        spread_again(*self.trained)
        for number, leaf in enumerate(self.leaves):
            weight, scales, grid = _local(leaf.weight), self._scales(number), _grid(leaf)
            if step and step % REFRESH == 0 and weight.numel():
                scales = followed_scales(weight, scales, *grid, leaf.stored.scale_dtype)
                self._keep(number, scales)
            self.floats.append(weight.clone())
            weight.copy_(round_onto_(weight.float(), scales, *grid))

    @torch.no_grad()
    def restore_(self) -> None:
        """Give the tensors their floats back; nothing happens where they have them."""
        if self.floats is None:
            return
        spread_again(*self.trained)
        for leaf, kept in zip(self.leaves, self.floats, strict=True):
            _local(leaf.weight).copy_(kept)
        self.floats = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The tensors are on their grids while the block runs."""
        before = self.floats is not None
        self.apply_()
        try:
            yield
        finally:
            if not before:
                self.restore_()

    @torch.no_grad()
    def settle_(self, model: nn.Module) -> None:
        """Leave a trained model on the grids: itself, or a copy that has its floats.

        :param model: no tensor of it is sharded.
        """
        self.restore_()
        if not self.leaves:
            return
        trained = [leaf for leaf in model.modules() if isinstance(leaf, Stored) and _is_trained(leaf)]
        for number, leaf in enumerate(trained):
            weight: Any = leaf.weight
            scales = self.get_buffer(f"scales_{number}").to(weight.device, leaf.stored.scale_dtype)
            leaf.set_grid_(codes_on(weight, scales, *_grid(leaf)).packed(), scales)

    def _scales(self, number: int) -> Tensor:
        """The scales of the rows that this process has."""
        weight: Any = self.leaves[number].weight
        scales = self.get_buffer(f"scales_{number}").to(weight.device)
        if not isinstance(weight, DTensor):
            return scales
        return distribute_tensor(scales, weight.device_mesh, weight.placements, src_data_rank=None).to_local()

    def _keep(self, number: int, scales: Tensor) -> None:
        kept, weight = self.get_buffer(f"scales_{number}"), self.leaves[number].weight
        if isinstance(weight, DTensor):
            shape = kept.shape
            scales = whole(
                DTensor.from_local(scales, weight.device_mesh, weight.placements, shape=shape, stride=kept.stride())
            )
        kept.copy_(scales)


class RoundedSteps(TrainerCallback):
    """Rounds around the passes of every step that transformers' Trainer takes."""

    def __init__(self, rounding: Rounding) -> None:
        self.rounding = rounding

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first pass of a step."""
        self.rounding.apply_(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last gradient: the step goes to the floats."""
        self.rounding.restore_()


def _grid(leaf: Stored) -> tuple[int, int]:
    """Bits of a code, and numbers that share a scale."""
    bits = leaf.stored.bits
    assert bits is not None
    return bits, min(leaf.stored.group, leaf.matrix_shape[1])


def _is_trained(leaf: Stored) -> bool:
    """Whether rounding a leaf's float costs something, and training could learn to live with it."""
    if not leaf.stored.is_integer or leaf.weight is None or leaf.weight.is_meta:
        return False
    return _grid(leaf)[0] < 8 and leaf.weight.requires_grad


def _local(weight: Any) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight  # type: ignore[no-any-return]
