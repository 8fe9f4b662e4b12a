"""How fast this machine trains now: machines differ from day to day, and minutes should mean the same work on all."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import Bench
from recover_texts import recovery_phases, recovery_texts

from fewfold.checkpoint.folders import write_whole
from fewfold.distill.run import distil
from fewfold.measure.environment import environment

PACE = Path(__file__).parent / "runs" / "recover.pace.json"  # of the first run
STEPS, WARM = 80, 20


def slowness(bench: Bench) -> float:
    """How many times as long a training step of the dense model takes here and now as at the first run."""
    now = seconds_a_step(bench, bench.fresh(), recovery_texts()[:5000])
    if not PACE.is_file():
        PACE.parent.mkdir(parents=True, exist_ok=True)
        write_whole(PACE, json.dumps({"seconds_a_step": now, "environment": environment()}))
    return now / float(json.loads(PACE.read_text(encoding="utf-8"))["seconds_a_step"])


def seconds_a_step(bench: Bench, student: Any, texts: Sequence[str]) -> float:
    """The median of the seconds of a step in which a student learns from the dense model; the student is changed.

    Steps read the same texts every time. The first ones are left out, as code is generated in them, and a median does
    not mind what else happens for a while.
    """
    config = [phase.changed(log_steps=1, validation=0) for phase in recovery_phases()]
    done = distil(bench.model, student, texts, tokenizer=bench.tokenizer, config=config, steps=STEPS)
    times = [point["seconds"] for point in done.histories[0].curve][WARM:]
    return statistics.median(later - sooner for sooner, later in pairwise(times))
