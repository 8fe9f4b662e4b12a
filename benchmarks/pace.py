"""How fast this machine trains now: machines differ from day to day, and minutes should mean the same work on all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from common import Bench
from recover_texts import recovery_phases

from fewfold.distill.run import distil

STEPS, WARM = 80, 20


def seconds_a_step(bench: Bench, student: Any, texts: Sequence[str]) -> float:
    """The median of the seconds of a step in which a student learns from the dense model; the student is changed.

    Steps read the same texts every time. The first ones are left out, as code is generated in them, and a median does
    not mind what else happens for a while.
    """
    config = [phase.changed(log_steps=1, validation=0) for phase in recovery_phases()]
    done = distil(bench.model, student, texts, tokenizer=bench.tokenizer, config=config, steps=STEPS)
    times = [point["seconds"] for point in done.histories[0].curve][WARM:]
    return statistics.median(later - sooner for sooner, later in pairwise(times))
