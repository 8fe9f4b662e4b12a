"""Local recovery: each compressed linear in turn learns to give the dense layer's outputs, before any distillation.

The squared error of a layer's outputs depends on its inputs through their second moments alone, so texts are run once,
block by block, and every fit is a small quadratic problem in float64, whatever the stored tensors are.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.assembled import AssembledLinear
from fewfold.calibration.inputs import calibration_batches
from fewfold.calibration.statistics import Drift
from fewfold.calibration.streams import CannotStream, Streams, find_stacks
from fewfold.checkpoint.config import structure_of
from fewfold.distill.config import DistillConfig
from fewfold.errors import DistillError, FewfoldWarning
from fewfold.fitting import round_leaves
from fewfold.measure.modes import evaluating
from fewfold.progress import track
from fewfold.surgery.targets import Target, find_targets, read_bias, read_weight
from fewfold.training.processes import process_count

TEXTS = 4096  # of a run's texts are drawn
FEW_TEXTS = 2  # of a rehearsal
RIDGE = 0.01  # pull towards the dense weight, as a share of the mean input energy


@dataclass(frozen=True)
class Local:
    """The local recovery that a phase begins with, if it asks for one."""

    config: DistillConfig
    texts: Sequence[str]
    tokenizer: Any

    def check(self, student: Any) -> None:
        """Whether there is something to fit.

        :raises DistillError: if the student is not compressed.
        """
        if self.config.local_steps and structure_of(student) is None:
            raise DistillError("the student is not compressed: local recovery fits compressed linears")

    def rehearse(self, model: Any, replaced: Collection[str] | None = None) -> None:
        """Run a dense model block by block on a few texts, as a recovery of it will.

        :param replaced: modules that will be compressed (None: all linears may be).
        :raises DistillError: as of :meth:`recover`.
        """
        if not self.config.local_steps:
            return
        _in_one_process()
        texts = list(islice((text for text in self.texts if text.strip()), FEW_TEXTS))
        batches = calibration_batches(texts, self.tokenizer, model, max_length=self.config.max_length)
        linears = [target for target in find_targets(model) if target.kind == "linear"]
        linears = [target for target in linears if replaced is None or target.module in replaced]
        try:
            with evaluating(model):
                for number, blocks in enumerate(find_stacks(model, linears)):
                    deque(Streams(model, model, blocks, linears, batches, first=number == 0).stages(), maxlen=0)
        except CannotStream as reason:
            raise _not_by_layers(model, reason) from None

    def recover(self, teacher: Any, student: Any, left: float | None = None) -> dict[str, float]:
        """Fit the student's layers; by layer, what was won.

        :param left: seconds of the phase: fits take half of them at most, and a warning tells of layers left.
        :raises DistillError: as of :func:`local_recover`, and in several processes.
        """
        if not self.config.local_steps:
            return {}
        _in_one_process()
        count = min(TEXTS, len(self.texts))
        texts = Random(self.config.seed).sample(self.texts, count) if count < len(self.texts) else self.texts
        gains = local_recover(
            teacher, student, texts, self.tokenizer, steps=self.config.local_steps,
            max_length=self.config.max_length, seed=self.config.seed, seconds=None if left is None else left / 2,
        )  # fmt: skip
        return {gain.target: gain.gain for gain in gains}


@dataclass(frozen=True)
class LocalGain:
    """How much nearer one layer came to the dense one.

    :param target: the layer's name.
    :param gain: fall of the squared error of its outputs on its present inputs, over the outputs' energy; 0 where
        it was left as it was.
    """

    target: str
    gain: float


def local_recover(
    teacher: Any,
    student: Any,
    texts: Iterable[str],
    tokenizer: Any,
    *,
    steps: int = 20,
    max_tokens: int = 24576,
    max_length: int = 128,
    seed: int = 0,
    seconds: float | None = None,
) -> list[LocalGain]:
    """Fit every compressed linear of ``student`` to the dense layer's outputs, in the model's order, in place.

    Each reads what the part before it, fitted already, gives. A step of L-BFGS moves a target's own stored tensors and
    its bias; tensors that several targets share stay, and integer-kept ones are rounded afterwards. A target that
    would lose by it is left as it was.

    :param texts: like those the model will see.
    :param steps: L-BFGS iterations a target.
    :param max_tokens: read about this many tokens of the texts.
    :param seconds: after so many no further layer is fitted, with a warning; None for no limit.
    :return: the gains, in order.
    :raises DistillError: if the models cannot be compared block by block, or nothing in them was compressed.
    """
    if structure_of(student) is None:
        raise DistillError("the student is not compressed: local recovery fits compressed linears")
    begun = time.perf_counter()
    replaced = {name for name, module in student.named_modules() if isinstance(module, AssembledLinear)}
    targets = {target.module: target for target in find_targets(teacher) if target.module in replaced}
    batches = calibration_batches(list(texts), tokenizer, teacher, 64, max_length, max_tokens, True, seed)
    gains: list[LocalGain] = []
    try:
        with evaluating(teacher, student):
            for number, blocks in enumerate(find_stacks(teacher, list(targets.values()))):
                streams = Streams(teacher, student, blocks, list(targets.values()), batches, first=number == 0)
                for drifts in track(streams.stages(), "recovering layer by layer"):
                    if seconds is not None and time.perf_counter() - begun > seconds:
                        warnings.warn(
                            f"local recovery was given {seconds:.0f} s, and {len(targets) - len(gains)} of "
                            f"{len(targets)} linears were not reached: give more minutes, or fewer local_steps",
                            FewfoldWarning,
                            stacklevel=2,
                        )
                        return gains
                    for name, drift in drifts.items():
                        module = student.get_submodule(name)
                        gain = _fit(Outputs.of(teacher, targets[name], drift), module, steps) if drift.count else 0.0
                        gains.append(LocalGain(name, gain))
    except CannotStream as reason:
        raise _not_by_layers(student, reason) from None
    return gains


def _in_one_process() -> None:
    if process_count() > 1:
        raise DistillError("local_steps fits layers in one process: run that alone first, or leave it 0")


def _not_by_layers(model: Any, reason: CannotStream) -> DistillError:
    return DistillError(
        f"{type(model).__name__} cannot be recovered layer by layer: {reason}. Leave local_steps (--local) 0"
    )


@dataclass(frozen=True)
class Outputs:
    """What a layer should give, as moments in float64.

    :param moment: ``E[x' x'ᵀ]`` of its present inputs, ``(in, in)``.
    :param wanted: ``E[y x'ᵀ]`` with the dense outputs without their bias, ``(out, in)``.
    :param mean: ``E[x']``.
    :param dense_mean: ``E[y]``, bias included.
    :param bias: the dense bias, or 0.
    """

    moment: Tensor
    wanted: Tensor
    mean: Tensor
    dense_mean: Tensor
    bias: Tensor
    energy: float

    @classmethod
    def of(cls, teacher: nn.Module, target: Target, drift: Drift) -> Outputs:
        """The moments of one dense layer."""
        weight = read_weight(teacher, target).detach().double().cpu()
        bias = read_bias(teacher, target)
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().double().cpu()
        moment, cross = drift.product / drift.count, drift.cross / drift.count
        pull = RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
        moment, cross = moment + pull, cross + pull
        energy = float(((weight @ moment) * weight).sum().clamp_min(1e-30))
        dense_mean = weight @ (drift.dense_total / drift.count) + bias
        return cls(moment, weight @ cross, drift.total / drift.count, dense_mean, bias, energy)

    def error(self, module: AssembledLinear) -> Tensor:
        """``E‖y − (Ŵ x' + b̂)‖²`` over the energy, without what no ``Ŵ`` and ``b̂`` can change."""
        weight = module.assembled_weight().double().cpu()
        given = weight @ self.mean
        total = ((weight @ self.moment - 2 * self.wanted) * weight).sum() - 2 * given @ self.bias
        if module.bias is not None:
            bias = module.bias.double().cpu()
            total = total + bias @ (bias - 2 * self.dense_mean + 2 * given)
        return total / self.energy


def _fit(outputs: Outputs, module: nn.Module, steps: int) -> float:
    """Move what the module owns towards the outputs; the gain."""
    assert isinstance(module, AssembledLinear)
    own = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not own:
        return 0.0
    kept = [parameter.detach().clone() for parameter in own]
    optimizer = torch.optim.LBFGS(own, max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = outputs.error(module)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.no_grad():
        before = float(outputs.error(module))
    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    optimizer.zero_grad()
    with torch.no_grad():
        round_leaves(module)
        after = float(outputs.error(module))
        if after < before:
            return before - after
        for parameter, old in zip(own, kept, strict=True):
            parameter.copy_(old)
    return 0.0
