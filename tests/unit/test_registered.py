"""What model versions refer to is held in every spelling, also among hundreds of thousands."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcd.model import Candidate, Hold, KeepReason, Kind, Place, Way
from gcd.planning import ledger
from gcd.planning.guard import Scope, parse_place
from gcd.planning.holds import HoldIndex
from gcd.planning.ledger import Ledger
from gcd.planning.names import is_plain, readings
from gcd.planning.registered import Version, VersionIndex
from tests.strategies import NOW

NOWHERE = Scope(destination=None, hosts=frozenset(), roots=())
RUN = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
MODEL = "m-" + "b" * 32
TREE = f"file:///data/1/{RUN}/artifacts"


def meanings(uri: str, is_nameless: bool) -> list[Place | Way | None]:
    found: list[Place | Way | None] = list(readings(uri, NOWHERE))
    if uri == "/else/where" and is_nameless:
        found += [Way(((1, 2), (1, 3), (1, 4)), is_whole=True)]
    return found if found and is_plain(uri) else [*found, None]


def known(uri: str) -> Place:
    return parse_place(uri, NOWHERE)


def index(*versions: Version) -> VersionIndex:
    found = VersionIndex()
    for version in versions:
        found.add(version, meanings)
    return found


def of(source: str | None, *, run: str | None = None, location: str | None = None) -> Version:
    return Version("classifier", 3, run, source, location)


# Ledgers ----------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.lists(st.text("ab/", max_size=4), max_size=40), st.text("ab/", max_size=4))
def test_a_ledger_finds_what_a_dict_finds(keys: list[str], wanted: str) -> None:
    packed: Ledger[str] = Ledger(list, 4)
    plain: dict[str, int] = {}
    for number, key in enumerate(keys):
        packed.add(key, number)
        plain.setdefault(key, number)
        assert packed.at(key) is not None
        assert (wanted in plain) is (packed.at(wanted) is not None)
    inside = {key for key in plain if key.startswith(wanted)}
    found = {key for key, _ in packed.from_on(wanted) if key.startswith(wanted)}
    assert found <= inside
    assert bool(found) is bool(inside)


def test_a_ledger_that_has_grown_since_it_was_asked_is_asked_anew() -> None:
    texts: Ledger[str] = Ledger(list, 3)
    for number, key in enumerate("bdfhjl"):
        texts.add(key, number)
        assert key in [each for each, _ in texts.from_on(key)]


# What is held -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "version",
    [
        of(TREE),
        of(f"{TREE}/"),
        of(f"{TREE}/model"),
        of(f"{TREE}/model/weights.bin"),
        of(f"/data/1/{RUN}/artifacts/model"),
        of("elsewhere:x", location=f"{TREE}/model"),
        of("s3://other/place", run=RUN),
        of(None, run=RUN),
        of(f"runs:/{RUN}/model"),
        of(f"runs:/{RUN}/a/long/path/to/a/model-with-a-long-name"),
        of(f"{TREE}/../artifacts/model"),
        of(f"{TREE}//model"),
        of(f"file:///data/1/{RUN}/artifacts?x=y"),
        of(f"file:///data/1/{RUN}/artifacts/a%20b"),
        of(f"mlflow-artifacts://elsewhere/1/{RUN}/artifacts/model"),
        of("file:///data/1"),
        of("file:///data"),
        of(f"file:///data/1/{RUN}"),
    ],
)
def test_what_a_version_refers_to_is_held(version: Version) -> None:
    found = HoldIndex.build([], NOW, (index(of("s3://b/x"), version),))
    run = Candidate(Kind.RUN, RUN, "1", "deleted@1", None, TREE, None)
    held = found.on_candidate(run) or found.over(known(TREE))
    assert held == Hold(KeepReason.REGISTERED, "version 3 of classifier")
    other = Candidate(Kind.RUN, OTHER, "2", "deleted@1", None, None, None)
    assert found.on_candidate(other) is None
    assert found.over(known(f"/store/2/{OTHER}/artifacts")) is None


@pytest.mark.parametrize(
    "version",
    [
        of(f"models:/{MODEL}"),
        of("models:/classifier/1", location=f"file:///data/1/models/{MODEL}/artifacts"),
        of(f"file:///data/1/models/{MODEL}/artifacts/"),
        of(f"s3://elsewhere/models/{MODEL}/artifacts"),
    ],
)
def test_the_logged_model_of_a_version_is_held(version: Version) -> None:
    assert index(version).on(MODEL) == Hold(KeepReason.REGISTERED, "version 3 of classifier")


def test_a_tree_in_that_of_a_registered_run_is_held_and_one_that_contains_it_too() -> None:
    found = index(of(f"{TREE}/model"))
    assert found.over(known(f"{TREE}/model/5/{OTHER}/artifacts")) is not None
    assert found.over(known("file:///data/1")) is not None
    assert found.over(known("file:///data/2")) is None


def test_a_folder_that_is_named_like_an_id_does_not_hold_what_is_below_it() -> None:
    """Only the id of the tree itself does: others in a URI say where it lies."""
    folder = "0" * 32
    found = index(of(f"s3://bucket/{folder}/1/{RUN}/artifacts/model"))
    assert found.on(folder) is not None
    assert found.over(known(f"s3://bucket/{folder}/1/{OTHER}/artifacts")) is None


@pytest.mark.parametrize(
    ("nodes", "is_whole", "expected"),
    [
        ([(1, 2), (1, 3)], True, True),
        ([(1, 2), (1, 3)], False, False),
        ([(1, 2), (1, 3), (1, 4)], True, True),
        ([(8, 8), (1, 4), (1, 9)], True, True),
        ([(8, 8), (1, 4), (1, 9)], False, True),
        ([(8, 8), (1, 3), (1, 9)], True, False),
    ],
)
def test_a_tree_is_held_by_the_folders_on_its_way(
    nodes: list[tuple[int, int]], is_whole: bool, expected: bool
) -> None:
    found = HoldIndex.build([], NOW, (index(of("/else/where")),))
    assert found.has_other_names
    assert (found.over_any([Way(tuple(nodes), is_whole)]) is not None) is expected
    assert not index(of(TREE)).has_other_names


ids = st.sampled_from([RUN, OTHER, "a" * 32, MODEL, "m-" + "c" * 32])
parts = st.one_of(ids, st.sampled_from(["1", "models", "artifacts", "artifacts", "x", "..", ""]))
paths = st.lists(parts, min_size=1, max_size=7).map("/".join)
prefixes = st.sampled_from(["/", "file:///", "s3://b/", "s3a://b/", "runs:/", "models:/", "", "x"])
sources = st.one_of(st.none(), st.builds(str.__add__, prefixes, paths))
versions = st.builds(Version, st.just("n"), st.just(1), st.none() | ids, sources, sources)
trees = st.builds(
    "{}{}/{}/artifacts".format,
    st.sampled_from(["/", "s3://b/"]),
    st.sampled_from(["1", "x/1"]),
    ids,
)


@settings(max_examples=300)
@given(st.lists(versions, max_size=4), trees)
def test_all_is_held_that_looking_at_every_version_would_hold(
    found: list[Version], tree: str
) -> None:
    def holds() -> Iterator[tuple[Hold, Place | None]]:
        for version in found:
            if version.run_id:
                yield Hold(KeepReason.REGISTERED, "", entity_id=version.run_id), None
            for uri in filter(None, version[3:]):
                for place in meanings(uri, False):
                    yield Hold(KeepReason.REGISTERED, "", uri=uri), place

    plain = HoldIndex.build(holds(), NOW)
    entity, at = tree.split("/")[-2], known(tree)
    if plain.on(entity) or plain.over(at):
        small = index(*found)
        assert small.on(entity) or small.over(at)


# Size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["s3://b/1/{}/artifacts/model", "s3://b/{}"])
def test_many_versions_take_little_memory(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "HASHES", 4096)
    found = VersionIndex()
    count = 40_000
    entities = [uuid.UUID(int=number).hex for number in range(count)]
    for number, entity in enumerate(entities):
        found.add(
            Version(f"model-{number % 50}", number, entity, form.format(entity), None), meanings
        )
    assert size(found) < count * 250
    for number in range(0, count, 1999):
        hold = found.on(entities[number])
        assert hold is not None
        assert hold.because == f"version {number} of model-{number % 50}"
    assert found.on(RUN) is None


def size(thing: object, seen: set[int] | None = None) -> int:
    """Bytes of a thing and of all that only it refers to."""
    seen = set() if seen is None else seen
    if id(thing) in seen or callable(thing):
        return 0
    seen.add(id(thing))
    parts: list[object] = []
    match thing:
        case dict():
            parts = [*thing.keys(), *thing.values()]
        case list() | tuple() | set():
            parts = list(thing)
    parts += list(getattr(thing, "__dict__", {}).values())
    return sys.getsizeof(thing) + sum(size(part, seen) for part in parts)
