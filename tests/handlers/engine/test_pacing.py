"""How long calls wait, and how long the engine steps: with a clock of the test's own."""

import pytest

from handlers.engine.pacing import LEASE_S, ROUND_TRIP_S, ROUND_TRIP_STEPS, STUCK_S, Pacing
from tests.support.clock import Clock

LOW, HIGH = ROUND_TRIP_S


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pacing(clock: Clock) -> Pacing:
    return Pacing(clock)


@pytest.mark.parametrize(("step", "waits"), [(0.0, LOW), (0.02, ROUND_TRIP_STEPS * 0.02), (10.0, HIGH)])
def test_a_call_waits_for_some_steps_within_bounds(pacing: Pacing, step: float, waits: float) -> None:
    for _ in range(100):
        pacing.learn(step)
    assert pacing.begin_call() == pytest.approx(waits)


def test_after_an_answer_the_next_call_is_short_unless_the_next_request_is_here(pacing: Pacing) -> None:
    for _ in range(100):
        pacing.learn(10.0)
    pacing.answered()
    assert pacing.begin_call() == LOW
    assert pacing.begin_call() == pytest.approx(HIGH)
    pacing.answered()
    pacing.opened()
    assert pacing.begin_call() == pytest.approx(HIGH)


def test_the_engine_pauses_when_no_call_comes_any_more(pacing: Pacing, clock: Clock) -> None:
    assert not pacing.may_step
    waits = pacing.begin_call()
    clock.now += waits + LEASE_S - 0.001
    assert pacing.may_step
    pacing.end_call()
    clock.now += LEASE_S - 0.001
    assert pacing.may_step
    clock.now += 0.002
    assert not pacing.may_step


def test_a_step_that_never_ends_is_told(pacing: Pacing, clock: Clock) -> None:
    clock.now += 2 * STUCK_S
    assert not pacing.is_stuck
    pacing.begin_step()
    clock.now += STUCK_S
    assert not pacing.is_stuck
    clock.now += 1
    assert pacing.is_stuck
    pacing.end_step()
    assert not pacing.is_stuck


def test_progress_alone_waits_for_the_shortest_round_trip(pacing: Pacing, clock: Clock) -> None:
    pacing.begin_call()
    pacing.end_call()
    assert not pacing.progress_is_due
    clock.now += LOW + 0.001
    assert pacing.progress_is_due
