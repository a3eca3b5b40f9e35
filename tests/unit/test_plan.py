"""The plan: each candidate is collected or has reasons, and nothing that is needed is collected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from gcd.durations import parse_duration
from gcd.errors import ExtraMissing, UnsafeTarget, UsageError
from gcd.model import (
    Candidate,
    Contents,
    Hold,
    KeepReason,
    Kind,
    Place,
    Probe,
    Reach,
    Root,
    Target,
)
from gcd.planning.gate import Gate
from gcd.planning.guard import Scope, Site
from gcd.planning.holds import HoldIndex
from gcd.planning.plan import (
    PRECEDENCE,
    Decision,
    Facts,
    Plan,
    decide,
    locate,
    make_plan,
    ranked,
    sentence,
)
from gcd.planning.policy import Keep, Policy, RunsOfLiveModels
from tests.strategies import AGES, FOLDERS, NOW, PATTERNS, SCOPE, SITES, holds, worlds

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
MODEL = replace(
    RUN, kind=Kind.LOGGED_MODEL, id="m-model", uri=f"{LOCATION}/models/m-model/artifacts"
)
TRACE = replace(
    RUN,
    kind=Kind.TRACE,
    id="tr-1",
    uri=f"{LOCATION}/traces/tr-1/artifacts",
    archive_uri="/attic/1/traces/tr-1/artifacts",
)
EXPERIMENT = replace(RUN, kind=Kind.EXPERIMENT, id="1", uri=None, contents=Contents())
JOB = Candidate(Kind.JOB, "job", "", "3@None", RUN.deleted_at, uri=None, location=None)
WORLD: dict[str, Any] = {
    "candidates": [RUN],
    "holds": [],
    "sites": {LOCATION: Site(HOME, HOME, ROOT)},
    "roots": {ROOT: GOOD},
    "policy": Policy(older_than=timedelta(days=30)),
    "scope": Scope(destination=None, hosts=frozenset(), roots=()),
    "gate": Gate(),
    "now": NOW,
    "are_members": False,
}


def facts(world: Mapping[str, Any]) -> Facts:
    return Facts(
        holds=HoldIndex.build(world["holds"], world["now"]),
        targets={
            each.id: locate(each, world["sites"], world["scope"]) for each in world["candidates"]
        },
        roots=world["roots"],
        policy=world["policy"],
        gate=world["gate"],
        now=world["now"],
        are_members=world["are_members"],
    )


def plan(**changes: Any) -> Plan:
    world = {**WORLD, **changes}
    return make_plan(world["candidates"], facts(world))


def decided(candidate: Candidate = RUN, **changes: Any) -> Decision:
    return decide(candidate, facts({**WORLD, **changes, "candidates": [candidate]}))


def reasons(candidate: Candidate = RUN, **changes: Any) -> list[KeepReason]:
    return [keep.reason for keep in decided(candidate, **changes).keep]


def ids(decisions: tuple[Decision, ...]) -> list[str]:
    return [decision.candidate.id for decision in decisions]


# One candidate ----------------------------------------------------------------------------------


def test_a_run_that_nothing_speaks_for_is_collected_with_its_tree() -> None:
    assert decided() == Decision(RUN, (), (Target(TREE, ROOT),))


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
    assert decision.targets == (Target(TREE, ROOT),)


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
    assert reasons(replace(RUN, feeds=("m-live",))) == [KeepReason.FEEDS_LIVE_MODEL]


def test_without_a_location_there_is_no_safe_target() -> None:
    decision = decided(replace(RUN, location=None))
    assert decision.targets == ()
    assert [keep.reason for keep in decision.keep] == [KeepReason.UNSAFE_TARGET]


def test_a_location_that_cannot_be_used_keeps_it_for_that_reason() -> None:
    keep = Keep(KeepReason.SHARED, "it lies inside the files of run 2")
    assert decided(sites={LOCATION: keep}) == Decision(RUN, (keep,))


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
    busy = replace(RUN, deleted_at=NOW, is_running=True, feeds=("m-live",))
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
    assert decision == Decision(moved, (), (expected,))
    gone = replace(attic, probe=Probe(is_there=False))
    assert reasons(moved, scope=scope, roots={ROOT: GOOD, ATTIC: gone}) == [KeepReason.UNREACHABLE]


def test_locate_is_the_targets_or_why_there_are_none() -> None:
    sites, scope = WORLD["sites"], WORLD["scope"]
    assert locate(RUN, sites, scope) == (Target(TREE, ROOT),)
    found = locate(replace(RUN, id=".."), sites, scope)
    assert isinstance(found, Keep)
    assert found.reason is KeepReason.UNSAFE_TARGET


def test_an_error_is_told_with_its_hint_if_it_has_one() -> None:
    assert sentence(UnsafeTarget("it is a root")) == "it is a root"
    assert sentence(ExtraMissing("no library", hint="pip install x")) == "no library; pip install x"


# Other kinds ------------------------------------------------------------------------------------

ON_ATTIC = {"scope": replace(SCOPE, roots=(ATTIC,))}
ATTIC_GOOD = Root(ATTIC, Probe(is_there=True, is_named_found=True))
ARCHIVE = Place("file", "", "/attic/1/traces/tr-1/artifacts/")
PAYLOAD = Place("file", "", "/data/mlruns/1/traces/tr-1/artifacts/")


def test_a_logged_model_is_collected_with_its_tree() -> None:
    place = Place("file", "", "/data/mlruns/1/models/m-model/artifacts/")
    assert decided(MODEL) == Decision(MODEL, (), (Target(place, ROOT),))


def test_an_archived_trace_is_collected_with_both_its_trees() -> None:
    decision = decided(TRACE, **ON_ATTIC, roots={ROOT: GOOD, ATTIC: ATTIC_GOOD})
    assert decision == Decision(TRACE, (), (Target(PAYLOAD, ROOT), Target(ARCHIVE, ATTIC)))


@pytest.mark.parametrize("tree", [PAYLOAD, ARCHIVE])
def test_a_hold_on_one_of_its_trees_keeps_a_trace_with_all_of_them(tree: Place) -> None:
    live = Hold(KeepReason.SHARED, "run 2 has its files there")
    decision = decided(
        TRACE, **ON_ATTIC, roots={ROOT: GOOD, ATTIC: ATTIC_GOOD}, holds=[(live, tree)]
    )
    assert decision.keep == (Keep(live.reason, live.because),)
    assert len(decision.targets) == 2


@pytest.mark.parametrize("lost", [ROOT, ATTIC])
def test_each_of_the_roots_of_a_trace_must_be_fit(lost: Place) -> None:
    known = {ROOT: GOOD, ATTIC: ATTIC_GOOD, lost: Root(lost, Probe(is_there=False))}
    assert reasons(TRACE, **ON_ATTIC, roots=known) == [KeepReason.UNREACHABLE]


def test_an_archive_where_nothing_may_be_deleted_keeps_a_trace() -> None:
    decision = decided(TRACE)
    assert [keep.reason for keep in decision.keep] == [KeepReason.UNSAFE_TARGET]
    assert decision.targets == ()


def test_an_empty_experiment_is_collected_with_its_folder() -> None:
    assert decided(EXPERIMENT) == Decision(EXPERIMENT, (), (Target(HOME, ROOT),))


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (replace(EXPERIMENT, contents=Contents(live_runs=1)), KeepReason.HAS_LIVE_CHILDREN),
        (replace(EXPERIMENT, contents=Contents(live_model="m")), KeepReason.HAS_LIVE_CHILDREN),
        (replace(EXPERIMENT, contents=Contents(guarding="judge")), KeepReason.IN_USE),
        (replace(EXPERIMENT, id="0"), KeepReason.DEFAULT_EXPERIMENT),
        (replace(EXPERIMENT, deleted_at=NOW), KeepReason.TOO_YOUNG),
        (replace(EXPERIMENT, deleted_at=None), KeepReason.UNDATED),
        (replace(EXPERIMENT, location="/home/somebody"), KeepReason.UNSAFE_TARGET),
        (replace(EXPERIMENT, location=None), KeepReason.UNSAFE_TARGET),
    ],
)
def test_an_experiment_stays_for_what_it_is_and_what_is_in_it(
    candidate: Candidate, reason: KeepReason
) -> None:
    assert reasons(candidate, sites={**WORLD["sites"], **SITES}) == [reason]


def test_an_empty_experiment_needs_no_root_what_is_in_it_does() -> None:
    lost = {ROOT: Root(ROOT, Probe(is_there=False))}
    assert reasons(EXPERIMENT, roots=lost) == []
    assert reasons(RUN, roots=lost) == [KeepReason.UNREACHABLE]


def test_files_in_the_folder_of_an_experiment_are_not_its_own_and_do_not_keep_it() -> None:
    """The folder is only removed when it is empty."""
    live = Hold(KeepReason.SHARED, "run 2 has its files there")
    assert reasons(EXPERIMENT, holds=[(live, TREE), (live, HOME)]) == []


def test_an_experiment_that_is_held_stays() -> None:
    tag = Hold(KeepReason.HELD, "tag gcd.hold", entity_id="experiment/1")
    assert reasons(EXPERIMENT, holds=[(tag, None)]) == [KeepReason.HELD]
    assert reasons(replace(EXPERIMENT, id="10", experiment_id="10"), holds=[(tag, None)]) == []


def test_a_job_has_no_files_and_needs_no_root() -> None:
    assert decided(JOB, sites={}, roots={}) == Decision(JOB, (), ())
    assert reasons(replace(JOB, deleted_at=NOW), sites={}, roots={}) == [KeepReason.TOO_YOUNG]


def test_what_people_decided_and_what_is_in_use_is_told_before_age_and_place() -> None:
    busy = replace(
        EXPERIMENT,
        id="0",
        experiment="prod",
        deleted_at=NOW,
        contents=Contents(live_runs=1, guarding="judge"),
    )
    tag = Hold(KeepReason.HELD, "tag gcd.hold", entity_id="experiment/1")
    policy = replace(WORLD["policy"], exclude=("prod",))
    assert reasons(busy, holds=[(tag, None)], policy=policy) == [
        KeepReason.DEFAULT_EXPERIMENT,
        KeepReason.EXCLUDED,
        KeepReason.HELD,
        KeepReason.IN_USE,
        KeepReason.TOO_YOUNG,
        KeepReason.HAS_LIVE_CHILDREN,
    ]


# What goes with its experiment ------------------------------------------------------------------


def test_a_member_is_judged_with_its_experiment_and_not_by_its_own_state() -> None:
    policy = replace(WORLD["policy"], exclude=("prod",))
    for member in (MODEL, replace(TRACE, archive_uri=None)):
        alone = replace(member, deleted_at=None, experiment="prod")
        assert reasons(alone, policy=policy) == [KeepReason.EXCLUDED, KeepReason.UNDATED]
        assert reasons(alone, policy=policy, are_members=True) == []


def test_a_member_that_came_after_its_experiment_was_judged_stays() -> None:
    assert reasons(replace(TRACE, archive_uri=None, deleted_at=NOW), are_members=True) == [
        KeepReason.TOO_YOUNG
    ]


def test_a_member_that_is_held_or_whose_files_cannot_go_stays() -> None:
    version = Hold(KeepReason.REGISTERED, "version 3 of classifier", entity_id="m-model")
    lost = {ROOT: Root(ROOT, Probe(is_there=False))}
    found = reasons(MODEL, are_members=True, holds=[(version, None)], roots=lost)
    assert found == [KeepReason.REGISTERED, KeepReason.UNREACHABLE]
    odd = replace(MODEL, uri="/elsewhere/models/m-model/artifacts")
    assert reasons(odd, are_members=True) == [KeepReason.UNSAFE_TARGET]


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
    found = plan(candidates=[*numbered(7)])
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
    before = plan(candidates=[*numbered(4)])
    keep = Keep(KeepReason.UNSAFE_TARGET, "a symbolic link")
    after = before.without({"run2": keep, "nobody": keep})
    assert ids(after.collect) == ["run1"]
    assert ids(after.keep) == ["run0", "run3", "run2"]
    assert after.keep[-1] == replace(before.collect[1], keep=(keep,))
    assert ids(before.collect) == ["run1", "run2"]


def test_a_later_look_that_finds_nothing_changes_nothing() -> None:
    before = plan(candidates=[*numbered(4)])
    assert before.without({}) == before


def test_a_later_look_leaves_the_reasons_of_what_was_kept() -> None:
    before = plan(candidates=[*numbered(1)])
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

    quick = settings(
        max_examples=3000, derandomize=True, deadline=None, database=None, phases=[Phase.generate]
    )
    assert find(worlds(), is_parted, settings=quick)
    assert find(worlds(), hangs_on_a_tree, settings=quick)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_is_collected_in_some_of_these_worlds(kind: Kind) -> None:
    def is_collected(world: dict[str, Any]) -> bool:
        return any(decision.candidate.kind is kind for decision in plan(**world).collect)

    def is_a_member(world: dict[str, Any]) -> bool:
        return world["are_members"] and is_collected(world)

    def is_archived(world: dict[str, Any]) -> bool:
        return any(len(set(decision.targets)) == 2 for decision in plan(**world).collect)

    quick = settings(max_examples=5000, deadline=None, database=None, phases=[Phase.generate])
    assert find(worlds(), is_collected, settings=quick)
    if kind in (Kind.LOGGED_MODEL, Kind.TRACE):
        assert find(worlds(), is_a_member, settings=quick)
    if kind is Kind.TRACE:
        assert find(worlds(), is_archived, settings=quick)


@thorough
@given(worlds())
def test_every_candidate_is_either_collected_or_kept_for_a_reason(world: dict[str, Any]) -> None:
    found = plan(**world)
    assert sorted(ids(found.collect) + ids(found.keep)) == sorted(c.id for c in world["candidates"])
    assert all(decision.keep for decision in found.keep)
    assert not any(decision.keep for decision in found.collect)


@thorough
@given(worlds())
def test_what_is_collected_has_each_of_its_trees(world: dict[str, Any]) -> None:
    for decision in plan(**world).collect:
        candidate = decision.candidate
        is_elsewhere_too = candidate.archive_uri not in (None, candidate.uri)
        expected = 0 if candidate.kind is Kind.JOB else 1 + is_elsewhere_too
        assert len(set(decision.targets)) == expected


def asked_for(candidate: Candidate, policy: Policy) -> list[timedelta]:
    """The ages that an experiment's tag and the patterns of its name ask for."""
    found = [age for pattern, age in policy.ages if candidate.experiment in PATTERNS[pattern]]
    return found + ([parse_duration(candidate.own_age)] if candidate.own_age is not None else [])


@thorough
@given(worlds())
def test_nothing_younger_undated_or_from_the_future_is_collected(world: dict[str, Any]) -> None:
    policy = world["policy"]
    for decision in plan(**world).collect:
        candidate = decision.candidate
        asked = asked_for(candidate, policy)
        is_shortened = bool(asked) and policy.shortest is not None
        general = min(policy.older_than, policy.shortest) if is_shortened else policy.older_than
        age = max([general, *asked])
        since = candidate.deleted_at
        if since is None and not world["are_members"] and age:
            since = candidate.first_seen_at
            assert since is not None
        if since is not None:
            assert NOW - since >= age


@thorough
@given(worlds())
def test_a_tag_that_nobody_can_read_keeps_all_of_its_experiment(world: dict[str, Any]) -> None:
    for decision in plan(**world).collect:
        try:
            asked_for(decision.candidate, world["policy"])
        except UsageError:
            pytest.fail(f"collected in spite of the tag {decision.candidate.own_age!r}")


@thorough
@given(worlds())
def test_nothing_excluded_inhabited_or_feeding_is_collected(world: dict[str, Any]) -> None:
    policy = world["policy"]
    for decision in plan(**world).collect:
        candidate = decision.candidate
        matched = [
            pattern for pattern in policy.exclude if candidate.experiment in PATTERNS[pattern]
        ]
        assert not matched or world["are_members"]
        assert candidate.contents in (None, Contents())
        assert (candidate.kind, candidate.id) != (Kind.EXPERIMENT, "0")
        assert not candidate.feeds or policy.runs_of_live_models is RunsOfLiveModels.COLLECT_RUN


@thorough
@given(worlds())
def test_nothing_held_is_collected(world: dict[str, Any]) -> None:
    for decision in plan(**world).collect:
        candidate = decision.candidate
        for hold, place in world["holds"]:
            if hold.until is not None and hold.until <= NOW:
                continue
            assert hold.entity_id not in (candidate.id, f"experiment/{candidate.experiment_id}")
            if hold.uri is not None and place is None:
                assert candidate.id not in hold.uri.split("/")
            if place is None or candidate.kind is Kind.EXPERIMENT:
                continue
            for target in decision.targets:
                assert not lies_in(place, target.place)
                assert hold.reach is Reach.WITHIN or not lies_in(target.place, place)


@thorough
@given(worlds())
def test_no_target_is_a_root_or_out_of_scope(world: dict[str, Any]) -> None:
    for decision in plan(**world).collect:
        candidate = decision.candidate
        for target in decision.targets:
            site = SITES[candidate.location or ""]
            assert isinstance(site, Site)
            assert target.root != target.place
            assert lies_in(target.place, target.root)
            assert not any(lies_in(root, target.place) for root in world["roots"])
            assert any(lies_in(target.place, place) for place in (site.true, *SCOPE.roots))
            if candidate.kind is Kind.EXPERIMENT:
                assert target.place.path.endswith(f"/{candidate.id}/")
            else:
                tail = f"/{FOLDERS[candidate.kind]}{candidate.id}/artifacts/"
                assert target.place.path.endswith(tail)


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
@given(worlds(), st.sampled_from(sorted(PATTERNS)))
def test_an_exclusion_never_adds_to_what_is_collected(world: dict[str, Any], pattern: str) -> None:
    policy = replace(world["policy"], exclude=(*world["policy"].exclude, pattern))
    assert set(ids(plan(**{**world, "policy": policy}).collect)) <= set(ids(plan(**world).collect))


@thorough
@given(worlds(), st.sampled_from(sorted(PATTERNS)), st.sampled_from(AGES))
def test_an_age_of_an_experiments_own_only_adds_where_a_shortest_is_allowed(
    world: dict[str, Any], pattern: str, age: timedelta
) -> None:
    without = replace(world["policy"], shortest=None)
    more = replace(without, ages=(*without.ages, (pattern, age)))
    before, after = (plan(**{**world, "policy": policy}) for policy in (without, more))
    assert set(ids(after.collect)) <= set(ids(before.collect))


@thorough
@given(worlds())
def test_what_is_told_most_tellingly_ranks_first(world: dict[str, Any]) -> None:
    for decision in plan(**world).keep:
        ranks = [PRECEDENCE.index(keep.reason) for keep in decision.keep]
        assert ranks == sorted(ranks)
        assert len(set(decision.keep)) == len(decision.keep)


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
