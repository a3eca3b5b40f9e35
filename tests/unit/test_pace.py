"""How fast a bucket is asked: never above the ceiling, slower where it throttles, not at all where it fails."""

from __future__ import annotations

import pytest

from gcd.artifacts import pace
from gcd.artifacts.pace import Pace
from gcd.errors import TransientArtifactError


class Time:
    """A clock that sleeping moves on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def pace(self, ceiling: float | None = None) -> Pace:
        return Pace(ceiling, lambda: self.now, self.sleep)


@pytest.fixture
def time() -> Time:
    return Time()


def test_without_a_ceiling_nobody_waits(time: Time) -> None:
    own = time.pace()
    for _ in range(100):
        own.admit(1000)
    assert time.slept == []


def test_a_ceiling_is_kept(time: Time) -> None:
    own = time.pace(100)
    for _ in range(11):
        own.admit(250)
    assert time.now == pytest.approx(1000 + 25)


def test_throttling_halves_the_rate_once_for_all_that_was_refused_then_it_grows_again(
    time: Time,
) -> None:
    own = time.pace(1000)
    time.now += 10
    for _ in range(8):
        own.throttled()
    assert own.rate == 500
    own.succeeded()
    assert own.rate == 500
    for _ in range(100):
        time.now += 2
        own.succeeded()
    assert own.rate == 1000


def test_throttling_without_a_ceiling_starts_from_what_was_done(time: Time) -> None:
    own = time.pace()
    own.admit(6000)
    time.now += 10
    own.throttled()
    assert own.rate == pytest.approx(300)
    for _ in range(20):
        time.now += 1
        own.throttled()
    assert own.rate == pace.FLOOR


def test_a_low_ceiling_is_never_passed_by_throttling(time: Time) -> None:
    own = time.pace(10)
    time.now += 5
    own.throttled()
    assert own.rate == 10


def test_a_store_that_fails_all_the_time_is_left_alone_for_a_while(time: Time) -> None:
    own = time.pace()
    for _ in range(pace.TRIPS - 1):
        own.failed("time-out")
        own.check()
    own.failed("time-out at last")
    with pytest.raises(TransientArtifactError, match="time-out at last"):
        own.check()
    time.now += pace.COOL
    own.check()
    own.failed("still")
    with pytest.raises(TransientArtifactError, match="still"):
        own.check()
    time.now += pace.COOL
    own.succeeded()
    own.failed("once")
    own.check()


def test_pauses_grow_and_differ(time: Time) -> None:
    own = time.pace()
    for attempt in range(1, 9):
        own.pause(attempt)
    limits = [min(pace.LONGEST_PAUSE, pace.FIRST_PAUSE * 2**n) for n in range(1, 9)]
    assert all(most / 2 <= slept <= most for slept, most in zip(time.slept, limits, strict=True))
