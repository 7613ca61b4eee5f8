"""Schedules in closed form."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.engine import CosineSchedule, PolySchedule, Schedule, StepSchedule, sgd, train
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


def test_each_milestone_may_have_its_factor():
    schedule = StepSchedule(warmup=0, milestones=(11, 14, 17), gamma=[0.1, 0.1, 0.5])
    at = [schedule.factor(epoch * 100, 1800, 100) for epoch in (0, 10.99, 11, 14, 17)]
    assert at == pytest.approx([1, 1, 0.1, 0.01, 0.005])


def test_a_warmup_longer_than_the_run_is_an_error_that_names_both(toy, tmp_path):
    message = "warmup=41 iterations is longer than the run of 40"
    with pytest.raises(ConfigError, match=message):
        Schedule(warmup=41).factor(0, 40, 10)
    assert Schedule(warmup=40).factor(20, 40, 10) == pytest.approx(0.001 + 0.999 / 2)
    model = toy.Net()
    with pytest.raises(ConfigError, match=message):
        train(
            model, toy.Loader(10), sgd(model, 0.1), CosineSchedule(warmup=41),
            epochs=4, out=tmp_path / "run", device="cpu", precision="fp32",
        )  # fmt: skip


def test_short_run_still_reaches_its_rate():
    schedule = Schedule(usual_warmup=500)
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
    [
        lambda: StepSchedule(milestones=(3, 2)),
        lambda: StepSchedule(milestones=(3, 4), gamma=(0.1,)),
        lambda: Schedule(warmup=-1),
        lambda: Schedule(usual_warmup=-1),
        lambda: Schedule(warmup_ratio=2),
    ],
)
def test_bad_values_are_refused(make):
    with pytest.raises(ConfigError, match="schedule"):
        make()
