"""Schedules in closed form."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.engine import CosineSchedule, PolySchedule, Schedule, StepSchedule
from boxwright.errors import ConfigError


def test_step_schedule_is_the_papers():
    schedule = StepSchedule(warmup=500)
    steps = 12 * 1000
    at = lambda step: schedule.factor(step, steps, 1000)  # noqa: E731
    assert at(0) == pytest.approx(0.001)
    assert at(250) == pytest.approx(0.001 + 0.999 / 2)
    assert at(500) == 1.0
    assert at(7999) == 1.0
    assert at(8000) == pytest.approx(0.1)
    assert at(11000) == pytest.approx(0.01)
    assert at(11999) == pytest.approx(0.01)


def test_cosine_and_poly():
    assert CosineSchedule(warmup=0).factor(0, 100, 10) == 1
    assert CosineSchedule(warmup=0, final=0.2).factor(50, 100, 10) == pytest.approx(0.6)
    assert CosineSchedule(warmup=0).factor(25, 100, 10) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert CosineSchedule(warmup=0, final=0.2).factor(100, 100, 10) == pytest.approx(0.2)
    assert PolySchedule(warmup=0).factor(30, 100, 10) == pytest.approx(0.7)
    assert PolySchedule(warmup=0, power=2).factor(30, 100, 10) == pytest.approx(0.49)
    assert PolySchedule(warmup=0, final=0.5).factor(100, 100, 10) == pytest.approx(0.5)


def test_short_run_still_reaches_its_rate():
    schedule = Schedule(warmup=500)
    assert schedule.warmup_steps(40) == 10
    assert schedule.factor(9, 40, 10) < 1
    assert schedule.factor(10, 40, 10) == 1


@given(
    st.sampled_from([Schedule(), StepSchedule(), CosineSchedule(), PolySchedule(power=0.9)]),
    st.integers(1, 50),
    st.integers(1, 100),
)
def test_factor_stays_in_0_to_1(schedule, epochs, per_epoch):
    total = epochs * per_epoch
    assert all(0 <= schedule.factor(step, total, per_epoch) <= 1 + 1e-12 for step in range(total))


@pytest.mark.parametrize(
    "make",
    [lambda: StepSchedule(milestones=(3, 2)), lambda: Schedule(warmup=-1), lambda: Schedule(warmup_ratio=2)],
)
def test_bad_values_are_refused(make):
    with pytest.raises(ConfigError, match="schedule"):
        make()
