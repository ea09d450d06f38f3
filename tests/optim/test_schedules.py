"""Schedules against their closed forms, edge values included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.component import component_class, kinds
from luthier.optim.schedules import Constant, Cosine, Linear, Schedule, SlantedTriangular

SCHEDULES = [component_class("schedule", kind)() for kind in kinds("schedule")] + [
    Cosine(min_ratio=0.1),
    Linear(min_ratio=1.0),
]
WITH_WARM_UP = [schedule for schedule in SCHEDULES if schedule.warms_up]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(total=st.integers(1, 500), data=st.data())
def test_every_factor_is_between_zero_and_one_and_the_first_moves_something(
    schedule: Schedule, total: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, total + 5))
    factors = [schedule.factor(step, total, warmup) for step in range(total)]
    assert all(0 <= f <= 1 and math.isfinite(f) for f in factors)
    assert factors[0] > 0


@pytest.mark.parametrize("schedule", WITH_WARM_UP, ids=repr)
def test_warm_up_is_a_straight_line_that_meets_the_peak(schedule: Schedule) -> None:
    assert [schedule.factor(step, 20, 4) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule", WITH_WARM_UP, ids=repr)
def test_a_run_of_one_step_trains_at_the_full_rate(schedule: Schedule) -> None:
    assert schedule.factor(0, 1, 0) == 1.0


@pytest.mark.parametrize("schedule", WITH_WARM_UP, ids=repr)
def test_a_run_that_is_all_warm_up_divides_by_nothing(schedule: Schedule) -> None:
    for total in (1, 3, 10):
        assert [schedule.factor(s, total, total) for s in range(total)] == pytest.approx(
            [(s + 1) / (total + 1) for s in range(total)]
        )


@pytest.mark.parametrize("schedule", WITH_WARM_UP, ids=repr)
def test_steps_beyond_the_end_stay_at_the_last_value(schedule: Schedule) -> None:
    assert schedule.factor(100, 10, 2) == schedule.factor(10, 10, 2) == pytest.approx(schedule.decay(1.0))


def test_cosine_is_half_a_cosine() -> None:
    for step in range(10):
        expected = 0.2 + 0.8 * (1 + math.cos(math.pi * step / 10)) / 2
        assert Cosine(min_ratio=0.2).factor(step, 10, 0) == pytest.approx(expected)


def test_linear_is_a_straight_line() -> None:
    assert [Linear().factor(s, 4, 0) for s in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert Linear(min_ratio=0.5).factor(4, 4, 0) == pytest.approx(0.5)


def test_constant_stays() -> None:
    assert {Constant().factor(s, 7, 2) for s in range(2, 9)} == {1.0}


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_after_warm_up_the_decay_is_that_of_transformers(kind: str) -> None:
    from transformers import get_scheduler

    name = "constant_with_warmup" if kind == "constant" else kind
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=30)
    schedule = component_class("schedule", kind)()
    for step in range(30):
        if step >= 5:  # theirs starts at zero, so that its first step does nothing; ours starts above
            assert schedule.factor(step, 30, 5) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)  # type: ignore[attr-defined]
        optimizer.step()
        theirs.step()


def test_the_slanted_triangle_has_the_numbers_of_the_papers_formula() -> None:
    total, cut_frac, ratio = 200, 0.1, 32
    cut = math.floor(total * cut_frac)
    for t in range(total):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        expected = (1 + p * (ratio - 1)) / ratio
        assert SlantedTriangular().factor(t, total, warmup=0) == pytest.approx(expected, abs=1e-12)


def test_the_slanted_triangle_rises_for_a_tenth_of_the_steps_and_falls_to_a_thirty_second() -> None:
    factors = [SlantedTriangular().factor(t, 100, warmup=3) for t in range(101)]
    assert factors[0] == factors[100] == pytest.approx(1 / 32)
    assert max(factors) == factors[10] == 1.0


@given(total=st.integers(1, 60), step=st.integers(0, 200))
def test_the_slanted_triangle_never_falls_below_its_lowest_rate(total: int, step: int) -> None:
    assert 1 / 32 <= SlantedTriangular().factor(step, total, warmup=0) <= 1
