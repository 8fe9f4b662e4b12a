"""The stacks of layers that a pair of models compares: one, or an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewfold.distill.config import Layers
from fewfold.distill.outputs import Outputs
from fewfold.errors import DistillError

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Stack:
    """One stack of the student beside the teacher's.

    :param name: ``encoder`` or ``decoder``, empty where a model has one stack.
    :param depths: the student's and the teacher's number of layers.
    :param causal: tokens see only those before them.
    """

    name: str
    depths: tuple[int, int]
    causal: bool

    def mask(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Where its tokens are real, ``(batch, length)``, bool."""
        return batch["decoder_attention_mask" if self.name == "decoder" else "attention_mask"].bool()

    def allowed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Which keys a real query may see, ``(batch, 1, queries, keys)``."""
        keys = self.mask(batch)
        allowed = keys[:, None, None, :] & keys[:, None, :, None]
        if self.causal:
            allowed = allowed & torch.ones(keys.shape[1], keys.shape[1], device=keys.device).tril().bool()
        return allowed

    def of(self, outputs: Outputs) -> Outputs:
        """The part of a model's outputs that is about this stack."""
        if self.name != "encoder":
            return outputs
        assert outputs.encoder is not None
        return outputs.encoder

    def kind(self, what: str) -> str:
        """What a mean is taken over, ``tokens`` or ``pairs``: of each stack apart."""
        return f"{self.name}_{what}" if self.name else what

    def called(self, loss: str) -> str:
        """A loss's name."""
        return f"{loss}_{self.name}" if self.name else loss

    def pairs(self, layers: Layers, first: int) -> Pairs:
        """As :func:`layer_pairs`.

        :raises DistillError: if a layer does not exist.
        """
        try:
            return layer_pairs(layers, *self.depths, first=first)
        except DistillError as error:
            if not self.name:
                raise
            raise DistillError(f"{self.name}: {error}; give a term for each stack (stack={self.name!r})") from None

    def state(self, outputs: Outputs, layer: int, side: int) -> Tensor:
        """Hidden states of a layer of the student (0) or the teacher (1).

        :raises DistillError: if they were not kept.
        """
        own = self.of(outputs)
        if layer == self.depths[side] and own.last is not None:
            return own.last
        if not own.hidden:
            raise DistillError(f"hidden states of layer {layer} are not kept in the cache of the teacher's outputs")
        return own.hidden[layer]


def stacks_of(student: Any, teacher: Any) -> list[Stack]:
    """The stacks of a pair, the one whose states the head reads last."""
    if not is_seq2seq(student):
        return [Stack("", (depth_of(student), depth_of(teacher)), is_causal(student))]
    return [
        Stack(name, (depth_of(student, name), depth_of(teacher, name)), name == "decoder")
        for name in ("encoder", "decoder")
    ]


def chosen(stacks: list[Stack], name: str) -> list[Stack]:
    """The stacks that a term is about.

    :raises DistillError: if it names one that there is not.
    """
    if name == "both":
        return stacks
    found = [stack for stack in stacks if stack.name == ("decoder" if name == "cross" else name)]
    if not found:
        raise DistillError(f"stack={name!r} is for encoder–decoders, and these models have one stack: leave it out")
    return found


def layer_pairs(layers: Layers, student: int, teacher: int, first: int) -> Pairs:
    """Which student layer learns from which teacher layer; where depths differ, at the same relative depth.

    :param student: the student's number of layers.
    :param teacher: the teacher's.
    :param first: 0 where the embeddings' output counts, else 1.
    :raises DistillError: if a layer does not exist.
    """
    if layers == "last":
        return [(student, teacher)]
    own = range(first, student + 1) if layers == "all" else layers
    pairs = [item if isinstance(item, tuple) else (item, round(item * teacher / student)) for item in own]
    for mine, other in pairs:  # type: ignore[misc]
        if not first <= mine <= student or not first <= other <= teacher:
            raise DistillError(
                f"layers {mine} ← {other}: student and teacher have layers {first}…{student}, …{teacher}"
            )
    return pairs  # type: ignore[return-value]


def is_seq2seq(model: Any) -> bool:
    """Whether a model is an encoder–decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def depth_of(model: Any, stack: str = "") -> int:
    """A transformer's number of layers.

    :param stack: ``encoder`` or ``decoder`` of an encoder–decoder.
    """
    config = model.config.get_text_config()
    named = (f"{stack}_layers", f"num_{stack}_layers") if stack else ()
    found = (getattr(config, name, None) for name in (*named, "num_hidden_layers"))
    return int(next(depth for depth in found if depth is not None))


def width_of(model: Any) -> int:
    """A transformer's hidden size."""
    return int(model.config.get_text_config().hidden_size)


def is_causal(model: Any) -> bool:
    """Whether tokens see only those before them."""
    from fewfold.compress import is_causal as continues_text

    return continues_text(model)
