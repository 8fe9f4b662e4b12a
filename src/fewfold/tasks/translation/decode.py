"""Translate sentences with any encoder–decoder that has `generate`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fewfold.errors import TaskError
from fewfold.measure.modes import evaluating
from fewfold.progress import track
from fewfold.tasks.translation.vocabulary import Vocabularies


@dataclass(frozen=True)
class Translations:
    """Detokenized translations, in the order of the sentences.

    :param texts: One a sentence.
    :param tokens: Tokens that were generated, end tokens included.
    :param source_tokens: Tokens that were read.
    :param seconds: Wall time of `generate` alone.
    """

    texts: list[str]
    tokens: int
    source_tokens: int
    seconds: float

    @property
    def tokens_a_second(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.seconds


def translate(
    model: nn.Module, vocabularies: Any, sentences: Sequence[str], *, beams: int = 1, batch_size: int = 64,
    max_length: int = 128, length_penalty: float = 1.0,
) -> Translations:  # fmt: skip
    """Translate sentences, greedily or by beam search.

    :param model: An encoder–decoder; for one that predicts all tokens at once `beams` is the number of lengths tried.
    :param vocabularies: `Vocabularies`, or a joint tokenizer.
    :param sentences: Plain text.
    :param beams: 1 is greedy.
    :param batch_size: Sentences a batch, of like length.
    :param max_length: Tokens a sentence; of longer ones the ends are cut. A translation has at most twice as many
        tokens as the longest sentence of its batch, and ten more.
    :param length_penalty: Beams are ranked by log-likelihood over tokens to this power.
    :return: The translations.
    :raises TaskError: If there is no sentence, or no beam.
    """
    vocabularies = Vocabularies.of(vocabularies)
    if not sentences or beams < 1:
        raise TaskError(f"translate: {len(sentences)} sentences with {beams} beams; give at least one of each")
    rows = vocabularies.source(list(sentences), truncation=True, max_length=max_length)["input_ids"]
    order = sorted(range(len(rows)), key=lambda place: (-len(rows[place]), place))
    device, limit = next(model.parameters()).device, _position_limit(model)
    found, tokens, seconds = [""] * len(rows), 0, 0.0
    search: dict[str, Any] = {"length_penalty": length_penalty, "early_stopping": False} if beams > 1 else {}
    target, special = vocabularies.target, {vocabularies.target.pad_token_id, vocabularies.target.bos_token_id}
    with evaluating(model), torch.inference_mode():
        for start in track(range(0, len(order), batch_size), "translating"):
            places = order[start : start + batch_size]
            batch = vocabularies.source.pad({"input_ids": [rows[place] for place in places]}, return_tensors="pt")
            longest = batch["input_ids"].shape[1]
            begun = time.perf_counter()
            ids = model.generate(  # type: ignore[operator]
                input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device),
                num_beams=beams, do_sample=False, max_new_tokens=min(2 * longest + 10, limit), **search,
            ).tolist()  # fmt: skip
            seconds += time.perf_counter() - begun
            tokens += sum(token not in special for row in ids for token in row)
            for place, text in zip(places, target.batch_decode(ids, skip_special_tokens=True), strict=True):
                found[place] = text.strip()
    return Translations(found, tokens, sum(map(len, rows)), seconds)


def _position_limit(model: nn.Module) -> int:
    """New tokens that the decoder's positions allow."""
    return int(getattr(model.config, "max_position_embeddings", None) or 4096) - 1  # type: ignore[union-attr]
