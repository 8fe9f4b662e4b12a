"""How fast this machine trains now: machines differ from day to day, and minutes should mean the same work on all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common import Bench
from recover_texts import recovery_phases

from fewfold.distill.run import distil

STEPS = 30


def seconds_a_step(bench: Bench, student: Any, texts: Sequence[str]) -> float:
    """Seconds of a step in which a student learns from the dense model; the student is changed."""
    done = distil(bench.model, student, texts, tokenizer=bench.tokenizer, config=recovery_phases(), steps=STEPS)
    return done.histories[0].training_seconds / STEPS
