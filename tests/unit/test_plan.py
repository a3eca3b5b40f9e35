"""The plan: each candidate is collected or has reasons, and nothing that is needed is collected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from gcd.errors import ExtraMissing, UnsafeTarget
from gcd.model import Candidate, Hold, KeepReason, Kind, Place, Probe, Reach, Root, Target
from gcd.planning.gate import Gate
from gcd.planning.guard import Scope, Site
from gcd.planning.holds import HoldIndex
from gcd.planning.plan import (
    PRECEDENCE,
    Decision,
    Plan,
    decide,
    locate,
    make_plan,
    ranked,
    sentence,
)
from gcd.planning.policy import Keep, Policy
from tests.strategies import AGES, NOW, SCOPE, SITES, holds, worlds

LOCATION = "file:///data/mlruns/1"
HOME = Place("file", "", "/data/mlruns/1/")
ROOT = Place("file", "", "/data/mlruns/")
ATTIC = Place("file", "", "/attic/")
TREE = Place("file", "", "/data/mlruns/1/run/artifacts/")
GOOD = Root(ROOT, Probe(is_there=True, is_named_found=True))
RUN = Candidate(
    kind=Kind.RUN,
    id="run",
    experiment_id="1",
    token="deleted@1",
    deleted_at=NOW - timedelta(days=60),
    uri=f"{LOCATION}/run/artifacts",
    location=LOCATION,
)
WORLD: dict[str, Any] = {
    "candidates": [RUN],
    "holds": [],
    "sites": {LOCATION: Site(HOME, HOME, ROOT)},
    "roots": {ROOT: GOOD},
    "policy": Policy(older_than=timedelta(days=30)),
    "scope": Scope(destination=None, hosts=frozenset(), roots=()),
    "gate": Gate(),
    "now": NOW,
}


def plan(**changes: Any) -> Plan:
    world = {**WORLD, **changes}
    return make_plan(**{**world, "holds": HoldIndex.build(world["holds"], NOW)})


def decided(candidate: Candidate = RUN, **changes: Any) -> Decision:
    world = {**WORLD, **changes}
    del world["candidates"]
    return decide(candidate, **{**world, "holds": HoldIndex.build(world["holds"], NOW)})


def reasons(candidate: Candidate = RUN, **changes: Any) -> list[KeepReason]:
    return [keep.reason for keep in decided(candidate, **changes).keep]


def ids(decisions: tuple[Decision, ...]) -> list[str]:
    return [decision.candidate.id for decision in decisions]


# One candidate ----------------------------------------------------------------------------------


def test_a_run_that_nothing_speaks_for_is_collected_with_its_tree() -> None:
    assert decided() == Decision(RUN, (), Target(TREE, ROOT))


@pytest.mark.parametrize(
    ("hold", "place"),
    [
        (Hold(KeepReason.HELD, "tag gcd.hold", entity_id="run"), None),
        (Hold(KeepReason.HELD, "tag gcd.hold", entity_id="experiment/1"), None),
        (Hold(KeepReason.SHARED, "run 2 has its files there"), TREE),
        (Hold(KeepReason.SHARED, "run 2 has its files there"), HOME),
        (Hold(KeepReason.SHARED, "experiment 2 logs there", reach=Reach.WITHIN), TREE),
        (Hold(KeepReason.REGISTERED, "version 3 of classifier"), TREE),
    ],
)
def test_a_hold_keeps_it_and_says_why(hold: Hold, place: Place | None) -> None:
    decision = decided(holds=[(hold, place)])
    assert decision.keep == (Keep(hold.reason, hold.because),)
    assert decision.target == Target(TREE, ROOT)


def test_the_place_where_others_log_keeps_nothing_below_it() -> None:
    hold = Hold(KeepReason.SHARED, "experiment 1 logs there", reach=Reach.WITHIN)
    assert reasons(holds=[(hold, HOME)]) == []


def test_a_hold_on_the_entity_and_one_on_its_tree_are_both_told() -> None:
    tag = Hold(KeepReason.HELD, "tag gcd.hold", entity_id="run")
    version = Hold(KeepReason.REGISTERED, "version 3 of classifier")
    assert reasons(holds=[(version, TREE), (tag, None)]) == [
        KeepReason.HELD,
        KeepReason.REGISTERED,
    ]


def test_age_and_state_keep_it() -> None:
    assert reasons(replace(RUN, deleted_at=NOW)) == [KeepReason.TOO_YOUNG]
    assert reasons(replace(RUN, feeds="m-live")) == [KeepReason.FEEDS_LIVE_MODEL]


def test_without_a_location_there_is_no_safe_target() -> None:
    decision = decided(replace(RUN, location=None))
    assert decision.target is None
    assert [keep.reason for keep in decision.keep] == [KeepReason.UNSAFE_TARGET]


def test_a_location_that_cannot_be_used_keeps_it_for_that_reason() -> None:
    keep = Keep(KeepReason.SHARED, "it lies inside the files of run 2")
    assert decided(sites={LOCATION: keep}) == Decision(RUN, (keep,), None)


def test_an_unsafe_tree_keeps_it_and_says_the_mend() -> None:
    (keep,) = decided(replace(RUN, uri="/elsewhere/run/artifacts")).keep
    assert keep.reason is KeepReason.UNSAFE_TARGET
    assert "file:///elsewhere/run/artifacts/ is not" in keep.detail
    assert "; artifacts.roots allows" in keep.detail


def test_a_tree_that_nobody_can_delete_keeps_it_and_says_the_mend() -> None:
    (keep,) = decided(replace(RUN, uri="mlflow-artifacts:/1/run/artifacts")).keep
    assert keep.reason is KeepReason.NO_BACKEND
    assert "; give --artifacts-destination" in keep.detail


def test_a_root_that_is_unfit_keeps_it() -> None:
    lost = {ROOT: Root(ROOT, Probe(is_there=False))}
    sick = {ROOT: replace(GOOD, failures=1)}
    assert reasons(roots=lost) == [KeepReason.UNREACHABLE]
    assert reasons(roots=sick) == [KeepReason.ROOT_UNHEALTHY]
    assert reasons(roots=lost, gate=Gate(collect_absent=True)) == []


def test_everything_that_speaks_for_it_is_told_what_people_decided_first() -> None:
    busy = replace(RUN, deleted_at=NOW, is_running=True, feeds="m-live")
    tag = Hold(KeepReason.HELD, "tag gcd.hold", entity_id="run")
    live = Hold(KeepReason.SHARED, "run 2 has its files there")
    found = reasons(
        busy, holds=[(tag, None), (live, TREE)], roots={ROOT: replace(GOOD, failures=1)}
    )
    assert found == [
        KeepReason.HELD,
        KeepReason.SHARED,
        KeepReason.FEEDS_LIVE_MODEL,
        KeepReason.STILL_RUNNING,
        KeepReason.TOO_YOUNG,
        KeepReason.ROOT_UNHEALTHY,
    ]


def test_a_candidate_without_a_tree_tells_its_other_reasons_too() -> None:
    young = replace(RUN, deleted_at=NOW, location=None)
    assert reasons(young) == [KeepReason.TOO_YOUNG, KeepReason.UNSAFE_TARGET]


def test_a_tree_in_a_configured_root_depends_on_that_root() -> None:
    moved = replace(RUN, uri="/attic/run/artifacts")
    scope = replace(WORLD["scope"], roots=(ATTIC,))
    attic = Root(ATTIC, Probe(is_there=True, is_named_found=True))
    decision = decided(moved, scope=scope, roots={ROOT: GOOD, ATTIC: attic})
    expected = Target(Place("file", "", "/attic/run/artifacts/"), ATTIC)
    assert decision == Decision(moved, (), expected)
    gone = replace(attic, probe=Probe(is_there=False))
    assert reasons(moved, scope=scope, roots={ROOT: GOOD, ATTIC: gone}) == [KeepReason.UNREACHABLE]


def test_locate_is_the_target_or_why_there_is_none() -> None:
    sites, scope = WORLD["sites"], WORLD["scope"]
    assert locate(RUN, sites, scope) == Target(TREE, ROOT)
    found = locate(replace(RUN, kind=Kind.EXPERIMENT), sites, scope)
    assert isinstance(found, Keep)
    assert found.reason is KeepReason.UNSAFE_TARGET


def test_an_error_is_told_with_its_hint_if_it_has_one() -> None:
    assert sentence(UnsafeTarget("it is a root")) == "it is a root"
    assert sentence(ExtraMissing("no library", hint="pip install x")) == "no library; pip install x"


# Reasons ----------------------------------------------------------------------------------------


def test_every_reason_has_its_rank() -> None:
    assert len(PRECEDENCE) == len(set(PRECEDENCE))
    assert set(PRECEDENCE) == set(KeepReason)


def test_reasons_are_ranked_once_each_and_equal_ranks_stay_in_order() -> None:
    first, second = Keep(KeepReason.SHARED, "b"), Keep(KeepReason.SHARED, "a")
    young, held = Keep(KeepReason.TOO_YOUNG, "x"), Keep(KeepReason.HELD, "y")
    assert ranked([young, first, young, second, first, held]) == (held, first, second, young)
    assert ranked([]) == ()


# A page -----------------------------------------------------------------------------------------


def numbered(count: int) -> Iterator[Candidate]:
    for number in range(count):
        at = NOW if number % 3 == 0 else RUN.deleted_at
        uri = f"{LOCATION}/run{number}/artifacts"
        yield replace(RUN, id=f"run{number}", uri=uri, deleted_at=at)


def test_a_page_is_parted_and_keeps_its_order() -> None:
    found = plan(candidates=numbered(7))
    assert ids(found.collect) == ["run1", "run2", "run4", "run5"]
    assert ids(found.keep) == ["run0", "run3", "run6"]


def test_an_empty_page_is_an_empty_plan() -> None:
    assert plan(candidates=[]) == Plan((), ())


def test_one_bad_candidate_stops_only_itself() -> None:
    bad = replace(RUN, id="../..", uri="/\0")
    found = plan(candidates=[bad, RUN, replace(bad, id="", uri="")])
    assert ids(found.collect) == ["run"]
    assert ids(found.keep) == ["../..", ""]


def test_a_later_look_moves_candidates_to_those_that_are_kept() -> None:
    before = plan(candidates=numbered(4))
    keep = Keep(KeepReason.UNSAFE_TARGET, "a symbolic link")
    after = before.without({"run2": keep, "nobody": keep})
    assert ids(after.collect) == ["run1"]
    assert ids(after.keep) == ["run0", "run3", "run2"]
    assert after.keep[-1] == replace(before.collect[1], keep=(keep,))
    assert ids(before.collect) == ["run1", "run2"]


def test_a_later_look_that_finds_nothing_changes_nothing() -> None:
    before = plan(candidates=numbered(4))
    assert before.without({}) == before


def test_a_later_look_leaves_the_reasons_of_what_was_kept() -> None:
    before = plan(candidates=numbered(1))
    after = before.without({"run0": Keep(KeepReason.UNREACHABLE, "late")})
    assert after == before


# Properties -------------------------------------------------------------------------------------

thorough = settings(max_examples=80, deadline=None)


def kin(place: Place) -> tuple[str, str, list[str]]:
    """A place as the names on the way to it, computed in another way than the index does."""
    scheme = "s3" if place.scheme == "s3a" else place.scheme
    return scheme, place.authority, place.path.split("/")[:-1]


def lies_in(inner: Place, outer: Place) -> bool:
    (*store, names), (*other, around) = kin(inner), kin(outer)
    return store == other and names[: len(around)] == around


def test_the_worlds_of_these_properties_are_worth_planning_for() -> None:
    """Some are collected in part; in others a hold on a tree alone keeps all that was due."""

    def is_parted(world: dict[str, Any]) -> bool:
        found = plan(**world)
        return len(found.collect) > 1 and bool(found.keep)

    def hangs_on_a_tree(world: dict[str, Any]) -> bool:
        trees = [(replace(hold, entity_id=None), place) for hold, place in world["holds"] if place]
        freed = plan(**{**world, "holds": []})
        return bool(freed.collect) and not plan(**{**world, "holds": trees}).collect

    quick = settings(max_examples=1000, deadline=None, database=None, phases=[Phase.generate])
    assert find(worlds(), is_parted, settings=quick)
    assert find(worlds(), hangs_on_a_tree, settings=quick)


@thorough
@given(worlds())
def test_every_candidate_is_either_collected_or_kept_for_a_reason(world: dict[str, Any]) -> None:
    found = plan(**world)
    assert sorted(ids(found.collect) + ids(found.keep)) == sorted(c.id for c in world["candidates"])
    assert all(decision.keep for decision in found.keep)
    assert all(not decision.keep and decision.target for decision in found.collect)


@thorough
@given(worlds())
def test_nothing_younger_undated_or_from_the_future_is_collected(world: dict[str, Any]) -> None:
    older_than = world["policy"].older_than
    for decision in plan(**world).collect:
        candidate = decision.candidate
        since = candidate.deleted_at or candidate.first_seen_at
        if candidate.deleted_at is not None or older_than:
            assert since is not None
            assert NOW - since >= older_than


@thorough
@given(worlds())
def test_nothing_held_is_collected(world: dict[str, Any]) -> None:
    for decision in plan(**world).collect:
        candidate, target = decision.candidate, decision.target
        assert target is not None
        for hold, place in world["holds"]:
            if hold.until is not None and hold.until <= NOW:
                continue
            assert hold.entity_id not in (candidate.id, f"experiment/{candidate.experiment_id}")
            if place is not None:
                assert not lies_in(place, target.place)
                assert hold.reach is Reach.WITHIN or not lies_in(target.place, place)
            elif hold.uri is not None:
                assert candidate.id not in hold.uri.split("/")


@thorough
@given(worlds())
def test_no_target_is_a_root_or_out_of_scope(world: dict[str, Any]) -> None:
    for decision in plan(**world).collect:
        candidate, target = decision.candidate, decision.target
        assert target is not None
        assert target.root != target.place
        assert lies_in(target.place, target.root)
        assert target.place.path.endswith(f"/{candidate.id}/artifacts/")
        assert not any(lies_in(root, target.place) for root in world["roots"])
        site = SITES[candidate.location or ""]
        assert isinstance(site, Site)
        assert any(lies_in(target.place, place) for place in (site.true, *SCOPE.roots))


@thorough
@given(worlds(), st.data())
def test_a_hold_never_adds_to_what_is_collected(world: dict[str, Any], data: st.DataObject) -> None:
    more = {**world, "holds": [*world["holds"], data.draw(holds(world["candidates"]))]}
    assert set(ids(plan(**more).collect)) <= set(ids(plan(**world).collect))


@thorough
@given(worlds(), st.sampled_from(AGES))
def test_a_greater_age_never_adds_to_what_is_collected(world: dict[str, Any], age: Any) -> None:
    policy = world["policy"]
    longer = {**world, "policy": replace(policy, older_than=policy.older_than + age)}
    assert set(ids(plan(**longer).collect)) <= set(ids(plan(**world).collect))


@thorough
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_and_holds_decides_nothing(
    world: dict[str, Any], random: Any
) -> None:
    candidates, held = list(world["candidates"]), list(world["holds"])
    random.shuffle(candidates)
    random.shuffle(held)
    shuffled = {**world, "candidates": candidates, "holds": held}
    assert sorted(ids(plan(**shuffled).collect)) == sorted(ids(plan(**world).collect))


@thorough
@given(worlds())
def test_each_candidate_is_decided_by_itself(world: dict[str, Any]) -> None:
    whole = plan(**world)
    pages = [plan(**{**world, "candidates": [each]}) for each in world["candidates"]]
    assert whole.collect == tuple(one for page in pages for one in page.collect)
    assert whole.keep == tuple(one for page in pages for one in page.keep)


# A root that nobody looked at -------------------------------------------------------------------


def test_a_root_of_which_nothing_is_known_keeps_its_trees_and_stops_no_others() -> None:
    moved = replace(RUN, id="moved", uri="/attic/moved/artifacts")
    scope = replace(WORLD["scope"], roots=(ATTIC,))
    found = plan(candidates=[moved, RUN], scope=scope)
    assert ids(found.collect) == ["run"]
    assert [keep.reason for keep in found.keep[0].keep] == [KeepReason.UNREACHABLE]
