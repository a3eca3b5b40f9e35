"""When a failed sweep is tried again: soon at first, later and later, never not at all."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcd.planning.retry import next_attempt
from tests.strategies import NOW


@pytest.mark.parametrize(
    ("attempts", "minutes"),
    [(1, 1), (2, 2), (3, 4), (9, 256), (10, 360), (11, 360), (1000, 360), (10**9, 360)],
)
def test_the_wait_doubles_from_a_minute_to_six_hours(attempts: int, minutes: int) -> None:
    assert next_attempt(attempts, NOW) == NOW + timedelta(minutes=minutes)


@pytest.mark.parametrize("attempts", [0, -1, -(10**9)])
def test_a_count_that_makes_no_sense_waits_a_minute(attempts: int) -> None:
    assert next_attempt(attempts, NOW) == NOW + timedelta(minutes=1)


@given(st.integers(-3, 10**12))
def test_the_wait_never_shrinks_and_never_ends(attempts: int) -> None:
    here, after = next_attempt(attempts, NOW), next_attempt(attempts + 1, NOW)
    assert NOW < here <= after <= NOW + timedelta(hours=6)
