"""Batches by tokens, and their tensors by hand."""

import random

import pytest

from fewfold import TaskError
from fewfold.tasks.translation.batching import Pair, collate, encode_pairs, token_batches


@pytest.fixture
def pairs():
    draw = random.Random(0)
    return [Pair([9] * draw.randint(1, 12), [9] * draw.randint(1, 12)) for _ in range(200)]


def test_every_pair_once_and_no_batch_too_large(pairs):
    batches = token_batches(pairs, 40, seed=1)
    assert sorted(place for batch in batches for place in batch) == list(range(200))
    for batch in batches:
        assert len(batch) * max(max(map(len, pairs[place])) for place in batch) <= 40
    real = sum(len(pair.target) for pair in pairs)
    padded = sum(len(batch) * max(len(pairs[place].target) for place in batch) for batch in batches)
    assert real / padded > 0.85


def test_the_seed_decides_the_order(pairs):
    first = token_batches(pairs, 40, seed=1)
    assert first == token_batches(pairs, 40, seed=1)
    assert first != token_batches(pairs, 40, seed=2)
    lengths = [len(pairs[batch[0]].target) for batch in first]
    assert lengths != sorted(lengths)


def test_a_sentence_longer_than_a_batch(pairs):
    with pytest.raises(TaskError, match="batch_tokens=11: the longest sentence has 12 tokens"):
        token_batches(pairs, 11, seed=0)


def test_tensors_by_hand():
    batch = collate([Pair([5, 6, 2], [7, 2]), Pair([8, 2], [9, 7, 2])], pad=(0, 4), start=1)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 2], [8, 2, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "decoder_input_ids": [[1, 7, 2], [1, 9, 7]],
        "labels": [[7, 2, -100], [9, 7, 2]],
    }


def test_long_sentences_are_cut_before_their_end_token(corpus, vocabularies):
    rows = encode_pairs(vocabularies, corpus, max_length=4)
    assert all(len(row.source) == 4 and row.source[-1] == vocabularies.source.eos_token_id for row in rows)
