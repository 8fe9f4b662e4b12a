import math

import pytest
from distill_models import config

from fewfold.distill.clock import Clock, rate_factor


def test_steps_are_counted():
    clock = Clock(10, None)
    assert [clock.fraction(step) for step in (0, 5, 10, 12)] == [0, 0.5, 1, 1]
    assert not clock.is_over(9)
    assert clock.is_over(10)


def test_the_clock_keeps_time_for_the_next_step_and_what_follows():
    clock = Clock(None, 1.0)
    clock.begin(10.0)
    for second in range(11, 51):
        clock.see(float(second))
    assert clock.pace == pytest.approx(1.0)
    assert clock.fraction(123) == pytest.approx(40 / 50)
    assert not clock.is_over(10**6)
    clock.reserve = 8.0
    assert not clock.is_over(0)
    clock.see(51.0)
    assert clock.is_over(0)
    assert clock.fraction(0) == pytest.approx(41 / 42)


def test_the_first_limit_that_is_reached_ends():
    clock = Clock(4, 60.0)
    assert clock.fraction(2) == 0.5
    assert clock.is_over(4)


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("linear", lambda x: 1 - (x - 0.1) / 0.9),
        ("cosine", lambda x: 0.5 * (1 + math.cos(math.pi * (x - 0.1) / 0.9))),
        ("constant", lambda x: 1.0),
    ],
)
def test_rates(schedule, at):
    factor = rate_factor(config(schedule=schedule, warmup=0.1))
    assert factor(0.05) == pytest.approx(0.5)
    for fraction in (0.1, 0.3, 0.7, 1.0):
        assert factor(fraction) == pytest.approx(at(fraction), abs=1e-12)
