"""The weighted sum of losses that a config asks for, between one teacher and one student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.distill import losses
from fewfold.distill.config import AttentionTerm, DistillConfig, HiddenTerm, Layers
from fewfold.distill.masked import TARGETS
from fewfold.distill.outputs import Needs, Outputs
from fewfold.errors import DistillError

Counts = dict[str, float]


class Objective(nn.Module):
    """Losses by name; owns the learned projections where widths differ.

    :param config: what to learn.
    :param student: its config tells layers and width.
    :param teacher: as ``student``.
    :raises DistillError: if a layer does not exist, or widths differ and nothing maps them.
    """

    def __init__(self, config: DistillConfig, student: Any, teacher: Any) -> None:
        super().__init__()
        self.config = config
        self.sparse = False  # of masked batches: both models score the hidden tokens alone
        self.depths = depth_of(student), depth_of(teacher)
        self.causal = is_causal(student)
        pairs = [layer_pairs(term.layers, *self.depths, first=0) for term in config.hidden]
        heads = [layer_pairs(term.layers, *self.depths, first=1) for term in config.attention]
        self.hidden: list[tuple[HiddenTerm, list[tuple[int, int]]]] = list(zip(config.hidden, pairs, strict=True))
        self.attention: list[tuple[AttentionTerm, list[tuple[int, int]]]] = list(
            zip(config.attention, heads, strict=True)
        )
        widths = width_of(student), width_of(teacher)
        self.projections = nn.ModuleDict()
        if widths[0] != widths[1] and (config.hidden or config.sentence):
            if not config.projection:
                raise DistillError(
                    f"the student's hidden size is {widths[0]} and the teacher's {widths[1]}: set projection=True to "
                    "learn a map between them, or learn from logits or attention alone"
                )
            names = {str(own) for term_pairs in pairs for own, _ in term_pairs}
            names |= {str(self.depths[0])} if config.sentence else set()
            self.projections.update({name: nn.Linear(*widths) for name in sorted(names, key=int)})

    def needs(self, side: int) -> Needs:
        """What the losses ask of the student (0) or the teacher (1)."""
        layers = {pair[side] for _, pairs in self.hidden for pair in pairs}
        last = self.config.sentence is not None or bool(layers)
        attention = tuple(sorted({pair[side] for _, pairs in self.attention for pair in pairs}))
        logits = self.config.logits is not None or (side == 0 and self.config.labels is not None)
        return Needs(last, bool(layers - {self.depths[side]}), logits, attention, self.sparse)

    def counts(self, batch: Mapping[str, Tensor]) -> Counts:
        """How much each kind of mean is taken over in this batch, for weighing parts of a batch against each other."""
        mask = self._mask(batch)
        lengths = mask.sum(1).double()
        pairs = lengths * (lengths + 1) / 2 if self.causal else lengths * lengths
        counts = {"tokens": float(lengths.sum()), "pairs": float(pairs.sum()), "examples": float(mask.shape[0])}
        if TARGETS in batch:
            counts["masked"] = float((batch[TARGETS] != losses.IGNORED).sum())
        return counts

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor], shares: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """The weighted losses of one part of a batch, by name.

        :param shares: by kind of mean, this part's share in the whole batch (times the number of parts that are
            averaged later); 1 where the part is the whole.
        """
        config, mask = self.config, self._mask(batch)
        found: dict[str, Tensor] = {}

        def add(name: str, weight: float, kind: str, value: Tensor) -> None:
            kind = "examples" if config.reduction == "examples" else kind
            value = value * (weight * shares.get(kind, 1.0))
            found[name] = found[name] + value if name in found else value

        for term, pairs in self.hidden:
            loss = losses.hidden_mse if term.kind == "mse" else losses.hidden_relative
            label = f"hidden_{term.layers}" if isinstance(term.layers, str) else "hidden"
            for own, other in pairs:
                value = loss(self._own(student, own), _state(teacher, other, 1, self.depths), mask, config.reduction)
                add(label, term.weight / len(pairs), "tokens", value)
        for head_term, pairs in self.attention:
            for own, other in pairs:
                value, kind = self._heads(head_term, student, teacher, own, other, batch)
                add(f"attention_{head_term.kind}", head_term.weight / len(pairs), kind, value)
        if config.sentence is not None:
            vectors = losses.mean_pooled(self._own(student, self.depths[0]), mask)
            wanted = teacher.sentence
            if wanted is None:
                wanted = losses.mean_pooled(_state(teacher, self.depths[1], 1, self.depths), mask)
            add("sentence", config.sentence.weight, "examples", losses.sentence_cosine(vectors, wanted))
        if config.logits is not None:
            logits = _given(student.logits, "student"), _given(teacher.logits, "teacher")
            value, kind = self._logits(*logits, mask, batch.get(TARGETS))
            add("logits", config.logits.weight, kind, value)
        if config.labels is not None:
            logits_of_student, targets = _given(student.logits, "student"), batch.get(TARGETS)
            if targets is not None:
                value = losses.label_loss(self._hidden(logits_of_student, targets), targets[targets != losses.IGNORED])
            else:
                value = losses.label_loss(logits_of_student, batch["labels"])
            add("labels", config.labels.weight, "examples" if targets is None else "masked", value)
        return found

    def _mask(self, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"].bool()
        return torch.ones_like(mask) if self.config.count_padding else mask

    def _own(self, student: Outputs, layer: int) -> Tensor:
        state = _state(student, layer, 0, self.depths)
        return self.projections[str(layer)](state) if str(layer) in self.projections else state

    def _logits(self, student: Tensor, teacher: Tensor, mask: Tensor, targets: Tensor | None) -> tuple[Tensor, str]:
        term = self.config.logits
        assert term is not None
        if student.shape != teacher.shape:
            raise DistillError(f"logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ")
        if targets is not None:
            student, teacher = self._hidden(student, targets), self._hidden(teacher, targets)
            loss = losses.soft_cross_entropy if term.kind == "soft_cross_entropy" else losses.logits_kl
            return loss(student, teacher, term.temperature), "masked"
        if term.kind == "soft_cross_entropy":
            return losses.soft_cross_entropy(student, teacher, term.temperature), "examples"
        if student.dim() == 2:
            return losses.logits_kl(student, teacher, term.temperature), "examples"
        return losses.logits_kl(student, teacher, term.temperature, mask, self.config.reduction), "tokens"

    def _hidden(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits of the hidden tokens, ``(hidden, vocab)``."""
        return logits.flatten(0, 1) if self.sparse else logits[targets != losses.IGNORED]

    def _heads(
        self, term: AttentionTerm, student: Outputs, teacher: Outputs, own: int, other: int, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, str]:
        ours, theirs = student.attention[own], teacher.attention[other]
        keys = batch["attention_mask"].bool()
        allowed = keys[:, None, None, :] & keys[:, None, :, None]
        if self.causal:
            allowed = allowed & torch.ones(keys.shape[1], keys.shape[1], device=keys.device).tril().bool()
        if term.kind == "values":
            values = ours.value_relations(), theirs.value_relations()
            return losses.attention_kl(*values, allowed, self.config.reduction), "tokens"
        scores = ours.scores(), theirs.scores()
        if scores[0].shape != scores[1].shape:
            raise DistillError(f"student and teacher have {scores[0].shape[1]} and {scores[1].shape[1]} heads")
        if term.kind == "probabilities":
            return losses.attention_kl(*scores, allowed, self.config.reduction), "tokens"
        if self.config.count_padding:  # padded queries see real keys in the published code
            allowed = (allowed | keys[:, None, None, :]) if not self.causal else allowed
        value = losses.attention_scores_mse(*scores, allowed, self.config.reduction, self.config.count_padding)
        return value, "pairs"


def _state(outputs: Outputs, layer: int, side: int, depths: tuple[int, int]) -> Tensor:
    if layer == depths[side] and outputs.last is not None:
        return outputs.last
    if not outputs.hidden:
        raise DistillError(f"hidden states of layer {layer} are not kept in the cache of the teacher's outputs")
    return outputs.hidden[layer]


def _given(logits: Tensor | None, who: str) -> Tensor:
    if logits is None:
        raise DistillError(
            f"the {who} has no logits: load both models with their heads, or leave logits and labels out"
        )
    return logits


def layer_pairs(layers: Layers, student: int, teacher: int, first: int) -> list[tuple[int, int]]:
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


def depth_of(model: Any) -> int:
    """A transformer's number of layers."""
    return int(model.config.get_text_config().num_hidden_layers)


def width_of(model: Any) -> int:
    """A transformer's hidden size."""
    return int(model.config.get_text_config().hidden_size)


def is_causal(model: Any) -> bool:
    """Whether tokens see only those before them."""
    from fewfold.compress import is_causal as continues_text

    return continues_text(model)
