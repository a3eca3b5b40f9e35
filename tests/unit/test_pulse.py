"""The pulse: a cycle that does not move is hung, one that moves, waits or has ended is not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gcd import clock
from gcd.daemon.pulse import Pulse

LONGEST = timedelta(minutes=30)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: its only item is what it shows."""
    shown = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: shown[0])
    return shown


def test_a_cycle_hangs_once_it_has_not_moved_for_too_long(seconds: list[float]) -> None:
    pulse = Pulse()
    with pulse.watched("a"), pulse.watched("b"):
        seconds[0] += 1800
        assert pulse.hung(LONGEST) == []
        pulse.beat("b")
        seconds[0] += 1
        assert pulse.hung(LONGEST) == ["a"]
        seconds[0] += 1800
        assert pulse.hung(LONGEST) == ["a", "b"]
        pulse.beat("a")
        assert pulse.hung(LONGEST) == ["b"]


def test_a_cycle_is_watched_from_its_begin_to_its_end(seconds: list[float]) -> None:
    pulse = Pulse()
    with pulse.watched("a"):
        pass
    with pytest.raises(ZeroDivisionError), pulse.watched("b"):
        raise ZeroDivisionError
    seconds[0] += 10**6
    assert pulse.hung(LONGEST) == []
    with pulse.watched("a"):
        assert pulse.hung(LONGEST) == []


def test_a_beat_after_the_end_is_no_cycle_that_hangs(seconds: list[float]) -> None:
    pulse = Pulse()
    with pulse.watched("a"):
        pass
    pulse.beat("a")  # a hand that settles its last tree
    seconds[0] += 10**6
    assert pulse.hung(LONGEST) == []
