"""A small language that a small model can learn."""

import random

import pytest

from fewfold.lm.corpus import word_corpus

WORDS = 40


def sentences(count, seed):
    """Lines of words each of which follows from the one before, nearly."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        word, line = chance.randrange(WORDS), []
        for _ in range(chance.randrange(3, 12)):
            line.append(f"w{word}")
            word = (word * 3 + chance.choice([1, 1, 1, 2])) % WORDS
        found.append(" ".join(line))
    return found


@pytest.fixture(scope="session")
def corpus():
    return word_corpus(sentences(160, 0), sentences(20, 1), sentences(20, 2))
