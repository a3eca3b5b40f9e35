"""Whose a place is: which mark counts, what becomes of a copy, and what cannot be told keeps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gcd.artifacts.base import MARK
from gcd.artifacts.registry import Backend, Registry
from gcd.claims import Claims
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError
from gcd.model import Identity, Kind, Ownership, Place, Target
from gcd.planning.ownership import check_claim, make_mark, parse_mark
from gcd.testing import MemoryArtifactStore

NOW = datetime(2026, 1, 2, tzinfo=UTC)
OURS = Identity("a" * 32, "the SQLite database a/ml.db")
RUN = "1/0123456789abcdef0123456789abcdef/artifacts/"


class Store(MemoryArtifactStore):
    """One whose marks fail as they are told to, by key."""

    def __init__(self) -> None:
        super().__init__("bucket")
        self.reading: dict[str, ArtifactError] = {}
        self.writing: ArtifactError | None = None
        self.asked: list[str] = []

    def read_mark(self, root: Place) -> bytes | None:
        self.asked.append(root.path)
        if error := self.reading.get(root.path):
            raise error
        return super().read_mark(root)

    def write_mark(self, root: Place, data: bytes, *, before: bytes | None) -> bool:
        if self.writing is not None:
            raise self.writing
        return super().write_mark(root, data, before=before)


class Plain:
    """A store that has no marks."""

    def __init__(self) -> None:
        inner = MemoryArtifactStore("bucket")
        for name in ("resolve", "storage_root", "probe", "examine", "measure"):
            setattr(self, name, getattr(inner, name))
        self.delete, self.prune, self.flush = inner.delete, inner.prune, inner.flush


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def registry(store: Store) -> Registry:
    made = Registry({"memory": Backend("gcd.testing:MemoryArtifactStore", None, "gcd")})
    made._stores["memory"] = store
    return made


def place(path: str) -> Place:
    return Place("memory", "bucket", path)


def target(path: str = "ml/" + RUN, root: str = "") -> Target:
    return Target(place(path), place(root))


def put(store: Store, path: str, identity: Identity) -> None:
    assert identity.id is not None
    store.put("bucket", path + MARK, make_mark(identity.id, identity.name, NOW))


def claim_of(claims: Claims, tree: Target | None = None, kind: Kind = Kind.RUN):  # type: ignore[no-untyped-def]
    return claims.of(kind, "1", tree or target())


OTHER = Identity("b" * 32, "the postgresql database other")


def test_the_first_collection_marks_what_mlflow_uses_of_a_bucket(
    store: Store, registry: Registry
) -> None:
    claims = Claims(registry, OURS)
    claim = claim_of(claims)
    assert (claim.owner, claim.place) == (Ownership.FREE, place("ml/"))
    assert store.keys("bucket") == set()
    assert claims.mark(claim, NOW).owner is Ownership.OURS
    assert store.keys("bucket") == {"ml/" + MARK}
    mark = parse_mark(store.buckets["bucket"]["ml/" + MARK].data)
    assert (mark.database, mark.name) == (OURS.id, OURS.name)
    assert claim_of(claims).owner is Ownership.OURS
    beside = claim_of(claims, target("team-b/" + RUN))
    assert (beside.owner, beside.place) == (Ownership.FREE, place("team-b/"))


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        (Kind.RUN, "ml/1/r/artifacts/", "ml/"),
        (Kind.RUN, "ml/named/r/artifacts/", "ml/named/"),
        (Kind.RUN, "ml/workspaces/w/1/r/artifacts/", "ml/"),
        (Kind.RUN, "1/r/artifacts/", ""),
        (Kind.LOGGED_MODEL, "ml/1/models/m-1/artifacts/", "ml/"),
        (Kind.TRACE, "ml/1/traces/tr-1/artifacts/", "ml/"),
        (Kind.EXPERIMENT, "ml/1/", "ml/"),
    ],
)
def test_where_a_mark_belongs_in_a_bucket(
    registry: Registry, kind: Kind, path: str, expected: str
) -> None:
    claim = claim_of(Claims(registry, OURS), target(path), kind)
    assert claim.place == place(expected)


def test_where_a_root_is_given_the_mark_is_in_it(registry: Registry) -> None:
    claim = claim_of(Claims(registry, OURS), target("top/ml/" + RUN, "top/"))
    assert claim.place == place("top/")


@pytest.mark.parametrize("at", ["", "top/", "top/ml/"])
def test_a_mark_of_another_database_anywhere_around_keeps(
    store: Store, registry: Registry, at: str
) -> None:
    put(store, at, OTHER)
    claims = Claims(registry, OURS)
    for root in ("", "top/", "top/ml/"):
        claim = claim_of(claims, target("top/ml/" + RUN, root))
        assert claim.owner is Ownership.FOREIGN, root
        assert OTHER.name in claim.detail
        assert check_claim(claim) is not None
        assert claims.mark(claim, NOW) == claim
    assert store.keys("bucket") == {at + MARK}


def test_the_nearest_mark_counts(store: Store, registry: Registry) -> None:
    put(store, "", OTHER)
    put(store, "ml/", OURS)
    assert claim_of(Claims(registry, OURS)).owner is Ownership.OURS
    assert claim_of(Claims(registry, OTHER)).owner is Ownership.FOREIGN


def test_of_two_who_mark_first_the_other_one_keeps(store: Store, registry: Registry) -> None:
    first, second = Claims(registry, OURS), Claims(registry, OTHER)
    one, other = claim_of(first), claim_of(second)  # both have seen nothing
    assert first.mark(one, NOW).owner is Ownership.OURS
    late = second.mark(other, NOW)
    assert late.owner is Ownership.FOREIGN
    assert claim_of(second).owner is Ownership.FOREIGN
    assert OURS.name in late.detail


def test_a_copy_keeps_what_nobody_gave_to_it(store: Store, registry: Registry) -> None:
    copy = replace(OTHER, copied_from=OURS.id)
    claim = claim_of(Claims(registry, copy))
    assert claim.owner is Ownership.FOREIGN
    assert "copy" in claim.detail
    assert "--accept-root memory://bucket/ml/" in claim.detail
    assert Claims(registry, copy).take(place("ml/"), NOW) is None
    assert claim_of(Claims(registry, copy)).owner is Ownership.OURS
    assert claim_of(Claims(registry, copy), target("x/" + RUN)).owner is Ownership.FOREIGN
    mark = parse_mark(store.buckets["bucket"]["ml/" + MARK].data)
    assert mark.transferred_from == OURS.id


def test_a_copy_that_never_wrote_keeps_too(store: Store, registry: Registry) -> None:
    """As `gcd plan` sees one before its first cycle: the id in it is the original's."""
    put(store, "ml/", OURS)
    copy = Identity(None, "copy", copied_from=OURS.id)
    claim = claim_of(Claims(registry, copy))
    assert claim.owner is Ownership.FOREIGN
    assert Claims(registry, copy).mark(claim, NOW) == claim


def test_without_marks_the_identity_decides(registry: Registry) -> None:
    registry._stores["memory"] = Plain()
    assert claim_of(Claims(registry, OURS)).owner is Ownership.UNMARKABLE
    copy = replace(OTHER, copied_from=OURS.id)
    assert claim_of(Claims(registry, copy)).owner is Ownership.FOREIGN
    given = Claims(registry, copy, accepted=[place("ml/")])
    assert claim_of(given).owner is Ownership.UNMARKABLE
    twins = Claims(registry, OURS, why_twin=lambda: "the store b has the run x too")
    assert claim_of(twins).owner is Ownership.FOREIGN


def test_a_mark_that_may_not_be_written_is_no_obstacle_for_the_original(
    store: Store, registry: Registry
) -> None:
    store.writing = PermanentArtifactError("denied")
    claims = Claims(registry, OURS)
    claim = claims.mark(claim_of(claims), NOW)
    assert claim.owner is Ownership.UNMARKABLE
    assert "denied" in claim.detail
    assert check_claim(claim) is None
    copy = replace(OTHER, copied_from=OURS.id)
    assert claim_of(Claims(registry, copy)).owner is Ownership.FOREIGN


def test_a_mark_that_cannot_be_written_now_keeps(store: Store, registry: Registry) -> None:
    store.writing = TransientArtifactError("the server is away")
    claims = Claims(registry, OURS)
    claim = claims.mark(claim_of(claims), NOW)
    assert claim.owner is Ownership.UNREADABLE
    assert check_claim(claim) is not None


@pytest.mark.parametrize("error", [TransientArtifactError("away"), PermanentArtifactError("no")])
def test_a_mark_that_cannot_be_read_keeps(
    store: Store, registry: Registry, error: ArtifactError
) -> None:
    store.reading["ml/"] = error
    claim = claim_of(Claims(registry, OURS))
    assert claim.owner is Ownership.UNREADABLE
    assert str(error) in claim.detail


def test_what_these_credentials_may_not_see_around_the_root_is_no_obstacle(
    store: Store, registry: Registry
) -> None:
    store.reading[""] = PermanentArtifactError("denied")
    assert claim_of(Claims(registry, OURS)).owner is Ownership.FREE
    store.reading[""] = TransientArtifactError("away")
    assert claim_of(Claims(registry, OURS)).owner is Ownership.UNREADABLE


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b'{"format": 2, "database": "x"}', b'{"format": 1}']
)
def test_a_mark_that_makes_no_sense_keeps_until_a_person_takes_the_root(
    store: Store, registry: Registry, data: bytes
) -> None:
    store.put("bucket", "ml/" + MARK, data)
    assert claim_of(Claims(registry, OURS)).owner is Ownership.UNREADABLE
    Claims(registry, OURS).take(place("ml/"), NOW)
    assert claim_of(Claims(registry, OURS)).owner is Ownership.OURS


def test_a_doubt_of_the_database_keeps(registry: Registry) -> None:
    claim = claim_of(Claims(registry, Identity(None, "ml", doubt="cannot be read")))
    assert claim.owner is Ownership.UNREADABLE
    assert claim.detail == "cannot be read"


def test_a_mark_is_read_once_for_all_trees(store: Store, registry: Registry) -> None:
    put(store, "ml/", OURS)
    claims = Claims(registry, OURS)
    for number in range(1000):
        experiment = str(number % 50)
        tree = target(f"ml/{experiment}/{number:032x}/artifacts/")
        assert claims.of(Kind.RUN, experiment, tree).owner is Ownership.OURS
    assert store.asked == ["ml/"]
