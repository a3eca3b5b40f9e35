"""What stays because of what else stays: the least such set, over any links between experiments."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hypothesis import given
from hypothesis import strategies as st

from gcd.model import KeepReason
from gcd.planning.closure import staying
from gcd.planning.policy import Keep

Links = Mapping[int, frozenset[int]]
HELD = Keep(KeepReason.HELD, "tag")
NEEDED = Keep(KeepReason.HAS_LIVE_CHILDREN, "needed")

nodes = st.integers(0, 9)
links = st.dictionaries(nodes, st.frozensets(nodes, max_size=4), max_size=10)
held = st.frozensets(nodes, max_size=4)


def stays(held: Collection[int], links: Links) -> dict[int, Keep]:
    """What stays where some are held and each keeps those that it is linked to."""

    def kept_by(found: Collection[int]) -> dict[int, Keep]:
        return {other: NEEDED for each in found for other in links.get(each, ())}

    return staying(dict.fromkeys(held, HELD), kept_by)


@given(held, links)
def test_what_stays_is_closed_and_has_a_reason(held: frozenset[int], links: Links) -> None:
    found = stays(held, links)
    assert held <= set(found)
    assert all(found[each] == HELD for each in held)
    for each in found:
        assert links.get(each, frozenset()) <= set(found)


@given(held, links)
def test_nothing_stays_that_nothing_keeps(held: frozenset[int], links: Links) -> None:
    found = set(stays(held, links))
    for each in found - held:
        assert any(each in links.get(other, ()) for other in found - {each})
    if not held:
        assert found == set(), "a circle that nothing holds goes as a whole"


@given(held, held, links)
def test_another_hold_never_lets_more_go(
    one: frozenset[int], more: frozenset[int], links: Links
) -> None:
    assert set(stays(one, links)) <= set(stays(one | more, links))


@given(held, links, links)
def test_another_link_never_lets_more_go(held: frozenset[int], one: Links, more: Links) -> None:
    both = {each: one.get(each, frozenset()) | more.get(each, frozenset()) for each in range(10)}
    assert set(stays(held, one)) <= set(stays(held, both))


@given(held, links)
def test_each_is_asked_for_once(held: frozenset[int], links: Links) -> None:
    asked: list[int] = []

    def kept_by(found: Collection[int]) -> dict[int, Keep]:
        asked.extend(found)
        return {other: NEEDED for each in found for other in links.get(each, ())}

    found = staying(dict.fromkeys(held, HELD), kept_by)
    assert sorted(asked) == sorted(found)


def test_chains_go_to_their_end_and_circles_end() -> None:
    chain = {each: frozenset({each + 1}) for each in range(1000)}
    assert len(stays({0}, chain)) == 1001
    assert set(stays({990}, chain)) == set(range(990, 1001))
    circle = {**chain, 1000: frozenset({0})}
    assert len(stays({500}, circle)) == 1001
    assert stays(set(), circle) == {}
