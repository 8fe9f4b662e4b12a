"""Losses that look at few words of a large vocabulary: sampled softmax and noise-contrastive estimation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Noise:
    """Where noise words come from: log-uniform over ids that fall in frequency, or after counts.

    Words are drawn with replacement, by torch's global generator as dropout is.

    :param words: of the vocabulary.
    :param counts: ``(words,)`` how often each word occurs, or None for ``P(w) = log((w + 2) / (w + 1)) / log(V + 1)``.
        One is added to every count, so that no word is impossible.
    """

    words: int
    counts: Tensor | None = None

    def draw(self, count: int, device: torch.device) -> Tensor:
        """``(count,)`` ids."""
        uniform = torch.rand(count, dtype=torch.float64, device=device)
        if self.counts is None:
            drawn = (uniform * math.log(self.words + 1)).exp().long() - 1
        else:
            sums = (self.counts.double() + 1.0).cumsum(0)
            drawn = torch.searchsorted(sums, uniform * sums[-1], right=True)
        return drawn.clamp(0, self.words - 1)

    def log_probability(self, ids: Tensor) -> Tensor:
        """Of every id, float64."""
        if self.counts is None:
            wide = ids.double()
            return torch.log(torch.log1p(1.0 / (wide + 1.0))) - math.log(math.log(self.words + 1))
        counts = self.counts.double() + 1.0
        return counts[ids].log() - counts.sum().log()


def sampled_softmax_loss(
    states: Tensor, own: Tensor, others: Tensor, labels: Tensor, drawn: Tensor, noise: Noise
) -> Tensor:
    """Sum over tokens of the softmax loss among the label and the noise words (Bengio and Senécal, 2008).

    A noise word's score is corrected by the log of how often it is expected, so that the sum of exponentials estimates
    the full softmax's; noise that happens to be the label is left out.

    :param states: ``(tokens, dim + 1)``, :func:`with_one`.
    :param own: ``(tokens, dim + 1)``, the labels' rows, with their biases as last column.
    :param others: ``(samples, dim + 1)``, the noise words' rows.
    :param drawn: ``(samples,)`` their ids.
    """
    wanted, unwanted = _scores(states, own, others, drawn, noise)
    unwanted = unwanted.masked_fill(labels[:, None] == drawn, -torch.inf)
    return (torch.cat([wanted[:, None], unwanted], 1).logsumexp(1) - wanted).sum()


def nce_loss(
    states: Tensor, own: Tensor, others: Tensor, labels: Tensor, drawn: Tensor, noise: Noise, log_normalizer: float
) -> Tensor:
    """Sum over tokens of the loss of telling the label from noise (Gutmann and Hyvärinen, 2012).

    All tokens of a batch share their noise words (Zoph et al., 2016); arguments as :func:`sampled_softmax_loss`.

    :param log_normalizer: the constant that stands for every context's log Z.
    """
    wanted, unwanted = _scores(states, own, others, drawn, noise)
    wanted = wanted - (noise.log_probability(labels) + math.log(len(drawn))).to(wanted)
    return F.softplus(log_normalizer - wanted).sum() + F.softplus(unwanted - log_normalizer).sum()


def _scores(states: Tensor, own: Tensor, others: Tensor, drawn: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Scores of the labels ``(tokens,)``, and of the noise less ``log(samples · P(word))``, ``(tokens, samples)``."""
    wide = states.dtype if states.dtype == torch.float64 else torch.float32
    expected = noise.log_probability(drawn) + math.log(len(drawn))
    return (states * own).sum(-1).to(wide), (states @ others.t()).to(wide) - expected.to(wide)


def with_one(states: Tensor) -> Tensor:
    """A column of ones, for biases that stand as the last column of rows."""
    return F.pad(states, (0, 1), value=1.0)
