"""Whose turn it is: one cycle for each fire, none forgotten, none that crashes again and again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcd.daemon.turn import (
    LONGEST_WAIT,
    LOOK_AGAIN,
    MOST_DEATHS,
    Call,
    Seen,
    Wait,
    back_off,
    wait_for,
)
from tests.strategies import NOW

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
OWN = NOW + 6 * HOUR
BEFORE, LATER = NOW - HOUR, NOW + HOUR
STARTS = None

waits = st.builds(
    Seen,
    st.none() | st.timedeltas(-HOUR, HOUR).map(lambda age: NOW + age),
    st.none() | st.just("host:1"),
    st.booleans(),
    st.integers(0, 5),
)


@pytest.mark.parametrize(
    ("seen", "call", "expected"),
    [
        # Nobody has said when a cycle is due: this daemon's own schedule says it.
        (Seen(), Call.DUE, STARTS),
        (Seen(), Call.LOOK, Wait(OWN)),
        (Seen(), Call.START, STARTS),
        # Some daemon has said it.
        (Seen(due_at=BEFORE), Call.DUE, STARTS),
        (Seen(due_at=BEFORE), Call.LOOK, STARTS),
        (Seen(due_at=NOW), Call.DUE, STARTS),
        (Seen(due_at=NOW), Call.LOOK, STARTS),
        (Seen(due_at=LATER), Call.DUE, Wait(LATER)),
        (Seen(due_at=LATER), Call.LOOK, Wait(LATER)),
        (Seen(due_at=LATER), Call.START, STARTS),
        # Somebody collects now.
        (Seen(holder="x", due_at=BEFORE), Call.DUE, Wait(NOW + LOOK_AGAIN, Call.LOOK)),
        (Seen(holder="x"), Call.START, Wait(NOW + LOOK_AGAIN, Call.LOOK)),
        # Somebody has died.
        (Seen(LATER, is_abandoned=True, deaths=1), Call.LOOK, STARTS),
        (Seen(LATER, is_abandoned=True, deaths=MOST_DEATHS - 1), Call.DUE, STARTS),
        (Seen(LATER, is_abandoned=True, deaths=MOST_DEATHS), Call.LOOK, Wait(LATER)),
        (Seen(LATER, is_abandoned=True, deaths=MOST_DEATHS), Call.START, Wait(LATER)),
        (Seen(BEFORE, is_abandoned=True, deaths=MOST_DEATHS), Call.DUE, STARTS),
        (Seen(LATER, "x", is_abandoned=True, deaths=1), Call.LOOK, Wait(NOW + LOOK_AGAIN, Call.LOOK)),
        # A start is no cycle more where the one before was killed.
        (Seen(LATER, deaths=1), Call.START, Wait(LATER)),
        (Seen(None, deaths=1), Call.START, Wait(OWN)),
    ],
)  # fmt: skip
def test_a_cycle_starts_or_there_is_something_to_wait_for(
    seen: Seen, call: Call, expected: Wait | None
) -> None:
    assert wait_for(seen, call, NOW, OWN) == expected


def test_a_look_again_is_no_later_than_the_schedule() -> None:
    own = NOW + SECOND
    assert wait_for(Seen(holder="x"), Call.DUE, NOW, own) == Wait(own, Call.DUE)


@given(waits, st.sampled_from(Call))
def test_no_cycle_starts_beside_another_and_each_wait_is_ahead(seen: Seen, call: Call) -> None:
    wait = wait_for(seen, call, NOW, OWN)
    if seen.holder is not None:
        assert wait is not None
    if wait is not None:
        assert wait.until > NOW
        assert seen.due_at is None or seen.holder or wait.until == seen.due_at


@given(waits, st.sampled_from(Call))
def test_what_dies_again_and_again_is_left_to_the_schedule(seen: Seen, call: Call) -> None:
    is_due = call is Call.DUE if seen.due_at is None else seen.due_at <= NOW
    if seen.deaths >= MOST_DEATHS and not is_due:
        assert wait_for(seen, call, NOW, OWN) is not None
    if is_due and seen.holder is None:
        assert wait_for(seen, call, NOW, OWN) is None


@pytest.mark.parametrize(
    ("failures", "minutes"), [(1, 1), (2, 2), (3, 4), (5, 16), (6, 30), (7, 30), (10**9, 30)]
)
def test_a_store_that_does_not_answer_is_tried_less_and_less(failures: int, minutes: int) -> None:
    wait = back_off(failures, NOW, OWN)
    assert wait == Wait(NOW + timedelta(minutes=minutes), Call.LOOK)
    assert wait.until <= NOW + LONGEST_WAIT


def test_a_store_that_does_not_answer_keeps_its_schedule() -> None:
    assert back_off(5, NOW, NOW + SECOND) == Wait(NOW + SECOND, Call.DUE)
