"""The weighted sum of losses that a config asks for, between one teacher and one student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewfold.distill import losses
from fewfold.distill.anchors import anchor_vectors
from fewfold.distill.config import AttentionTerm, DistillConfig, HiddenTerm
from fewfold.distill.masked import HIDDEN
from fewfold.distill.outputs import Needs, Outputs
from fewfold.distill.stacks import Pairs, Stack, chosen, stacks_of, width_of
from fewfold.distill.tokens import TokenisedTexts
from fewfold.errors import DistillError

Counts = dict[str, float]


class Objective(nn.Module):
    """Losses by name; owns the learned projections where widths differ, and the anchors once it is prepared.

    :param config: what to learn.
    :param student: its config tells layers and width.
    :param teacher: as ``student``.
    :raises DistillError: if a layer does not exist, or widths differ and nothing maps them.
    """

    anchors: Tensor | None

    def __init__(self, config: DistillConfig, student: Any, teacher: Any) -> None:
        super().__init__()
        self.config = config
        self.sparse = False  # of masked batches: both models score the hidden tokens alone
        self.stacks = stacks_of(student, teacher)
        self.main = self.stacks[-1]  # its states are what the head reads
        self.hidden: list[tuple[HiddenTerm, Stack, Pairs]] = [
            (term, stack, stack.pairs(term.layers, first=0))
            for term in config.hidden for stack in chosen(self.stacks, term.stack)
        ]  # fmt: skip
        self.attention: list[tuple[AttentionTerm, Stack, Pairs]] = [
            (term, stack, stack.pairs(term.layers, first=1))
            for term in config.attention for stack in chosen(self.stacks, term.stack)
        ]  # fmt: skip
        widths = width_of(student), width_of(teacher)
        self.register_buffer("anchors", None, persistent=False)
        self.projections = nn.ModuleDict()
        if widths[0] != widths[1] and (config.hidden or config.of_vectors):
            if not config.projection:
                raise DistillError(
                    f"the student's hidden size is {widths[0]} and the teacher's {widths[1]}: set projection=True to "
                    "learn a map between them, or learn from logits or attention alone"
                )
            states = {(stack.name, own) for _, stack, pairs in self.hidden for own, _ in pairs}
            states |= {(self.stacks[0].name, self.stacks[0].depths[0])} if config.of_vectors else set()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.projections.update({_key(name, layer): nn.Linear(*widths) for name, layer in sorted(states)})

    def prepare(self, teacher: Any, tokens: TokenisedTexts) -> None:
        """Find out what the losses need to know of the texts before training: the anchors' vectors."""
        if self.config.anchors is not None:
            self.anchors = anchor_vectors(teacher, self.stacks[0], tokens, self.config.anchors.count)

    def needs(self, side: int) -> Needs:
        """What the losses ask of the student (0) or the teacher (1)."""
        config, parts = self.config, [self._needs(stack, side) for stack in self.stacks]
        logits = config.logits is not None or (side == 0 and config.labels is not None)
        cross = {pair[side] for term, _, pairs in self.attention if term.stack == "cross" for pair in pairs}
        encoder = parts[0] if len(parts) > 1 else None
        return replace(parts[-1], logits=logits, cross=tuple(sorted(cross)), encoder=encoder, sparse=self.sparse)

    def _needs(self, stack: Stack, side: int) -> Needs:
        layers = {pair[side] for _, own, pairs in self.hidden if own is stack for pair in pairs}
        last = bool(layers) or (self.config.of_vectors and stack is self.stacks[0])
        terms = [(term, pairs) for term, own, pairs in self.attention if own is stack and term.stack != "cross"]
        attention = tuple(sorted({pair[side] for _, pairs in terms for pair in pairs}))
        return Needs(last, bool(layers - {stack.depths[side]}), attention=attention)

    def counts(self, batch: Mapping[str, Tensor]) -> Counts:
        """How much each kind of mean is taken over in this batch, for weighing parts of a batch against each other."""
        found = {"examples": float(len(batch["input_ids"]))}
        sizes = []
        for stack in self.stacks:
            lengths = self._mask(batch, stack).sum(1).double()
            pairs = lengths * (lengths + 1) / 2 if stack.causal else lengths * lengths
            found |= {stack.kind("tokens"): float(lengths.sum()), stack.kind("pairs"): float(pairs.sum())}
            found[stack.kind("unpadded")] = float(stack.mask(batch).sum())  # of losses that never count padding
            sizes.append(lengths)
        if len(sizes) == 2:
            found["cross_pairs"] = float((sizes[0] * sizes[1]).sum())
        if HIDDEN in batch:
            found["masked"] = float((batch[HIDDEN] != losses.IGNORED).sum())
        return found

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor], shares: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """The weighted losses of one part of a batch, by name.

        :param shares: by kind of mean, this part's share in the whole batch (times the number of parts that are
            averaged later); 1 where the part is the whole.
        """
        config = self.config
        found: dict[str, Tensor] = {}

        def add(name: str, weight: float, kind: str, value: Tensor) -> None:
            kind = "examples" if config.reduction == "examples" else kind
            value = value * (weight * shares.get(kind, 1.0))
            found[name] = found[name] + value if name in found else value

        for term, stack, pairs in self.hidden:
            loss = losses.hidden_mse if term.kind == "mse" else losses.hidden_relative
            label = stack.called(f"hidden_{term.layers}" if isinstance(term.layers, str) else "hidden")
            mask = self._mask(batch, stack)
            for own, other in pairs:
                value = loss(self._own(student, stack, own), stack.state(teacher, other, 1), mask, config.reduction)
                add(label, term.weight / len(pairs), stack.kind("tokens"), value)
        for head_term, stack, pairs in self.attention:
            label = "attention_cross" if head_term.stack == "cross" else stack.called("attention")
            for own, other in pairs:
                value, kind = self._heads(head_term, stack, student, teacher, own, other, batch)
                add(f"{label}_{head_term.kind}", head_term.weight / len(pairs), kind, value)
        if config.of_vectors:
            own_vectors, vectors = self._vectors(student, teacher, batch)
            if config.sentence is not None:
                add("sentence", config.sentence.weight, "examples", losses.sentence_cosine(own_vectors, vectors))
            if config.anchors is not None:
                assert self.anchors is not None, "prepare() was not called"
                value = losses.anchor_kl(own_vectors, vectors, self.anchors, config.anchors.temperature)
                add("anchors", config.anchors.weight, "examples", value)
        if config.logits is not None:
            value, kind = self._of_heads(student, teacher, batch)
            add("logits", config.logits.weight, kind, value)
        if config.labels is not None:
            value, kind = self._labels(_given(student, "student"), batch)
            add("labels", config.labels.weight, kind, value)
        return found

    def _mask(self, batch: Mapping[str, Tensor], stack: Stack) -> Tensor:
        mask = stack.mask(batch)
        return torch.ones_like(mask) if self.config.count_padding else mask

    def _own(self, student: Outputs, stack: Stack, layer: int) -> Tensor:
        state, key = stack.state(student, layer, 0), _key(stack.name, layer)
        return self.projections[key](state) if key in self.projections else state

    def _vectors(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of whole texts: the student's, as wide as the teacher's, and the teacher's."""
        first = self.stacks[0]
        mask, wanted = self._mask(batch, first), teacher.sentence
        own = losses.mean_pooled(self._own(student, first, first.depths[0]), mask)
        if wanted is None:
            wanted = losses.mean_pooled(first.state(teacher, first.depths[1], 1), mask)
        return own, wanted

    def _of_heads(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> tuple[Tensor, str]:
        if student.spans is None or teacher.spans is None:
            return self._logits(_given(student, "student"), _given(teacher, "teacher"), batch)
        term = self.config.logits
        assert term is not None
        if term.kind != "kl":
            raise DistillError(f"logits of kind={term.kind!r} are of classes; of answers' places take kind='kl'")
        mask = self.main.mask(batch)
        return losses.span_kl(student.spans, teacher.spans, mask, term.temperature), "examples"

    def _logits(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, str]:
        term, reduction = self.config.logits, self.config.reduction
        assert term is not None
        if student.shape != teacher.shape:
            raise DistillError(f"logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ")
        loss = losses.logits_kl if term.kind == "kl" else losses.soft_cross_entropy
        if HIDDEN in batch:
            own, wanted = (self._hidden(logits, batch[HIDDEN]) for logits in (student, teacher))
            return loss(own, wanted, term.temperature) if len(own) else own.float().sum(), "masked"
        if student.shape[1:] == (1,):  # one score: a softmax over it says nothing
            return losses.label_loss(student, teacher[:, 0]), "examples"
        if student.dim() == 2:
            return loss(student, teacher, term.temperature), "examples"
        mask = self._mask(batch, self.main)
        return loss(student, teacher, term.temperature, mask, reduction), self.main.kind("tokens")

    def _labels(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, str]:
        """Classes or scores of texts, the tokens of targets, or those that masks hide."""
        if HIDDEN in batch:
            hidden = batch[HIDDEN]
            own, wanted = self._hidden(logits, hidden), hidden[hidden != losses.IGNORED]
            return losses.label_loss(own, wanted) if len(own) else own.float().sum(), "masked"
        if "targets" not in batch:
            return losses.label_loss(logits, batch["labels"]), "examples"
        value = losses.target_loss(logits, batch["targets"], self.main.mask(batch), self.config.reduction)
        return value, self.main.kind("unpadded")

    def _hidden(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """Logits of the hidden tokens, ``(hidden, vocab)``; where none is hidden, models score all of them."""
        places = hidden != losses.IGNORED
        return logits.flatten(0, 1) if self.sparse and places.any() else logits[places]

    def _heads(
        self,
        term: AttentionTerm,
        stack: Stack,
        student: Outputs,
        teacher: Outputs,
        own: int,
        other: int,
        batch: Mapping[str, Tensor],
    ) -> tuple[Tensor, str]:
        crosses, reduction = term.stack == "cross", self.config.reduction
        name = "cross" if crosses else "attention"
        ours, theirs = getattr(stack.of(student), name)[own], getattr(stack.of(teacher), name)[other]
        keys = batch["attention_mask"].bool() if crosses else stack.mask(batch)
        allowed = keys[:, None, None, :] & stack.mask(batch)[:, None, :, None] if crosses else stack.allowed(batch)
        of_values = term.kind == "values"
        scores = (ours.value_relations(), theirs.value_relations()) if of_values else (ours.scores(), theirs.scores())
        if scores[0].shape != scores[1].shape:
            raise DistillError(
                f"student and teacher have {scores[0].shape[1]} and {scores[1].shape[1]} heads: leave the attention "
                "loss out, or distil between models with as many heads"
            )
        if term.kind != "scores":
            return losses.attention_kl(*scores, allowed, reduction), stack.kind("unpadded")
        if self.config.count_padding:  # padded queries see real keys in the published code
            allowed = (allowed | keys[:, None, None, :]) if crosses or not stack.causal else allowed
        value = losses.attention_scores_mse(*scores, allowed, reduction, self.config.count_padding)
        return value, "cross_pairs" if crosses else stack.kind("pairs")


def _key(stack: str, layer: int) -> str:
    """A projection's name."""
    return f"{stack}_{layer}" if stack else str(layer)


def _given(outputs: Outputs, who: str) -> Tensor:
    """The logits of classes or tokens."""
    if outputs.spans is not None:
        raise DistillError(f"the {who} answers questions: its logits learn from such a teacher's alone, without labels")
    if outputs.logits is None:
        raise DistillError(
            f"the {who} has no logits: load both models with their heads, or leave logits and labels out"
        )
    return outputs.logits
