"""Whether a tree without files may be taken for one whose files are gone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcd.errors import FuseBlown
from gcd.model import Candidate, KeepReason, Kind, Place, Target
from gcd.planning.emptiness import FEWEST, Look, Share, judge_look
from gcd.planning.plan import Decision

ROOT = Place("file", "", "/data/")
HOME = Place("file", "", "/data/1/")
TREE = Target(Place("file", "", "/data/1/r/artifacts/"), ROOT)
TAG = "its tag mlflow.log-model.history"

looks = st.builds(
    Look,
    target=st.just(TREE),
    home=st.just(HOME),
    witness=st.none() | st.just(TAG),
    has_files=st.none() | st.booleans(),
    is_home_proved=st.booleans(),
    hollow=st.none() | st.just(HOME),
    elsewhere=st.none() | st.just(Place("file", "", "/old/1/r/artifacts/")),
)


def kept(look: Look) -> str:
    keep = judge_look(look, collect_absent=False)
    assert keep is not None
    assert keep.reason is KeepReason.UNREACHABLE
    return keep.detail


# Single trees -----------------------------------------------------------------------------------


def test_a_tree_that_nothing_says_had_files_may_be_missing() -> None:
    assert judge_look(Look(TREE, HOME), collect_absent=False) is None


def test_a_missing_tree_with_a_witness_needs_a_proved_location() -> None:
    missed = Look(TREE, HOME, witness=TAG, has_files=False)
    detail = kept(missed)
    for part in (TAG, "file:///data/1/r/artifacts/", "--accept-root file:///data/1/", "mount"):
        assert part in detail
    assert "--absent-trees collect" in detail
    proved = Look(TREE, HOME, witness=TAG, has_files=False, is_home_proved=True)
    assert judge_look(proved, collect_absent=False) is None


def test_an_empty_folder_may_be_a_mount_point_whatever_the_database_says() -> None:
    assert "file:///data/1/ is an empty folder" in kept(Look(TREE, HOME, hollow=HOME))


def test_files_in_another_place_are_named() -> None:
    other = Place("file", "", "/old/r/artifacts/")
    look = Look(TREE, HOME, TAG, has_files=False, is_home_proved=True, elsewhere=other)
    assert "file:///old/r/artifacts/" in kept(look)


def test_a_bucket_is_not_mounted() -> None:
    root, home = Place("s3", "b", ""), Place("s3", "b", "1/")
    tree = Target(Place("s3", "b", "1/r/artifacts/"), root)
    detail = kept(Look(tree, home, witness=TAG, has_files=False))
    assert "mount" not in detail
    assert "correct the destination" in detail


@given(looks)
def test_files_that_are_there_keep_nothing_and_a_person_is_believed(look: Look) -> None:
    assert judge_look(look, collect_absent=True) is None
    if look.has_files:
        assert judge_look(look, collect_absent=False) is None


@given(looks)
def test_what_is_collected_without_its_files_is_proved(look: Look) -> None:
    if judge_look(look, collect_absent=False) is None and look.is_missed:
        assert look.is_home_proved
        assert look.hollow is None
        assert look.elsewhere is None


# Many trees -------------------------------------------------------------------------------------


def decision(
    number: int, *, is_empty: bool, root: Place = ROOT, witness: str | None = TAG
) -> Decision:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    candidate = Candidate(Kind.RUN, f"r{number}", "1", "deleted@1", at, None, None)
    tree = Target(Place(root.scheme, root.authority, f"{root.path}1/r{number}/artifacts/"), root)
    return Decision(candidate, (), (tree,), witness, (tree,) if is_empty else ())


def share(empty: int, filled: int, *more: Decision) -> Share:
    found = Share()
    for number in range(empty + filled):
        found.add(decision(number, is_empty=number < empty))
    for each in more:
        found.add(each)
    return found


@given(st.integers(0, 30), st.integers(0, 30))
def test_more_than_half_of_enough_trees_stop_the_cycle(empty: int, filled: int) -> None:
    is_wrong = empty + filled >= FEWEST and empty > filled
    if is_wrong:
        with pytest.raises(FuseBlown) as raised:
            share(empty, filled).check()
        assert f"{empty:,} of {empty + filled:,} trees" in raised.value.message
        assert "file:///data/" in raised.value.message
        assert "file:///data/1/r0/artifacts/" in raised.value.message
        assert "--absent-trees collect" in str(raised.value.hint)
    else:
        share(empty, filled).check()


def test_trees_without_a_witness_do_not_count() -> None:
    others = [decision(n, is_empty=False, witness=None) for n in range(100)]
    with pytest.raises(FuseBlown):
        share(6, 4, *others).check()
    share(5, 5, *others).check()


def test_one_root_that_is_wrong_is_found_beside_a_larger_one() -> None:
    other = Place("file", "", "/other/")
    right = [decision(n, is_empty=False, root=other) for n in range(100)]
    with pytest.raises(FuseBlown) as raised:
        share(10, 0, *right).check()
    assert "file:///other/" not in raised.value.message


def test_many_small_roots_count_together() -> None:
    roots = [Place("file", "", f"/exp{n}/") for n in range(12)]
    with pytest.raises(FuseBlown):
        share(0, 0, *(decision(1, is_empty=True, root=root) for root in roots)).check()
