"""Age and state: what is due, to the microsecond, and what keeps a candidate however old it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcd.durations import LONGEST
from gcd.model import Candidate, KeepReason, Kind
from gcd.planning.policy import Policy, RunsOfLiveModels, judge
from tests.strategies import NOW, TICK

MONTH = timedelta(days=30)
RUN = Candidate(
    kind=Kind.RUN,
    id="run",
    experiment_id="1",
    token="deleted@1",
    deleted_at=NOW - 2 * MONTH,
    uri=None,
    location="/data/1",
)
POLICY = Policy(older_than=MONTH)
AT_ONCE = Policy(older_than=timedelta(0))


def reasons(candidate: Candidate, policy: Policy = POLICY) -> list[KeepReason]:
    return [keep.reason for keep in judge(candidate, policy, NOW)]


def detail(candidate: Candidate, policy: Policy = POLICY) -> str:
    (keep,) = judge(candidate, policy, NOW)
    return keep.detail


def test_nothing_speaks_against_an_old_run() -> None:
    assert judge(RUN, POLICY, NOW) == ()


# Age --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (MONTH - TICK, [KeepReason.TOO_YOUNG]),
        (MONTH, []),
        (MONTH + TICK, []),
        (timedelta(0), [KeepReason.TOO_YOUNG]),
        (-TICK, [KeepReason.FROM_THE_FUTURE]),
    ],
)
def test_a_run_is_due_exactly_at_the_end_of_its_age(
    age: timedelta, expected: list[KeepReason]
) -> None:
    assert reasons(replace(RUN, deleted_at=NOW - age)) == expected


def test_an_age_of_zero_is_due_at_once_but_not_before() -> None:
    assert reasons(replace(RUN, deleted_at=NOW), AT_ONCE) == []
    assert reasons(replace(RUN, deleted_at=NOW + TICK), AT_ONCE) == [KeepReason.FROM_THE_FUTURE]


def test_what_is_too_young_says_how_old_it_is_and_when_it_is_due() -> None:
    young = replace(RUN, deleted_at=NOW - timedelta(days=5, milliseconds=7))
    assert detail(young) == "deleted 5d ago, due 2026-03-26 11:59:59 UTC"


def test_what_is_from_the_future_tells_both_clocks() -> None:
    future = replace(RUN, deleted_at=NOW + timedelta(hours=1))
    told = detail(future)
    assert "2026-03-01 13:00:00 UTC" in told
    assert "2026-03-01 12:00:00 UTC" in told


def test_the_longest_age_keeps_everything() -> None:
    assert reasons(RUN, Policy(older_than=LONGEST)) == [KeepReason.TOO_YOUNG]


@given(st.timedeltas(timedelta(0), LONGEST), st.datetimes(timezones=st.just(UTC)))
def test_no_time_and_no_age_is_due_early(older_than: timedelta, deleted_at: datetime) -> None:
    candidate = replace(RUN, deleted_at=deleted_at)
    is_due = reasons(candidate, Policy(older_than=older_than)) == []
    assert is_due == (NOW - deleted_at >= older_than)


# Without a stamp --------------------------------------------------------------------------------


def test_a_run_without_a_stamp_waits_for_the_first_cycle_that_sees_it() -> None:
    undated = replace(RUN, deleted_at=None)
    assert reasons(undated) == [KeepReason.UNDATED]
    assert "first `gcd gc` that sees it" in detail(undated)


@pytest.mark.parametrize(
    ("age", "expected"), [(MONTH - TICK, [KeepReason.UNDATED]), (MONTH, []), (MONTH + TICK, [])]
)
def test_a_run_without_a_stamp_ages_from_when_it_was_first_seen(
    age: timedelta, expected: list[KeepReason]
) -> None:
    assert reasons(replace(RUN, deleted_at=None, first_seen_at=NOW - age)) == expected


def test_a_run_without_a_stamp_says_when_it_is_due() -> None:
    seen = replace(RUN, deleted_at=None, first_seen_at=NOW - timedelta(days=1))
    assert (
        detail(seen)
        == "no deletion time; first seen 2026-02-28 12:00:00 UTC, due 2026-03-30 12:00:00 UTC"
    )


def test_an_age_of_zero_needs_no_stamp() -> None:
    assert reasons(replace(RUN, deleted_at=None), AT_ONCE) == []
    assert reasons(replace(RUN, deleted_at=None, first_seen_at=NOW + TICK), AT_ONCE) == []


def test_a_stamp_counts_more_than_when_it_was_first_seen() -> None:
    young = replace(RUN, deleted_at=NOW - TICK, first_seen_at=NOW - 3 * MONTH)
    assert reasons(young) == [KeepReason.TOO_YOUNG]


# State ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (timedelta(days=1) + TICK, []),
        (timedelta(days=1), [KeepReason.STILL_RUNNING]),
        (timedelta(0), [KeepReason.STILL_RUNNING]),
        (-MONTH, [KeepReason.STILL_RUNNING]),
    ],
)
def test_a_running_run_is_kept_for_a_day_after_its_last_sign(
    age: timedelta, expected: list[KeepReason]
) -> None:
    assert reasons(replace(RUN, is_running=True, last_active_at=NOW - age)) == expected


def test_a_running_run_without_any_sign_is_kept() -> None:
    running = replace(RUN, is_running=True)
    assert reasons(running) == [KeepReason.STILL_RUNNING]
    assert "nothing says since when" in detail(running)


def test_a_running_run_says_when_it_was_active() -> None:
    told = detail(replace(RUN, is_running=True, last_active_at=NOW))
    assert told == "its status is RUNNING, active at 2026-03-01 12:00:00 UTC"


def test_the_grace_of_running_runs_is_the_policys() -> None:
    running = replace(RUN, is_running=True, last_active_at=NOW - timedelta(hours=2))
    assert reasons(running, replace(POLICY, running_grace=timedelta(hours=1))) == []


def test_a_run_that_ended_may_have_been_active_just_now() -> None:
    assert reasons(replace(RUN, is_running=False, last_active_at=NOW)) == []


def test_a_run_that_feeds_a_live_model_is_kept_unless_it_is_asked_for() -> None:
    feeding = replace(RUN, feeds="m-live")
    assert reasons(feeding) == [KeepReason.FEEDS_LIVE_MODEL]
    assert "m-live" in detail(feeding)
    asked = replace(POLICY, runs_of_live_models=RunsOfLiveModels.COLLECT_RUN)
    assert reasons(feeding, asked) == []


def test_every_reason_is_told_not_only_the_first() -> None:
    busy = replace(RUN, deleted_at=NOW, is_running=True, last_active_at=NOW, feeds="m-live")
    assert set(reasons(busy)) == {
        KeepReason.FEEDS_LIVE_MODEL,
        KeepReason.STILL_RUNNING,
        KeepReason.TOO_YOUNG,
    }
