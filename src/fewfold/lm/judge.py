"""Perplexity of a model that carries its state over a whole text."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from fewfold.lm.step import foretell
from fewfold.lm.texts import Text
from fewfold.measure.likelihood import perplexity_of
from fewfold.measure.modes import evaluating
from fewfold.progress import bar

_WINDOW = 2**11  # tokens of all streams together that a window holds


@dataclass(frozen=True)
class Judgement:
    """How well a model foretells a text.

    :param nll: mean negative log-likelihood a token, in nats.
    :param tokens: tokens foretold: all of the text, line ends too.
    :param words: words of the text, line ends among them.
    :param unknown: tokens that stand for words which the vocabulary lacks.
    :param seconds: time it took.
    """

    nll: float
    tokens: int
    words: int
    unknown: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """Of tokens."""
        return perplexity_of(self.nll)

    @property
    def word_perplexity(self) -> float:
        """The same log-likelihood shared out among words: comparable across tokenizers."""
        return perplexity_of(self.nll * self.tokens / self.words)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"perplexity": self.perplexity, "word_perplexity": self.word_perplexity, **asdict(self)}


def judge(model: nn.Module, text: Text, boundary: int, streams: int = 1) -> Judgement:
    """Foretell every token of a text once, the state carried along.

    :param model: a model that carries a state.
    :param text: the text.
    :param boundary: the token that stands before its first one (``<eos>``).
    :param streams: stretches that it is read in side by side, each from an empty state: one is exact, more are faster
        and a little pessimistic at their starts.
    :return: the measure.
    """
    start, total = time.perf_counter(), 0.0
    inputs, labels = _stretches(text.ids, boundary, streams)
    streams, length = inputs.shape
    window, state = max(1, _WINDOW // streams), None
    with evaluating(model), torch.no_grad(), bar(f"perplexity of {text.name}", length) as advance:
        for first in range(0, length, window):
            part = slice(first, first + window)
            loss, state = foretell(model, inputs[:, part], labels[:, part], state)
            total += float(loss.double()) * int((labels[:, part] >= 0).sum())
            done = min(first + window, length) * streams
            advance(done / streams, f"{done:,}/{len(text.ids):,} tokens, ppl {perplexity_of(total / done):,.1f}")
    seconds = time.perf_counter() - start
    return Judgement(total / len(text.ids), len(text.ids), text.words, text.unknown, seconds)


def _stretches(ids: np.ndarray[Any, Any], boundary: int, streams: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of stretches as equal as can be, ``(streams, length)``; short ones end in a label of −100."""
    streams = min(streams, len(ids))
    cuts = [round(place * len(ids) / streams) for place in range(streams + 1)]
    length = max(end - start for start, end in pairwise(cuts))
    before = np.concatenate([[boundary], ids])
    inputs, labels = np.full((streams, length), boundary), np.full((streams, length), -100)
    for row, (start, end) in enumerate(pairwise(cuts)):
        inputs[row, : end - start] = before[start:end]
        labels[row, : end - start] = ids[start:end]
    return torch.from_numpy(inputs), torch.from_numpy(labels)
