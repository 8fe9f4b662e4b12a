"""CIDEr and CIDEr-D against a plain evaluation of their equations, and figures worked out by hand."""

import math

import numpy as np
import pytest

from fewfold import TaskError
from fewfold.tasks.captioning import Cider, normalized

REFERENCES = [
    ["a dog runs on the grass", "the brown dog runs", "a dog is running on a green field"],
    ["a man rides a red bike", "the man is on a bike"],
    ["two children play on the beach", "children on the beach", "two kids play"],
]
CAPTIONS = ["a brown dog runs on the grass", "a man on a bike on a bike on a bike", "two dogs"]


def naive(captions, references, strict):
    """Equations 1 to 3 of the paper, vectors over all n-grams, with the factor 10."""

    def grams(text, n):
        words = text.split()
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    scores = []
    for caption, own in zip(captions, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            space = sorted({g for group in (*references, captions) for text in group for g in grams(text, n)})
            idf = np.array([
                math.log(len(references) / max(1, sum(any(g in grams(t, n) for t in group) for group in references)))
                for g in space
            ])  # fmt: skip
            vector = {t: np.array([grams(t, n).count(g) for g in space]) * idf for t in (caption, *own)}
            for reference in own:
                a, b = vector[caption], vector[reference]
                scale = np.linalg.norm(a) * np.linalg.norm(b)
                if not scale:
                    continue
                gap = len(caption.split()) - len(reference.split())
                value = (np.minimum(a, b) if strict else a) @ b / scale
                total += value * (math.exp(-(gap**2) / 72) if strict else 1) / len(own)
        scores.append(10 * total / 4)
    return scores


@pytest.mark.parametrize("strict", [True, False])
def test_equations(strict):
    found = Cider(REFERENCES).scores(CAPTIONS, strict)
    np.testing.assert_allclose(found, naive(CAPTIONS, REFERENCES, strict), rtol=1e-10)
    assert found[0] > 1


def test_known_values():
    """What pycocoevalcap 1.2 gives for the same captions."""
    known = [3.7718499094252307, 0.9827088482299906, 0.5714339943584076]
    np.testing.assert_allclose(Cider(REFERENCES).scores(CAPTIONS), known, rtol=1e-12)


def test_by_hand():
    cider = Cider([["red dog"], ["red cat"]])
    # "red" is in both images and weighs nothing; "dog" and "red dog" agree wholly, of order 3 and 4 there is none
    assert cider.score("red dog", 0) == pytest.approx(10 * 2 / 4)
    # one word too many, and "dog" twice: the norm doubles, the product is clipped
    assert cider.score("red dog dog", 0, strict=False) == pytest.approx(10 * (1 + 1 / math.sqrt(2)) / 4)
    assert cider.score("red dog dog", 0) == pytest.approx(10 * (0.5 + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72))
    assert cider.score("red dog", 1) == 0


def test_what_is_compared():
    assert normalized("A boy 's dog , isn't it ?") == "a boy s dog isn't it"
    with pytest.raises(TaskError, match="at least one"):
        Cider([["a"], []])
    with pytest.raises(TaskError, match="1 captions for 2 images"):
        Cider([["a"], ["b"]]).scores(["a"])
