"""Age and state: what is due, to the microsecond, and what keeps a candidate however old it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gcd.durations import LONGEST, format_duration
from gcd.errors import UsageError
from gcd.model import Candidate, Contents, KeepReason, Kind
from gcd.planning.policy import Policy, RunsOfLiveModels, judge, judge_member, required_age
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
    feeding = replace(RUN, feeds=("m-live",))
    assert reasons(feeding) == [KeepReason.FEEDS_LIVE_MODEL]
    assert detail(feeding) == (
        "its metrics belong to the logged model m-live, which stays, and would go with it"
    )
    asked = replace(POLICY, runs_of_live_models=RunsOfLiveModels.COLLECT_RUN)
    assert reasons(feeding, asked) == []


def test_a_run_that_feeds_a_model_that_stays_is_kept_where_both_were_asked_for() -> None:
    """Those that go before it are no longer among what it feeds."""
    both = replace(POLICY, runs_of_live_models=RunsOfLiveModels.COLLECT_BOTH)
    assert reasons(replace(RUN, feeds=("m-live",)), both) == [KeepReason.FEEDS_LIVE_MODEL]
    assert reasons(RUN, both) == []


def test_a_run_that_feeds_many_live_models_names_one_and_counts_the_others() -> None:
    assert "model m-1 and 2 more, which stay," in detail(replace(RUN, feeds=("m-1", "m-2", "m-3")))


def test_every_reason_is_told_not_only_the_first() -> None:
    busy = replace(RUN, deleted_at=NOW, is_running=True, last_active_at=NOW, feeds=("m-live",))
    assert set(reasons(busy)) == {
        KeepReason.FEEDS_LIVE_MODEL,
        KeepReason.STILL_RUNNING,
        KeepReason.TOO_YOUNG,
    }


# An age of its experiment's own -----------------------------------------------------------------

DAY = timedelta(days=1)
PROD = replace(RUN, experiment="prod-a")


def needed(policy: Policy = POLICY, *, tag: str | None = None, name: str | None = "prod-a") -> int:
    """The required age in days."""
    return required_age(replace(RUN, experiment=name, own_age=tag), policy) // DAY


def test_without_a_tag_or_a_pattern_the_general_age_counts() -> None:
    assert needed() == 30
    assert needed(replace(POLICY, ages=(("other-*", 90 * DAY),), shortest=7 * DAY)) == 30


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("prod-*", "prod-a", 90),
        ("prod-?", "prod-a", 90),
        ("*", "prod-a", 90),
        ("prod-[ab]", "prod-a", 90),
        ("prod-[[]x]", "prod-[x]", 90),
        ("*", None, 90),
        ("prod", "prod-a", 30),
        ("rod-*", "prod-a", 30),
        ("PROD-*", "prod-a", 90),
        ("prod-*", "Prod-a", 90),
        ("prod-*", None, 30),
    ],
)
def test_a_pattern_is_matched_with_the_whole_name_in_any_case(
    pattern: str, name: str | None, expected: int
) -> None:
    assert needed(replace(POLICY, ages=((pattern, 90 * DAY),)), name=name) == expected
    excluding = replace(POLICY, exclude=(pattern,))
    expected_reasons = [KeepReason.EXCLUDED] if expected == 90 else []
    assert reasons(replace(RUN, experiment=name), excluding) == expected_reasons


def test_the_longest_of_the_ages_that_are_asked_for_counts() -> None:
    policy = replace(POLICY, ages=(("prod-*", 60 * DAY), ("*-a", 90 * DAY), ("*", 40 * DAY)))
    assert needed(policy) == 90
    assert needed(policy, tag="50d") == 90
    assert needed(policy, tag="100d") == 100


@pytest.mark.parametrize(
    ("tag", "shortest", "expected"),
    [
        ("60d", None, 60),
        ("60d", 7, 60),
        ("30d", None, 30),
        ("10d", None, 30),
        ("0s", None, 30),
        ("10d", 7, 10),
        ("7d", 7, 7),
        ("1d", 7, 7),
        ("0s", 7, 7),
        ("0s", 0, 0),
        (" 1w ", 0, 7),
    ],
)
def test_an_own_age_is_shorter_only_where_that_is_allowed_and_down_to_there(
    tag: str, shortest: int | None, expected: int
) -> None:
    allowed = None if shortest is None else shortest * DAY
    assert needed(replace(POLICY, shortest=allowed), tag=tag) == expected
    by_pattern = replace(POLICY, shortest=allowed, ages=(("prod-*", needed_days(tag)),))
    assert needed(by_pattern) == expected


def needed_days(tag: str) -> timedelta:
    """An age as a tag on an experiment names it."""
    return required_age(replace(RUN, own_age=tag), AT_ONCE)


def test_a_short_tag_does_not_shorten_what_a_pattern_asks_for() -> None:
    policy = replace(POLICY, ages=(("prod-*", 20 * DAY),), shortest=timedelta(0))
    assert needed(policy, tag="1d") == 20
    assert needed(policy, tag="25d") == 25


own_ages = st.integers(0, 8).map(lambda days: days * DAY)


@settings(max_examples=300)
@given(own_ages, st.none() | own_ages, st.lists(own_ages, max_size=3), st.none() | own_ages)
@example(30 * DAY, 60 * DAY, [], 7 * DAY)
def test_an_own_age_never_asks_for_more_than_the_longest_that_anybody_named(
    older_than: timedelta,
    shortest: timedelta | None,
    patterns: list[timedelta],
    tag: timedelta | None,
) -> None:
    policy = Policy(older_than, ages=tuple(("*", age) for age in patterns), shortest=shortest)
    own = None if tag is None else format_duration(tag)
    asked = patterns + ([] if tag is None else [tag])
    age = required_age(replace(PROD, own_age=own), policy)
    assert age >= max(asked, default=older_than)
    assert age >= (older_than if shortest is None else min(older_than, shortest))
    assert age <= max([older_than, *asked])


def test_an_own_age_decides_when_a_run_is_due_to_the_microsecond() -> None:
    tagged = replace(PROD, own_age="60d")
    assert reasons(replace(tagged, deleted_at=NOW - 60 * DAY)) == []
    assert reasons(replace(tagged, deleted_at=NOW - 60 * DAY + TICK)) == [KeepReason.TOO_YOUNG]
    soon = replace(POLICY, shortest=DAY)
    short = replace(PROD, own_age="1d")
    assert reasons(replace(short, deleted_at=NOW - DAY), soon) == []
    assert reasons(replace(short, deleted_at=NOW - DAY + TICK), soon) == [KeepReason.TOO_YOUNG]


def test_what_waits_for_an_own_age_says_so() -> None:
    told = detail(replace(PROD, own_age="90d"))
    assert told == "deleted 60d ago, due 2026-03-31 12:00:00 UTC (its experiment's age is 90d)"


def test_without_a_stamp_an_own_age_counts_from_when_it_was_first_seen() -> None:
    seen = replace(PROD, deleted_at=None, first_seen_at=NOW - 60 * DAY)
    assert reasons(replace(seen, own_age="60d")) == []
    assert reasons(replace(seen, own_age="61d")) == [KeepReason.UNDATED]
    assert reasons(replace(seen, first_seen_at=None, own_age="1d"), AT_ONCE) == [KeepReason.UNDATED]
    assert reasons(replace(seen, first_seen_at=None, own_age="0s"), AT_ONCE) == []


@pytest.mark.parametrize(
    "tag", ["", "soon", "90", "-1d", "1y", "365001d", "1d\n2h", "9" * 500 + "d"]
)
@pytest.mark.parametrize("policy", [POLICY, AT_ONCE, replace(AT_ONCE, shortest=timedelta(0))])
@pytest.mark.parametrize("deleted_at", [RUN.deleted_at, None, NOW + DAY])
def test_a_tag_that_is_no_duration_keeps_it_and_is_told(
    tag: str, policy: Policy, deleted_at: datetime | None
) -> None:
    tagged = replace(PROD, own_age=tag, deleted_at=deleted_at)
    assert reasons(tagged, policy) == [KeepReason.TOO_YOUNG]
    assert repr(tag) in detail(tagged, policy)
    with pytest.raises(UsageError):
        required_age(tagged, policy)


# Experiments ------------------------------------------------------------------------------------

EXPERIMENT = replace(RUN, kind=Kind.EXPERIMENT, id="1", contents=Contents())


def test_an_old_empty_experiment_is_due() -> None:
    assert reasons(EXPERIMENT) == []
    assert reasons(replace(EXPERIMENT, contents=None)) == []


def test_an_experiment_ages_as_a_run_does() -> None:
    assert reasons(replace(EXPERIMENT, deleted_at=NOW)) == [KeepReason.TOO_YOUNG]
    assert reasons(replace(EXPERIMENT, deleted_at=NOW + TICK)) == [KeepReason.FROM_THE_FUTURE]
    undated = replace(EXPERIMENT, deleted_at=None)
    assert reasons(undated) == [KeepReason.UNDATED]
    assert reasons(replace(undated, first_seen_at=NOW - MONTH)) == []
    assert reasons(replace(undated, first_seen_at=NOW - MONTH + TICK)) == [KeepReason.UNDATED]
    assert reasons(undated, AT_ONCE) == []


def test_the_default_experiment_is_never_collected_but_what_is_in_it_is() -> None:
    default = replace(EXPERIMENT, id="0", experiment_id="0")
    assert reasons(default) == [KeepReason.DEFAULT_EXPERIMENT]
    assert reasons(default, AT_ONCE) == [KeepReason.DEFAULT_EXPERIMENT]
    assert reasons(replace(RUN, experiment_id="0")) == []
    assert reasons(replace(RUN, id="0")) == []
    assert reasons(replace(default, id="00")) == []


@pytest.mark.parametrize(
    ("contents", "reason", "told"),
    [
        (Contents(live_runs=1), KeepReason.HAS_LIVE_CHILDREN, "1 run in it is not deleted"),
        (Contents(live_runs=1234), KeepReason.HAS_LIVE_CHILDREN, "1,234 runs in it are not"),
        (Contents(live_model="m-1"), KeepReason.HAS_LIVE_CHILDREN, "the logged model m-1 in it"),
        (Contents(guarding="judge"), KeepReason.IN_USE, "the scorer judge in it"),
    ],
)
@pytest.mark.parametrize("policy", [POLICY, AT_ONCE])
def test_what_is_live_in_an_experiment_keeps_it(
    contents: Contents, reason: KeepReason, told: str, policy: Policy
) -> None:
    inhabited = replace(EXPERIMENT, contents=contents)
    assert reasons(inhabited, policy) == [reason]
    assert told in detail(inhabited, policy)


def test_all_that_is_live_in_an_experiment_is_told() -> None:
    full = replace(EXPERIMENT, contents=Contents(2, "m-1", "judge"))
    assert reasons(full) == [
        KeepReason.HAS_LIVE_CHILDREN,
        KeepReason.HAS_LIVE_CHILDREN,
        KeepReason.IN_USE,
    ]


@pytest.mark.parametrize("kind", [Kind.RUN, Kind.LOGGED_MODEL, Kind.EXPERIMENT])
def test_an_excluded_experiment_is_left_alone_with_all_that_is_in_it(kind: Kind) -> None:
    policy = replace(AT_ONCE, exclude=("lab", "prod-*"))
    excluded = replace(PROD, kind=kind)
    assert reasons(excluded, policy) == [KeepReason.EXCLUDED]
    assert detail(excluded, policy) == "its experiment prod-a matches 'prod-*' in exclude"
    assert reasons(replace(excluded, experiment="prod"), policy) == []
    assert reasons(replace(excluded, experiment=None), policy) == []


# What goes with its experiment ------------------------------------------------------------------

MODEL = replace(PROD, kind=Kind.LOGGED_MODEL, id="m-model", token="active@1")
TRACE = replace(PROD, kind=Kind.TRACE, id="tr-trace", token="None@1")


def member_reasons(candidate: Candidate, policy: Policy = POLICY) -> list[KeepReason]:
    return [keep.reason for keep in judge_member(candidate, policy, NOW)]


@pytest.mark.parametrize("member", [MODEL, TRACE])
def test_a_member_stays_only_where_it_came_after_its_experiment_was_judged(
    member: Candidate,
) -> None:
    assert member_reasons(member) == []
    assert member_reasons(replace(member, deleted_at=None)) == []
    assert member_reasons(replace(member, deleted_at=NOW - MONTH)) == []
    assert member_reasons(replace(member, deleted_at=NOW - MONTH + TICK)) == [KeepReason.TOO_YOUNG]
    assert member_reasons(replace(member, deleted_at=NOW + TICK)) == [KeepReason.FROM_THE_FUTURE]


def test_a_member_needs_the_age_of_its_experiment() -> None:
    assert member_reasons(replace(TRACE, own_age="90d")) == [KeepReason.TOO_YOUNG]
    assert member_reasons(replace(TRACE, own_age="soon")) == [KeepReason.TOO_YOUNG]
    longer = replace(POLICY, ages=(("prod-*", 90 * DAY),))
    assert member_reasons(TRACE, longer) == [KeepReason.TOO_YOUNG]


def test_what_was_judged_with_its_experiment_is_not_judged_again() -> None:
    policy = replace(POLICY, exclude=("prod-*",))
    busy = replace(MODEL, is_running=True, feeds=("m-live",), contents=Contents(live_runs=1))
    assert len(reasons(busy, policy)) == 4
    assert member_reasons(busy, policy) == []
