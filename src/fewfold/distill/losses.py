"""The losses of distillation: pure functions of student and teacher tensors, teacher first detached by the caller.

All are means, so that weights mean the same for every batch. Masks are bool and True on real tokens; padding counts
nothing. ``reduction`` tells of what the mean is taken: ``tokens``, all real tokens of the batch alike, or ``examples``,
the texts of the batch after each text's own mean.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["tokens", "examples"]
IGNORED = -100  # targets that count for nothing
SAME = 0.999  # a cosine above which two texts are one


def masked_mean(values: Tensor, mask: Tensor, reduction: Reduction = "tokens") -> Tensor:
    """The mean of ``values`` where ``mask`` is True.

    :param values: ``(batch, …)``.
    :param mask: broadcastable to ``values``, bool.
    :return: a scalar; 0 where nothing is real.
    """
    mask = mask.expand_as(values)
    kept = values.masked_fill(~mask, 0.0)
    if reduction == "tokens":
        return kept.sum() / mask.sum().clamp_min(1)
    return (kept.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)).mean()


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor, reduction: Reduction = "tokens") -> Tensor:
    """Mean squared error of hidden states.

    :param student: ``(batch, length, width)``.
    :param teacher: the same shape.
    :param mask: ``(batch, length)``.
    """
    return masked_mean((student.float() - teacher.float()).square().mean(-1), mask, reduction)


def hidden_relative(student: Tensor, teacher: Tensor, mask: Tensor, reduction: Reduction = "tokens") -> Tensor:
    """Squared error over the teacher's squared norm, token by token: no layer counts more for being larger.

    Shapes as of :func:`hidden_mse`.
    """
    teacher = teacher.float()
    energy = teacher.square().sum(-1).clamp_min(1e-12)
    return masked_mean((student.float() - teacher).square().sum(-1) / energy, mask, reduction)


def logits_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "tokens",
) -> Tensor:
    """``T² · KL(softmax(teacher / T) ‖ softmax(student / T))`` (Hinton et al. 2015).

    The factor keeps gradients as large at every temperature.

    :param student: ``(batch, classes)``, or ``(batch, length, vocab)`` with a mask.
    :param teacher: the same shape.
    :param mask: ``(batch, length)``, or None where a text has one distribution.
    """
    log_student = F.log_softmax(student.float() / temperature, -1)
    log_teacher = F.log_softmax(teacher.float() / temperature, -1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1) * temperature**2
    return divergence.mean() if mask is None else masked_mean(divergence, mask, reduction)


def span_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """As :func:`logits_kl` over the tokens of a text, for where an answer begins and where it ends: the mean of both.

    :param student: ``(batch, 2, length)``.
    :param teacher: the same shape.
    :param mask: ``(batch, length)``; an answer is never in padding.
    """
    padding, never = ~mask[:, None], torch.finfo(torch.float32).min
    log_student = F.log_softmax((student.float() / temperature).masked_fill(padding, never), -1)
    log_teacher = F.log_softmax((teacher.float() / temperature).masked_fill(padding, never), -1)
    terms = log_teacher.exp() * (log_teacher - log_student)
    return terms.masked_fill(padding, 0.0).sum(-1).mean() * temperature**2


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "tokens",
) -> Tensor:
    """``−mean softmax(teacher / T) · log softmax(student / T)`` over texts and classes, no factor of T².

    The prediction loss of the published recipe. Shapes as of :func:`logits_kl`.
    """
    log_student = F.log_softmax(student.float() / temperature, -1)
    entropy = -(F.softmax(teacher.float() / temperature, -1) * log_student).mean(-1)
    return entropy.mean() if mask is None else masked_mean(entropy, mask, reduction)


def attention_scores_mse(
    student: Tensor, teacher: Tensor, allowed: Tensor, reduction: Reduction = "tokens", count_masked: bool = False
) -> Tensor:
    """Mean squared error of scaled scores before the softmax; pairs that are masked out differ by nothing.

    :param student: ``(batch, heads, queries, keys)``.
    :param teacher: the same shape.
    :param allowed: ``(batch, 1, queries, keys)``: the query is a real token and may see the key.
    :param count_masked: masked pairs still count in the mean, as zeros.
    """
    squared = (student.float() - teacher.float()).square()
    if count_masked:
        return squared.masked_fill(~allowed, 0.0).mean()
    return masked_mean(squared, allowed, reduction)


def attention_kl(student: Tensor, teacher: Tensor, allowed: Tensor, reduction: Reduction = "tokens") -> Tensor:
    """``KL(softmax(teacher) ‖ softmax(student))`` of attention over the keys, mean over heads and real queries.

    Shapes as of :func:`attention_scores_mse`.
    """
    hidden = torch.finfo(torch.float32).min
    log_student = F.log_softmax(student.float().masked_fill(~allowed, hidden), -1)
    log_teacher = F.log_softmax(teacher.float().masked_fill(~allowed, hidden), -1)
    terms = log_teacher.exp() * (log_teacher - log_student)
    return masked_mean(terms.masked_fill(~allowed, 0.0).sum(-1), allowed.any(-1), reduction)


def mean_pooled(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: ``(batch, length, width)`` to ``(batch, width)``."""
    weights = mask[..., None].float()
    return (hidden_states.float() * weights).sum(1) / weights.sum(1).clamp_min(1)


def sentence_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 − cosine`` of sentence vectors ``(batch, width)``, mean over the batch."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def anchor_kl(student: Tensor, teacher: Tensor, anchors: Tensor, temperature: float = 0.1) -> Tensor:
    """``KL(softmax(cos(teacher, anchors) / T) ‖ softmax(cos(student, anchors) / T))``, mean over the batch.

    The loss of SEED (Fang et al., ICLR 2021), with anchors that stand still in place of its queue.
    An anchor that is the text itself counts for nothing.

    :param student: vectors of texts, ``(batch, width)``.
    :param teacher: the same shape.
    :param anchors: unit vectors, ``(anchors, width)``.
    """
    with torch.autocast(student.device.type, enabled=False):
        known = F.normalize(teacher.float(), dim=-1) @ anchors.T
        own = F.normalize(student.float(), dim=-1) @ anchors.T
    itself, never = known > SAME, torch.finfo(torch.float32).min
    log_student = F.log_softmax((own / temperature).masked_fill(itself, never), -1)
    log_teacher = F.log_softmax((known / temperature).masked_fill(itself, never), -1)
    terms = log_teacher.exp() * (log_teacher - log_student)
    return terms.masked_fill(itself, 0.0).sum(-1).mean()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with class numbers ``(batch,)``, or squared error with scores where there is one logit.

    :param logits: ``(batch, classes)``.
    """
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.float().squeeze(-1), labels.float())
    return F.cross_entropy(logits.float(), labels.long())


def target_loss(logits: Tensor, targets: Tensor, mask: Tensor, reduction: Reduction = "tokens") -> Tensor:
    """Cross-entropy with the tokens of a target text.

    :param logits: ``(batch, length, vocab)``.
    :param targets: the token that each place foretells, ``(batch, length)``.
    :param mask: ``(batch, length)``.
    """
    entropy = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return masked_mean(entropy, mask, reduction)
