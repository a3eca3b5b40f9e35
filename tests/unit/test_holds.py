"""What is held stays: by id, by tree, in every spelling, and also where nobody can place it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcd.model import Candidate, Hold, KeepReason, Kind, Place, Reach
from gcd.planning.guard import Scope, parse_place, proxy_at
from gcd.planning.holds import HoldIndex, key
from tests.strategies import NOW, TICK, near_places

NOWHERE = Scope(destination=None, hosts=frozenset(), roots=())
RUN = "0123456789abcdef0123456789abcdef"
MODEL = "m-0123456789abcdef0123456789abcdef"
TREE = "file:///data/1/run/artifacts"


def place(uri: str) -> Place:
    return parse_place(uri, NOWHERE)


def hold(
    reason: KeepReason = KeepReason.SHARED,
    *,
    entity_id: str | None = None,
    uri: str | None = None,
    reach: Reach = Reach.OVERLAP,
    until: datetime | None = None,
    because: str = "somebody needs it",
) -> Hold:
    return Hold(reason, because, entity_id=entity_id, uri=uri, reach=reach, until=until)


def on_tree(uri: str, reach: Reach = Reach.OVERLAP) -> HoldIndex:
    return HoldIndex.build([(hold(uri=uri, reach=reach), place(uri))], NOW)


def unplaced(uri: str, reason: KeepReason = KeepReason.SHARED) -> HoldIndex:
    return HoldIndex.build([(hold(reason, uri=uri), None)], NOW)


def candidate(entity: str, experiment: str = "1") -> Candidate:
    return Candidate(Kind.RUN, entity, experiment, "deleted@1", None, None, None)


# Trees ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "held",
    [
        TREE,
        f"{TREE}/",
        f"{TREE}/model",
        f"{TREE}/model/weights.bin",
        "file:///data/1/run",
        "file:///data/1",
        "file:///data",
        "file:///",
        "/data//1/run/artifacts",
    ],
)
def test_a_tree_that_overlaps_a_held_one_is_held(held: str) -> None:
    found = on_tree(held).over(place(TREE))
    assert found == hold(uri=held)


@pytest.mark.parametrize(
    "held",
    [
        "file:///data/1/run/artifacts2",
        "file:///data/1/run/artifact",
        "file:///data/1/run/models",
        "file:///data/1/run2/artifacts",
        "file:///data/1/ru/artifacts",
        "file:///data/10",
        "file:///data/10/run/artifacts",
        "file:///data1/1/run/artifacts",
        "file:///dat",
        "file:///data/1/RUN/artifacts",
        "s3://data/1/run/artifacts",
    ],
)
def test_a_tree_beside_a_held_one_is_not(held: str) -> None:
    assert on_tree(held).over(place(TREE)) is None


@pytest.mark.parametrize(("one", "other"), [("1", "10"), ("10", "1"), ("1", "1-"), ("1", "1 ")])
def test_a_name_that_another_begins_with_does_not_hold_it(one: str, other: str) -> None:
    assert on_tree(f"file:///data/{one}").over(place(f"/data/{other}/x")) is None
    assert on_tree(f"file:///data/{one}/x").over(place(f"/data/{other}")) is None


def test_a_name_that_sorts_between_hides_nothing() -> None:
    uris = ["/data/1-", "/data/1", "/data/1/x", "/data/1/x-", "/data/10", "/data/1/x/y/z"]
    index = HoldIndex.build([(hold(uri=uri), place(uri)) for uri in uris[:1] + uris[3:]], NOW)
    assert index.over(place("/data/1")) is not None
    assert index.over(place("/data/1/x")) == hold(uri="/data/1/x/y/z")
    assert index.over(place("/data/1/x/y")) == hold(uri="/data/1/x/y/z")
    assert index.over(place("/data/1/w")) is None


def test_a_whole_bucket_holds_all_in_it_and_nothing_else() -> None:
    index = on_tree("s3://bucket")
    assert index.over(place("s3://bucket/1")) is not None
    assert index.over(place("s3://bucket//1")) is not None
    assert index.over(place("s3://bucket")) is not None
    assert index.over(place("s3://bucket2/1")) is None
    assert on_tree("s3://bucket/1").over(place("s3://bucket")) is not None


def test_no_holds_hold_nothing() -> None:
    index = HoldIndex.build([], NOW)
    assert index.over(place(TREE)) is None
    assert index.on_candidate(candidate(RUN)) is None


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (TREE, True),
        (f"{TREE}/model", True),
        ("file:///data/1/run", False),
        ("file:///data/1", False),
        ("file:///", False),
        ("file:///data/1/run/artifacts2", False),
    ],
)
def test_a_place_where_others_log_holds_what_contains_it_alone(held: str, expected: bool) -> None:
    index = on_tree(held, Reach.WITHIN)
    assert (index.over(place(TREE)) is not None) is expected


@pytest.mark.parametrize("first", list(Reach))
def test_a_tree_that_is_held_in_both_ways_is_held_as_far_as_either(first: Reach) -> None:
    last = Reach.WITHIN if first is Reach.OVERLAP else Reach.OVERLAP
    pairs = [(hold(uri="/data/1", reach=reach), place("/data/1")) for reach in (first, last)]
    index = HoldIndex.build(pairs, NOW)
    assert index.over(place(TREE)) is not None
    assert index.over(place("/data")) is not None


SPELLINGS = [
    ("s3://bucket/1", "s3a://bucket/1"),
    ("s3://bucket/1", "s3n://bucket/1"),
    ("s3://bucket/1", "S3://bucket/1"),
    ("s3://bucket/1", "r2://bucket@account.r2.cloudflarestorage.com/1"),
    ("s3a://bucket/1", "b2://bucket@s3.eu-1.backblazeb2.com/1"),
    ("sftp://host/1", "sftp://someone@host/1"),
    ("wasb://box@a.blob.core.windows.net/1", "wasbs://box@a.blob.core.windows.net/1"),
    ("wasbs://box@a.blob.core.windows.net/1", "abfss://box@a.dfs.core.windows.net/1"),
    ("abfs://box@a.dfs.core.windows.net/1", "abfss://box@a.dfs.core.windows.net/1"),
    ("file:///data/1", "/data/1"),
    ("sftp://me:secret@host/1", "sftp://me@host/1"),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_a_tree_is_held_in_every_spelling(one: str, other: str) -> None:
    assert on_tree(f"{one}/run").over(place(f"{other}/run")) is not None
    assert on_tree(f"{other}/run/x").over(place(f"{one}/run")) is not None
    assert on_tree(f"{one}").over(place(f"{other}/run")) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("wasbs://box@a.blob.core.windows.net/1", "wasbs://box@b.blob.core.windows.net/1"),
        ("wasbs://box@a.blob.core.windows.net/1", "abfss://lot@a.dfs.core.windows.net/1"),
        ("s3://bucket/1", "gs://bucket/1"),
        ("s3://bucket/1", "s3://bucket//1"),
    ],
)
def test_trees_of_different_stores_do_not_hold_one_another(one: str, other: str) -> None:
    assert on_tree(one).over(place(other)) is None


@settings(max_examples=300)
@given(st.lists(st.tuples(near_places, st.sampled_from(Reach)), max_size=5), near_places)
def test_the_index_finds_what_looking_at_every_hold_finds(
    held: list[tuple[Place, Reach]], tree: Place
) -> None:
    index = HoldIndex.build([(hold(reach=reach), at) for at, reach in held], NOW)
    within = any(key(at).startswith(key(tree)) for at, _ in held)
    around = any(key(tree).startswith(key(at)) for at, reach in held if reach is Reach.OVERLAP)
    assert (index.over(tree) is not None) == (within or around)


# Entities ---------------------------------------------------------------------------------------


def test_an_entity_is_held_by_its_id_alone() -> None:
    index = HoldIndex.build([(hold(KeepReason.HELD, entity_id="run"), None)], NOW)
    assert index.on("run") == hold(KeepReason.HELD, entity_id="run")
    assert index.on_candidate(candidate("run")) is not None
    assert index.on_candidate(candidate("run2")) is None
    assert index.on_candidate(candidate("ru")) is None
    assert index.on("RUN") is None


def test_an_experiment_holds_its_entities_and_no_run_of_the_same_name() -> None:
    index = HoldIndex.build([(hold(KeepReason.HELD, entity_id="experiment/1"), None)], NOW)
    assert index.on_candidate(candidate("run", "1")) is not None
    assert index.on_candidate(candidate("run", "10")) is None
    assert index.on_candidate(candidate("1", "2")) is None


@pytest.mark.parametrize("kind", [Kind.EXPERIMENT, Kind.LOGGED_MODEL, Kind.TRACE])
def test_a_hold_on_an_experiment_keeps_itself_and_every_kind_in_it(kind: Kind) -> None:
    index = HoldIndex.build([(hold(KeepReason.HELD, entity_id="experiment/1"), None)], NOW)
    entity = "1" if kind is Kind.EXPERIMENT else "m-model"
    assert index.on_candidate(replace(candidate(entity), kind=kind)) is not None
    other = replace(candidate(entity, "10"), kind=kind, id="10" if entity == "1" else entity)
    assert index.on_candidate(other) is None


def test_the_first_of_several_holds_is_told() -> None:
    pairs = [(hold(entity_id="run", because=because), None) for because in ("a", "b")]
    found = HoldIndex.build(pairs, NOW).on("run")
    assert found is not None
    assert found.because == "a"


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (None, True),
        (NOW + TICK, True),
        (NOW + timedelta(days=9), True),
        (NOW, False),
        (NOW - TICK, False),
    ],
)
def test_a_hold_ends_when_it_says(until: datetime | None, expected: bool) -> None:
    pairs = [(hold(entity_id=RUN, uri=f"{TREE}/{RUN}", until=until), place(TREE))]
    index = HoldIndex.build(pairs, NOW)
    assert (index.on(RUN) is not None) is expected
    assert (index.over(place(TREE)) is not None) is expected


def test_a_hold_that_has_ended_does_not_hide_one_that_has_not() -> None:
    ended, lasting = hold(entity_id="run", until=NOW - TICK), hold(entity_id="run")
    index = HoldIndex.build([(ended, place(TREE)), (lasting, place(TREE))], NOW)
    assert index.on("run") is lasting
    assert index.over(place(TREE)) is lasting


# What nobody can place --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "entity"),
    [
        (f"models:/{MODEL}", MODEL),
        (f"models:/{MODEL}/", MODEL),
        (f"runs:/{RUN}/model", RUN),
        (f"runs://tracking@profile/{RUN}/model", RUN),
        (f"RUNS:/{RUN}", RUN),
        (f"mlflow-artifacts://elsewhere/1/{RUN}/artifacts/model", RUN),
        (f"mlruns/1/{RUN}/artifacts/model", RUN),
        (f"./mlruns/1/models/{MODEL}/artifacts", MODEL),
        (f"/data/../1/{RUN}/artifacts", RUN),
        (f"file://server/1/{RUN}/artifacts", RUN),
        (f"file:///data/{RUN}/artifacts?x=y", RUN),
        (f"http://host/#/experiments/1/runs/{RUN}", RUN),
        (f"http://host/{RUN}?x", RUN),
        (f"odd:{RUN}", RUN),
        (f"{RUN}", RUN),
        ("runs:/ABCdef0123456789ABCdef0123456789/m", "ABCdef0123456789ABCdef0123456789"),
        ("models:/tr-0123456789abcdef", "tr-0123456789abcdef"),
    ],
)
@pytest.mark.parametrize("reason", [KeepReason.REGISTERED, KeepReason.SHARED])
def test_an_id_in_a_source_that_nobody_can_place_is_held(
    uri: str, entity: str, reason: KeepReason
) -> None:
    assert unplaced(uri, reason).on_candidate(candidate(entity)) == hold(reason, uri=uri)


def test_a_part_of_an_id_holds_nothing() -> None:
    index = unplaced(f"runs:/{RUN}/model")
    assert index.on(RUN[:-1]) is None
    assert index.on(RUN + "0") is None
    assert index.on("model") is None
    assert index.on("runs") is None


def test_a_registered_source_holds_its_ids_also_where_it_can_be_placed() -> None:
    uri = f"s3://bucket/1/{RUN}/artifacts/model"
    registered = HoldIndex.build([(hold(KeepReason.REGISTERED, uri=uri), place(uri))], NOW)
    assert registered.on(RUN) is not None
    assert registered.over(place(f"s3://bucket/1/{RUN}")) is not None


def test_a_tree_that_can_be_placed_holds_the_ids_of_others_too() -> None:
    """The same tree may have another name: a mount, another scheme. Its own id holds it not."""
    uri = f"s3://bucket/1/{RUN}/artifacts"
    assert on_tree(uri).on(RUN) == hold(uri=uri)
    own = HoldIndex.build([(replace(hold(uri=uri), owner=RUN), place(uri))], NOW)
    assert own.on(RUN) is None


def test_what_holds_an_entity_itself_is_told_before_what_names_it() -> None:
    tagged = hold(KeepReason.HELD, entity_id=RUN)
    named = hold(KeepReason.REGISTERED, uri=f"runs:/{RUN}/model")
    assert HoldIndex.build([(tagged, None), (named, None)], NOW).on(RUN) is tagged


@pytest.mark.parametrize(
    "uri",
    [
        f"http://tracking/get-artifact?path=model&run_uuid={RUN}",
        f"http://tracking/get-artifact?run_uuid={RUN}&path=model",
        f"https://host/ml/artifacts?run={RUN};path=model",
        f"C:\\mlruns\\1\\{RUN}\\artifacts",
        f"file:\\\\server\\mlruns\\1\\{RUN}\\artifacts",
        f"see {RUN}, the good one",
        f"odd:[{RUN}]",
        f"other:/x%2F{RUN}%2Fmodel",
        f"./mlruns/1/%{ord(RUN[0]):02x}{RUN[1:]}/artifacts",
        f"./mlruns/1/%25{ord(RUN[0]):02x}{RUN[1:]}/artifacts",
    ],
)
def test_an_id_is_found_however_a_source_writes_it(uri: str) -> None:
    assert unplaced(uri, KeepReason.REGISTERED).on(RUN) is not None


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts:/1/run/artifacts",
        "mlflow-artifacts://mlflow:5000/1/run/artifacts/model",
        "http://mlflow:5000/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts",
        "https://MLflow:5000/api/2.0/mlflow-artifacts/artifacts/1/run",
        "mlflow-artifacts:/1",
    ],
)
def test_a_tree_at_a_server_is_held_in_every_spelling(uri: str) -> None:
    scope = replace(NOWHERE, proxy=proxy_at("http://mlflow:5000"))
    index = HoldIndex.build([(hold(uri=uri), parse_place(uri, scope))], NOW)
    assert index.over(parse_place("mlflow-artifacts:/1/run/artifacts/", scope)) is not None
    assert index.over(parse_place("mlflow-artifacts:/1/run2/artifacts/", scope)) is (
        index.over(parse_place("mlflow-artifacts:/1/x/", scope))
    )
    assert index.over(parse_place("mlflow-artifacts:/2/run/artifacts/", scope)) is None
