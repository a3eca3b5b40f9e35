"""A quota takes the oldest and no more than it says; a fuse refuses all; neither adds to a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcd.errors import FuseBlown
from gcd.model import Candidate, KeepReason, Kind
from gcd.planning import quota
from gcd.planning.plan import Decision, Plan
from gcd.planning.policy import Keep
from gcd.planning.quota import OVER, Choice, Key, Quota, age_key, check_fuse, within
from tests.strategies import NOW, TICK

DAY = timedelta(days=1)
YOUNG = Keep(KeepReason.TOO_YOUNG, "deleted 1d ago")


def aged(
    days: float | None, entity: str = "run", kind: Kind = Kind.RUN, seen: float | None = None
) -> Candidate:
    """An entity that was deleted, or first seen, so many days ago."""
    at, first = (None if ago is None else NOW - ago * DAY for ago in (days, seen))
    return Candidate(kind, entity, "1", "deleted@1", at, None, None, first_seen_at=first)


def page(*collect: Candidate, keep: Iterable[Candidate] = ()) -> Plan:
    return Plan(
        tuple(Decision(each, ()) for each in collect),
        tuple(Decision(each, (YOUNG,)) for each in keep),
    )


def chosen(limit: Quota, *pages: Plan, sizes: Mapping[str, int] | None = None) -> set[str]:
    choice = Choice(limit)
    for each in pages:
        choice.add(each, sizes or {})
    return {entity for _, entity in choice.chosen()}


ages = st.none() | st.integers(0, 5)
entities = st.lists(
    st.builds(
        lambda kind, number, days, seen: aged(days, f"{kind}{number}", kind, seen),
        st.sampled_from(Kind),
        st.integers(0, 9),
        ages,
        ages,
    ),
    max_size=12,
    unique_by=lambda each: each.id,
)


# The choice -------------------------------------------------------------------------------------


def test_the_oldest_are_chosen_whatever_page_they_are_on() -> None:
    first, second = page(aged(1, "a"), aged(9, "b")), page(aged(5, "c"), aged(7, "d"))
    assert chosen(Quota(max_entities=2), first, second) == {"b", "d"}
    assert chosen(Quota(max_entities=3), second, first) == {"b", "c", "d"}


def test_ages_differ_by_the_microsecond() -> None:
    older = replace(aged(1, "older"), deleted_at=NOW - DAY - TICK)
    assert chosen(Quota(max_entities=1), page(aged(1, "a"), older, aged(1, "z"))) == {"older"}


def test_as_many_as_there_are_is_no_limit() -> None:
    found = page(aged(1, "a"), aged(2, "b"))
    assert chosen(Quota(max_entities=2), found) == {"a", "b"}
    assert chosen(Quota(max_entities=10), found) == {"a", "b"}
    assert chosen(Quota(), found) == {"a", "b"}


def test_what_has_no_stamp_is_among_the_oldest() -> None:
    undated = aged(None, "undated")
    assert chosen(Quota(max_entities=1), page(aged(9_000, "a"), undated)) == {"undated"}
    assert age_key(undated) == 0


def test_what_was_seen_without_a_stamp_is_as_old_as_that() -> None:
    seen = aged(None, "seen", seen=5)
    assert chosen(Quota(max_entities=1), page(aged(4, "a"), seen)) == {"seen"}
    assert chosen(Quota(max_entities=1), page(aged(6, "a"), seen)) == {"a"}
    assert age_key(aged(1, seen=5)) == (NOW - DAY).timestamp()


def test_what_is_kept_is_neither_chosen_nor_counted() -> None:
    choice = Choice(Quota(max_entities=2))
    choice.add(page(aged(1, "a"), keep=[aged(9, "kept")]), {})
    choice.add(page(keep=[aged(9, "kept too")]), {})
    assert choice.chosen() == {(Kind.RUN, "a")}
    assert choice.seen == 1


def test_all_that_was_to_be_collected_is_counted_beyond_the_quota() -> None:
    choice = Choice(Quota(max_entities=1))
    for number in range(5):
        choice.add(page(aged(number, f"{number}a"), aged(number, f"{number}b")), {})
    assert choice.seen == 10
    assert len(choice.chosen()) == 1


def test_kinds_are_told_apart_also_where_their_ids_are_not() -> None:
    choice = Choice(Quota(max_entities=1))
    choice.add(page(aged(1, "1", Kind.EXPERIMENT)), {})
    choice.add(page(aged(2, "1", Kind.JOB)), {})
    assert choice.chosen() == {(Kind.JOB, "1")}


@pytest.mark.parametrize("order", [1, -1])
def test_runs_and_models_of_an_experiment_go_before_it_where_all_are_equally_old(
    order: int,
) -> None:
    """As MLflow stamps them when it deletes an experiment: else its runs would keep it."""
    found = [
        aged(3, "9", Kind.EXPERIMENT),
        aged(3, "m-1", Kind.LOGGED_MODEL),
        aged(3, "a", Kind.RUN),
    ]
    pages = [page(each) for each in found[::order]]
    assert chosen(Quota(max_entities=2), *pages) == {"m-1", "a"}
    sizes = {"a": 1, "m-1": 1, "9": 1}
    assert chosen(Quota(max_bytes=2), *pages, sizes=sizes) == {"m-1", "a"}


def test_what_is_chosen_does_not_depend_on_how_it_is_paged() -> None:
    found = [aged(number % 3, f"run{number}") for number in range(20)]
    whole = chosen(Quota(max_entities=7), page(*found))
    assert whole == chosen(Quota(max_entities=7), *map(page, reversed(found)))
    assert len(whole) == 7


# Bytes ------------------------------------------------------------------------------------------


def test_bytes_are_taken_up_to_the_first_that_does_not_fit() -> None:
    found = page(aged(9, "a"), aged(8, "b"), aged(7, "c"), aged(6, "d"))
    sizes = {"a": 5, "b": 4, "c": 100, "d": 1}
    assert chosen(Quota(max_bytes=10), found, sizes=sizes) == {"a", "b"}
    assert chosen(Quota(max_bytes=9), found, sizes=sizes) == {"a", "b"}
    assert chosen(Quota(max_bytes=8), found, sizes=sizes) == {"a"}
    assert chosen(Quota(max_bytes=110), found, sizes=sizes) == {"a", "b", "c", "d"}


def test_an_oldest_that_never_fits_is_not_passed_over_for_younger_ones() -> None:
    found = page(aged(9, "giant"), aged(1, "small"))
    assert chosen(Quota(max_bytes=10), found, sizes={"giant": 11, "small": 1}) == set()


def test_what_holds_no_bytes_fits_until_the_first_that_does_not() -> None:
    found = page(aged(9, "a"), aged(8, "b"), aged(7, "c"))
    assert chosen(Quota(max_bytes=0), found, sizes={"b": 1}) == {"a"}


def test_both_limits_hold() -> None:
    found = page(*(aged(9 - number, f"{number}") for number in range(5)))
    sizes = {f"{number}": 10 for number in range(5)}
    assert chosen(Quota(max_entities=2, max_bytes=100), found, sizes=sizes) == {"0", "1"}
    assert chosen(Quota(max_entities=4, max_bytes=15), found, sizes=sizes) == {"0"}


def test_a_quota_of_bytes_remembers_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MOST", 3)
    choice = Choice(Quota(max_bytes=1000))
    for number in range(50):
        choice.add(page(aged(number, f"run{number:02}")), {})
        assert len(choice._oldest) <= 3
    assert choice.chosen() == {(Kind.RUN, f"run{number}") for number in (47, 48, 49)}
    assert choice.seen == 50


@settings(max_examples=200)
@given(
    entities,
    st.none() | st.integers(0, 12),
    st.none() | st.integers(0, 30),
    st.lists(st.integers(0, 9), min_size=12, max_size=12),
)
def test_what_is_chosen_is_the_longest_row_of_oldest_that_the_quota_allows(
    found: list[Candidate], most: int | None, bytes_: int | None, numbers: list[int]
) -> None:
    sizes = {each.id: size for each, size in zip(found, numbers, strict=False)}
    ids = chosen(Quota(most, bytes_), *map(page, found), sizes=sizes)
    left = [each for each in found if each.id not in ids]
    taken = [each for each in found if each.id in ids]
    assert most is None or len(taken) <= most
    assert bytes_ is None or sum(sizes[each.id] for each in taken) <= bytes_
    assert all(age_key(one) <= age_key(other) for one in taken for other in left)
    if left and (most is None or len(taken) < most):
        assert bytes_ is not None
        oldest = min(map(age_key, left))
        following = [sizes[each.id] for each in left if age_key(each) == oldest]
        assert sum(sizes[each.id] for each in taken) + max(following) > bytes_


# Within -----------------------------------------------------------------------------------------


def test_what_was_not_chosen_stays_for_a_later_cycle() -> None:
    found = page(aged(9, "a"), aged(1, "b"), keep=[aged(0, "young")])
    after = within(found, {(Kind.RUN, "a")})
    assert after.collect == found.collect[:1]
    assert [(each.candidate.id, each.keep) for each in after.keep] == [
        ("young", (YOUNG,)),
        ("b", (OVER,)),
    ]
    assert OVER.reason is KeepReason.OVER_QUOTA


def test_a_choice_of_everything_changes_nothing_and_of_nothing_keeps_all() -> None:
    found = page(aged(9, "a"), aged(1, "b"))
    assert within(found, {(Kind.RUN, "a"), (Kind.RUN, "b"), (Kind.RUN, "c")}) == found
    assert within(found, set()).collect == ()


def test_a_choice_of_another_kind_with_the_same_id_chooses_nothing() -> None:
    assert within(page(aged(9, "1", Kind.EXPERIMENT)), {(Kind.JOB, "1")}).collect == ()


@settings(max_examples=200)
@given(entities, entities, st.data())
def test_a_quota_only_ever_narrows_a_plan(
    collect: list[Candidate], keep: list[Candidate], data: st.DataObject
) -> None:
    keep = [each for each in keep if each.id not in {other.id for other in collect}]
    before = page(*collect, keep=keep)
    keys: list[Key] = [(each.kind, each.id) for each in (*collect, *keep)]
    allowed = set(data.draw(st.lists(st.sampled_from(keys)))) if keys else set()
    after = within(before, allowed)
    assert set(after.collect) <= set(before.collect)
    assert {(each.candidate.kind, each.candidate.id) for each in after.collect} == {
        key for key in allowed if key[1] in {each.id for each in collect}
    }
    assert after.keep[: len(before.keep)] == before.keep
    everyone = [each.candidate for each in (*before.collect, *before.keep)]
    assert sorted((each.candidate for each in (*after.collect, *after.keep)), key=repr) == sorted(
        everyone, key=repr
    )
    assert all(each.keep for each in after.keep)


@given(entities, st.integers(0, 12))
def test_choosing_and_keeping_to_it_collects_exactly_as_many_as_allowed(
    found: list[Candidate], most: int
) -> None:
    choice = Choice(Quota(max_entities=most))
    pages = [page(each) for each in found]
    for each in pages:
        choice.add(each, {})
    collected = [within(each, choice.chosen()).collect for each in pages]
    assert sum(map(len, collected)) == min(most, len(found))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (Quota(), False),
        (Quota(max_duration=DAY), False),
        (Quota(max_entities=0), True),
        (Quota(max_entities=1), True),
        (Quota(max_bytes=0), True),
    ],
)
def test_a_quota_of_time_needs_no_choice_beforehand(limit: Quota, expected: bool) -> None:
    assert limit.chooses is expected


# The fuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planned", "total", "max_share"),
    [
        (50, 100, 0.5),
        (0, 100, 0.0),
        (0, 0, 0.0),
        (0, 0, None),
        (100, 100, 1.0),
        (100, 100, None),
        (1, 3, 0.34),
        (7, 0, None),
    ],
)
def test_a_share_that_is_allowed_passes(planned: int, total: int, max_share: float | None) -> None:
    check_fuse(planned, total, max_share)


@pytest.mark.parametrize(
    ("planned", "total", "max_share"),
    [(51, 100, 0.5), (1, 100, 0.0), (1, 0, 0.5), (100, 100, 0.99), (1, 3, 0.33)],
)
def test_a_larger_share_refuses_the_cycle(planned: int, total: int, max_share: float) -> None:
    with pytest.raises(FuseBlown) as caught:
        check_fuse(planned, total, max_share)
    assert caught.value.exit_code == 13
    assert "fuse.max_share" in str(caught.value.hint)


def test_a_blown_fuse_tells_its_numbers() -> None:
    with pytest.raises(FuseBlown) as caught:
        check_fuse(12_345, 20_000, 0.5)
    assert caught.value.message == (
        "12,345 of the store's 20,000 entities would be collected, "
        "more than the allowed share of 0.5"
    )


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_a_fuse_blows_exactly_above_its_share(planned: int, total: int, share: float) -> None:
    is_more = planned > total * int(share * 4) / 4
    try:
        check_fuse(planned, total, share)
    except FuseBlown:
        assert is_more
    else:
        assert not is_more
