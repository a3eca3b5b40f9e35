"""Whether a storage root is the right one, and whether files can be deleted there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gcd.model import KeepReason, Place, Probe, Root
from gcd.planning.gate import Gate, check_evidence, check_health, check_root, failures_allowed

PLACE = Place("file", "", "/data/mlruns/")
GATE = Gate()
LENIENT = Gate(collect_absent=True)
EMPTY = Probe(is_there=True, identity="disk")
ABSENT = Probe(is_there=False)
NAMED = Probe(is_there=True, identity="disk", is_named_found=True)
TRUSTED = Root(PLACE, NAMED)


def told(root: Root, gate: Gate = GATE) -> tuple[KeepReason, str]:
    keep = check_root(root, gate)
    assert keep is not None
    return keep.reason, keep.detail


# Evidence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "root",
    [
        Root(PLACE, NAMED),
        Root(PLACE, EMPTY, remembered_identity="disk"),
        Root(PLACE, EMPTY, is_accepted=True),
        Root(PLACE, EMPTY, remembered_identity="disk", is_accepted=True),
        Root(PLACE, NAMED, remembered_identity="disk"),
    ],
)
def test_any_evidence_is_enough(root: Root) -> None:
    assert check_evidence(root, GATE) is None
    assert check_root(root, GATE) is None


def test_an_empty_folder_that_nobody_knows_is_an_unmounted_disk() -> None:
    reason, detail = told(Root(PLACE, EMPTY))
    assert reason is KeepReason.UNREACHABLE
    assert "is it mounted?" in detail
    assert "`gcd doctor --accept-root file:///data/mlruns/`" in detail


@pytest.mark.parametrize("is_accepted", [False, True])
@pytest.mark.parametrize("identity", ["another", None])
@pytest.mark.parametrize("gate", [GATE, LENIENT])
@pytest.mark.parametrize("probe", [EMPTY, NAMED], ids=["empty", "backup"])
def test_another_disk_than_before_is_refused(
    is_accepted: bool, identity: str | None, gate: Gate, probe: Probe
) -> None:
    """A backup of the right one too, which has the trees that the database names."""
    root = Root(
        PLACE,
        replace(probe, identity=identity),
        remembered_identity="disk",
        is_accepted=is_accepted,
    )
    reason, detail = told(root, gate)
    assert reason is KeepReason.UNREACHABLE
    assert "another disk or folder than before" in detail
    assert "--accept-root file:///data/mlruns/" in detail


@pytest.mark.parametrize("gate", [GATE, LENIENT])
@pytest.mark.parametrize(
    "root",
    [
        Root(PLACE, ABSENT, remembered_identity="disk"),
        Root(PLACE, ABSENT, is_accepted=True),
        Root(PLACE, ABSENT, remembered_identity="disk", is_accepted=True),
    ],
)
def test_a_root_that_was_there_once_must_be_there(root: Root, gate: Gate) -> None:
    assert told(root, gate) == (
        KeepReason.UNREACHABLE,
        "file:///data/mlruns/ is not there: mount it",
    )


def test_a_root_that_nobody_ever_saw_says_how_it_may_be_absent() -> None:
    reason, detail = told(Root(PLACE, ABSENT))
    assert reason is KeepReason.UNREACHABLE
    assert "mount it" in detail
    assert "--absent-roots collect" in detail


def test_a_root_that_cannot_be_seen_says_why() -> None:
    hidden = Probe(is_there=False, problem="permission denied")
    assert told(Root(PLACE, hidden)) == (KeepReason.UNREACHABLE, "permission denied")


@pytest.mark.parametrize("probe", [ABSENT, EMPTY])
def test_absent_roots_may_be_collected_where_nothing_was_ever_known(probe: Probe) -> None:
    assert check_root(Root(PLACE, probe), LENIENT) is None


def test_absent_roots_are_not_collected_where_something_hides_them() -> None:
    hidden = Probe(is_there=False, problem="it is a symbolic link")
    assert told(Root(PLACE, hidden), LENIENT) == (
        KeepReason.ROOT_UNHEALTHY,
        "it is a symbolic link",
    )


# Health -----------------------------------------------------------------------------------------


def test_a_root_where_nothing_can_be_deleted_is_unhealthy() -> None:
    readonly = replace(TRUSTED, probe=replace(NAMED, problem="mounted read-only"))
    assert told(readonly) == (KeepReason.ROOT_UNHEALTHY, "mounted read-only")


def test_before_a_tree_was_ever_deleted_one_failure_is_enough() -> None:
    assert failures_allowed(TRUSTED, GATE) == 1
    assert check_root(replace(TRUSTED, failures=0), GATE) is None
    reason, detail = told(replace(TRUSTED, failures=1, error="permission denied"))
    assert reason is KeepReason.ROOT_UNHEALTHY
    assert detail == "the last 1 deletions below file:///data/mlruns/ failed: permission denied"


def test_a_proved_root_may_fail_until_the_gate_says_stop() -> None:
    proved = replace(TRUSTED, is_proved=True)
    gate = Gate(max_failures=5)
    assert failures_allowed(proved, gate) == 5
    assert check_root(replace(proved, failures=4), gate) is None
    assert told(replace(proved, failures=5), gate)[0] is KeepReason.ROOT_UNHEALTHY
    assert told(replace(proved, failures=6), gate)[0] is KeepReason.ROOT_UNHEALTHY


def test_failures_without_a_message_are_told_without_one() -> None:
    _, detail = told(replace(TRUSTED, failures=2))
    assert detail == "the last 2 deletions below file:///data/mlruns/ failed"


def test_a_backlog_stops_purges_only_above_its_limit() -> None:
    assert check_root(replace(TRUSTED, backlog=1000), GATE) is None
    reason, detail = told(replace(TRUSTED, backlog=1001))
    assert reason is KeepReason.ROOT_UNHEALTHY
    assert "1,001 trees below file:///data/mlruns/" in detail


def test_a_wrong_root_is_told_before_an_unhealthy_one() -> None:
    both = Root(PLACE, replace(EMPTY, problem="mounted read-only"), failures=9)
    assert told(both)[0] is KeepReason.UNREACHABLE
    unhealthy = check_health(both, GATE)
    assert unhealthy is not None
    assert unhealthy.reason is KeepReason.ROOT_UNHEALTHY


def test_being_accepted_or_absent_heals_nothing() -> None:
    sick = Root(PLACE, EMPTY, is_accepted=True, failures=1)
    assert told(sick)[0] is KeepReason.ROOT_UNHEALTHY
    assert told(replace(sick, is_accepted=False), LENIENT)[0] is KeepReason.ROOT_UNHEALTHY
