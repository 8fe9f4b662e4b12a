"""Log-likelihoods in a form that people compare."""

from __future__ import annotations

import math

_HIGHEST = 700.0  # nats, beyond which a float would overflow


def perplexity_of(nll: float) -> float:
    """The perplexity of a mean negative log-likelihood in nats; finite, as JSON wants it."""
    return math.exp(min(nll, _HIGHEST))
