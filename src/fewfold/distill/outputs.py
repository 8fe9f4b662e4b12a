"""Run teacher or student once and keep what the losses ask for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fewfold.distill.attention import Heads, recording
from fewfold.distill.masked import HIDDEN
from fewfold.pretrain.sparse import labelled_alone

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Needs:
    """What to keep of a forward pass.

    :param last: last hidden states.
    :param hidden: all hidden states.
    :param logits: the head's output.
    :param attention: numbers of attention layers, the first is 1.
    :param cross: layers whose attention to an encoder is kept.
    :param encoder: what to keep of an encoder–decoder's encoder, whose decoder the other fields are about; None for
        models of one stack.
    :param sparse: of a masked batch, logits of the hidden tokens alone, ``(1, hidden, vocab)``.
    """

    last: bool = False
    hidden: bool = False
    logits: bool = False
    attention: tuple[int, ...] = ()
    cross: tuple[int, ...] = ()
    encoder: Needs | None = None
    sparse: bool = False

    @property
    def nothing(self) -> bool:
        """Whether no loss asks for anything."""
        return self == Needs(sparse=self.sparse) or (
            self.encoder is not None and self.encoder.nothing and replace(self, encoder=None).nothing
        )


@dataclass(frozen=True)
class Outputs:
    """What one model gave for one batch.

    :param last: ``(batch, length, width)``.
    :param hidden: of every layer, the embeddings' output first.
    :param logits: ``(batch, classes)`` or ``(batch, length, vocab)``.
    :param spans: of heads that answer questions: logits of begin and end, ``(batch, 2, length)``.
    :param attention: by layer number.
    :param sentence: mean-pooled last hidden states ``(batch, width)``, where they were kept instead of ``last``.
    :param cross: attention to the encoder, by layer number of the decoder.
    :param encoder: what an encoder–decoder's encoder gave; the other fields are then about the decoder.
    """

    last: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()
    logits: Tensor | None = None
    attention: Mapping[int, Heads] = field(default_factory=dict)
    sentence: Tensor | None = None
    cross: Mapping[int, Heads] = field(default_factory=dict)
    encoder: Outputs | None = None
    spans: Tensor | None = None


def run(model: Any, batch: Mapping[str, Tensor], needs: Needs) -> Outputs:
    """Run ``model`` on a batch of token ids, if anything is asked of it."""
    if needs.nothing:
        return Outputs()
    if needs.encoder is not None:
        from fewfold.distill.seq2seq import run_both

        return run_both(model, batch, needs)
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    headed = model.base_model is not model
    states = needs.hidden or (needs.last and headed)
    if headed and not needs.logits:
        # the body alone: a head over the vocabulary can cost as much as the rest
        model = model.base_model
        states = needs.hidden
    options: dict[str, Any] = {"output_hidden_states": True} if states else {}
    if getattr(model.config, "use_cache", False):
        options["use_cache"] = False
    sparse = needs.sparse and needs.logits
    if sparse:
        options["labels"] = batch[HIDDEN]
    with recording(model, needs.attention) as heads, labelled_alone(model) if sparse else nullcontext():
        output = model(**inputs, **options, return_dict=True)
    hidden = tuple(output.hidden_states) if states else ()
    last = output["last_hidden_state"] if "last_hidden_state" in output else (hidden[-1] if hidden else None)
    spans = torch.stack([output["start_logits"], output["end_logits"]], 1) if "start_logits" in output else None
    return Outputs(last, hidden if needs.hidden else (), output.get("logits"), heads, spans=spans)
