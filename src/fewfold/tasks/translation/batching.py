"""Pairs of token rows in batches of like length, counted in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewfold.errors import TaskError
from fewfold.progress import step
from fewfold.tasks.translation.corpus import Corpus
from fewfold.tasks.translation.vocabulary import Vocabularies

IGNORED = -100  # labels that count for nothing


class Pair(NamedTuple):
    """Token ids of a sentence and of its translation, end tokens included."""

    source: list[int]
    target: list[int]


def encode_pairs(vocabularies: Vocabularies, corpus: Corpus, max_length: int = 128) -> list[Pair]:
    """Tokenize parallel text.

    :param vocabularies: Of both sides.
    :param corpus: The pairs.
    :param max_length: Tokens a side; of what is longer the ends are cut, the end token stays.
    :return: A row a pair, in order.
    """
    with step("tokenizing"):
        sources, targets = (
            tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
            for tokenizer, texts in ((vocabularies.source, corpus.sources), (vocabularies.target, corpus.targets))
        )
    return [Pair(*pair) for pair in zip(sources, targets, strict=True)]


def token_batches(pairs: Sequence[Pair], tokens: int, seed: int) -> list[list[int]]:
    """Group pairs of like length at random, the groups in random order.

    A batch holds as many pairs as fit: pairs times the longest side among them is at most `tokens`. Which pairs of
    equal length meet, and the order of the batches, follow the seed alone.

    :param pairs: The pairs.
    :param tokens: Tokens of a batch's larger side, padding included.
    :param seed: Of this epoch.
    :return: Places of the pairs of each batch; every pair stands in exactly one.
    :raises TaskError: If a pair alone is longer.
    """
    longest = max(max(map(len, pair)) for pair in pairs)
    if longest > tokens:
        raise TaskError(f"batch_tokens={tokens}: the longest sentence has {longest} tokens; give at least as many")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pairs), generator=generator).tolist()
    order.sort(key=lambda place: (len(pairs[place].target), len(pairs[place].source)))  # stable: ties stay shuffled
    batches: list[list[int]] = []
    batch: list[int] = []
    widest = 0
    for place in order:
        wider = max(widest, *map(len, pairs[place]))
        if batch and wider * (len(batch) + 1) > tokens:
            batches.append(batch)
            batch, wider = [], max(map(len, pairs[place]))
        batch.append(place)
        widest = wider
    batches.append(batch)
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def collate(pairs: Sequence[Pair], pad: tuple[int, int], start: int) -> dict[str, Tensor]:
    """Pad pairs on the right.

    :param pairs: The pairs of a batch.
    :param pad: Padding ids of the source and of the target side.
    :param start: Id that the decoder begins with.
    :return: `input_ids`, `attention_mask` `(pairs, source tokens)`, `decoder_input_ids` and `labels`
        `(pairs, target tokens)`; decoder inputs are the labels moved on by one, padded labels are -100.
    """
    sources, labels = (
        _padded([pair.source for pair in pairs], pad[0]),
        _padded([pair.target for pair in pairs], IGNORED),
    )
    lengths = torch.tensor([len(pair.source) for pair in pairs])
    inputs = labels.masked_fill(labels == IGNORED, pad[1]).roll(1, dims=1)
    inputs[:, 0] = start
    return {
        "input_ids": sources,
        "attention_mask": (torch.arange(sources.shape[1]) < lengths[:, None]).long(),
        "decoder_input_ids": inputs,
        "labels": labels,
    }


def _padded(rows: Sequence[list[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
