"""Exact match and F1 of answers, with the normalisation of SQuAD v1.1's official script."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case an answer, take out ASCII punctuation and English articles, and join its words by single spaces.

    :param text: An answer.
    :return: What is compared.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """Say whether a prediction equals one of the answers after normalisation.

    :param prediction: The predicted text.
    :param answers: What people answered.
    :return: 1 or 0.
    """
    return float(normalize_answer(prediction) in map(normalize_answer, answers))


def token_f1(prediction: str, answers: Iterable[str]) -> float:
    """Compute the F1 of words in common, against the answer that suits best.

    :param prediction: The predicted text.
    :param answers: What people answered.
    :return: 0…1.
    """
    return max((_f1(prediction, answer) for answer in answers), default=0.0)


def _f1(prediction: str, answer: str) -> float:
    found, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    common = sum((Counter(found) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
