"""A tree is held under whatever name a live URI gives it, and what a URI cannot mean is not."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcd.errors import BackendError, UnsafeTarget
from gcd.model import Candidate, Hold, KeepReason, Kind, Place
from gcd.planning.guard import NOWHERE, Scope, parse_place, proxy_at
from gcd.planning.holds import HoldIndex
from gcd.planning.names import ids_in, is_adrift, is_plain, named_versions, names_in, readings
from tests.strategies import NOW

RUN = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
DISK = Scope(Place("file", "", "/srv/art/"), frozenset(), ())
BUCKET = Scope(Place("s3", "b", "art/"), frozenset(), ())
SERVER = replace(NOWHERE, proxy=proxy_at("https://mlflow:5000"))


def placed(uri: str, scope: Scope) -> list[Place | None]:
    """The places of a live URI as an index gets them: None among them where ids must tell."""
    found: list[Place | None] = [*readings(uri, scope)]
    try:
        parse_place(uri, scope)
    except (UnsafeTarget, BackendError):
        found.append(None)
    return found


def is_held(live: str, dead: str, run: str = RUN, scope: Scope = NOWHERE, **how: object) -> bool:
    """Whether a live URI keeps the tree of a dead run that is recorded at another."""
    hold = Hold(KeepReason.SHARED, "a live run has its files there", uri=live, **how)  # type: ignore[arg-type]
    index = HoldIndex.build([(hold, place) for place in placed(live, scope)], NOW)
    candidate = Candidate(Kind.RUN, run, "1", "deleted@1", None, dead, None)
    tree = parse_place(dead, scope)
    return (index.on_candidate(candidate) or index.over(tree)) is not None


@pytest.mark.parametrize(
    ("live", "dead"),
    [
        ("dbfs:/1/run/artifacts", "/dbfs/1/run/artifacts"),
        ("dbfs:/1", "/dbfs/1/run/artifacts"),
        ("/dbfs/1/run/artifacts/x", "dbfs:/1/run/artifacts"),
        ("dbfs:/Volumes/1/run", "/Volumes/1/run/artifacts"),
        ("dbfs://profile@databricks/1/run", "dbfs:/1/run/artifacts"),
        ("hdfs:///1/run", "hdfs://nn1/1/run/artifacts"),
        ("hdfs://nn1:8020/1/run", "hdfs://nn1/1/run/artifacts"),
        ("hdfs:/1/run", "hdfs://nn1/1/run/artifacts"),
        ("webhdfs://nn2:50070/1/run", "hdfs:/1/run/artifacts"),
        ("viewfs:///1/run", "hdfs://nn1/1/run/artifacts"),
        ("sftp://host/srv/1/run", "sftp://me@host:22/srv/1/run/artifacts"),
        ("sftp://10.0.0.7:22/srv/1/run", "sftp://host/srv/1/run/artifacts"),
        ("sftp://localhost/srv/1/run", "/srv/1/run/artifacts"),
        ("ftp://me:secret@host/srv/1", "ftp://host:21/srv/1/run/artifacts"),
        ("file://localhost/srv/1/run", "/srv/1/run/artifacts"),
        ("file://server/srv/1/run", "/srv/1/run/artifacts"),
        ("FILE:///srv/1/run", "/srv/1/run/artifacts"),
        ("s3a://b/1/run/artifacts/x", "s3://b/1/run/artifacts"),
        ("r2://b@x.r2.cloudflarestorage.com/1/run", "s3://b/1/run/artifacts"),
        ("b2://b@s3.eu.backblazeb2.com/1/run", "r2://b@y.r2.com/1/run/artifacts"),
        ("gcs://b/1/run", "gs://b/1/run/artifacts"),
        ("abfss://c@A.dfs.core.windows.net/1", "wasbs://c@a.blob.core.windows.net/1/run/artifacts"),
        ("/srv/1/../1/run/artifacts/model", "/srv/1/run/artifacts"),
        ("/srv/1/x/../../1/run/./artifacts", "/srv/1/run/artifacts"),
        ("/srv//1/run/artifacts//model", "/srv/1/run/artifacts"),
        ("file:/srv/1/%72un/artifacts", "/srv/1/run/artifacts"),
        ("file:///srv/1/%2572un/artifacts", "/srv/1/run/artifacts"),
        ("/srv/1/run/artifacts?version=3", "/srv/1/run/artifacts"),
        ("file:///srv/1/run/artifacts#model", "/srv/1/run/artifacts"),
        ("s3://b/1/run/artifacts?versionId=3", "s3://b/1/run/artifacts"),
        ("s3://b/1/%72un/artifacts", "s3://b/1/run/artifacts"),
        ("s3://b/1/2/../run/artifacts", "s3://b/1/run/artifacts"),
        ("s3://b//1/run/artifacts", "s3://b/1/run/artifacts"),
        ("s3://b/1/run/\nartifacts", "s3://b/1/run/artifacts"),
        (" s3://b/1/run/artifacts ", "s3://b/1/run/artifacts"),
    ],
)
def test_a_tree_is_held_by_a_uri_that_names_it_otherwise(live: str, dead: str) -> None:
    assert is_held(live, dead, "run")


@pytest.mark.parametrize("scope", [DISK, BUCKET, SERVER])
@pytest.mark.parametrize(
    "live",
    [
        "mlflow-artifacts:/1/run/artifacts/x",
        "mlflow-artifacts://elsewhere:5000/1/run/artifacts",
        "mlflow-artifacts://elsewhere/1",
        "mlflow-artifacts:/1/x/../run/artifacts",
        "mlflow-artifacts:/1/run/artifacts?x=y",
        "https://elsewhere/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts",
        "http://10.0.0.7:5000/mlflow/api/2.0/mlflow-artifacts/artifacts/1/run",
        "http://mlflow/ajax-api/2.0/mlflow-artifacts/artifacts/1/%72un",
    ],
)
def test_what_any_server_keeps_is_held_as_if_it_were_this_one(live: str, scope: Scope) -> None:
    assert is_held(live, "mlflow-artifacts:/1/run/artifacts", "run", scope)
    assert not is_held(live, "mlflow-artifacts:/2/run/artifacts", "run2", scope)


@pytest.mark.parametrize(
    ("live", "dead"),
    [
        ("dbfs:/1/run2", "/dbfs/1/run/artifacts"),
        ("hdfs://nn1/2/run", "hdfs:///1/run/artifacts"),
        ("s3://b/1/run", "gs://b/1/run/artifacts"),
        ("s3://b2/1/run", "s3://b/1/run/artifacts"),
        ("runs:/run2/run", "/srv/1/run/artifacts"),
        ("models:/name/3", "/srv/1/run/artifacts"),
    ],
)
def test_a_tree_beside_is_not(live: str, dead: str) -> None:
    assert not is_held(live, dead, "run")


@pytest.mark.parametrize(
    "live",
    [
        f"s3://elsewhere/1/{RUN}/artifacts/model",
        f"s3://elsewhere/1/{RUN.upper()}/artifacts/model",
        f"dbfs:/x/{RUN}",
        f"https://host/#/experiments/1/runs/{RUN}",
        f"uc://catalog/{RUN}",
        f"runs:/{RUN.upper()}/model",
        f"C:\\mlruns\\1\\{RUN.upper()}\\artifacts",
        f"mlruns/1/{quote(RUN[:1]).replace('0', '%30')}{RUN[1:]}/artifacts",
    ],
)
def test_an_id_in_a_live_uri_holds_what_lies_elsewhere(live: str) -> None:
    assert is_held(live, f"/srv/1/{RUN}/artifacts")
    assert not is_held(live, f"/srv/1/{OTHER}/artifacts", OTHER)


@pytest.mark.parametrize(
    "live", ["runs:/12/model", "runs://p@databricks/12", "mlruns/1/12/x", "odd:12"]
)
def test_a_short_id_holds_where_a_uri_names_no_place(live: str) -> None:
    assert is_held(live, "/srv/1/12/artifacts", "12") is True
    assert not is_held(live, "/srv/1/13/artifacts", "13")


def test_a_short_id_in_a_uri_that_names_a_place_is_but_a_folder() -> None:
    """Or each run that an importer numbered would be held by the number of an experiment."""
    assert not is_held("s3://b/12/x", "/srv/1/12/artifacts", "12")


def test_an_entity_is_not_held_by_its_own_uri() -> None:
    uri = f"s3://b/odd/{RUN}/files"
    assert not is_held(uri, f"/srv/1/{RUN}/artifacts", owner=RUN)
    assert not is_held(uri.upper(), f"/srv/1/{RUN}/artifacts", owner=RUN)
    assert is_held(uri, f"/srv/1/{RUN}/artifacts", owner=OTHER)


def test_an_experiment_of_a_migrated_store_is_not_held_by_its_own_location() -> None:
    number = "123456789012345678"
    hold = Hold(KeepReason.SHARED, "it logs there", uri=f"/mlruns/{number}")
    index = HoldIndex.build([(hold, parse_place(f"/mlruns/{number}", NOWHERE))], NOW)
    experiment = Candidate(Kind.EXPERIMENT, number, number, "deleted@1", None, None, None)
    assert index.on_candidate(experiment) is None


# -- every way to write a URI -----------------------------------------------------------------------

STORES = ["/srv/art", "file:///srv/art", "s3://b/art", "hdfs://nn/art", "mlflow-artifacts:"]


def _quoted(uri: str, at: int) -> str:
    at = uri.find("/1/") + 3 + at
    return f"{uri[:at]}%{ord(uri[at]):02x}{uri[at + 1 :]}"


CHANGES = {
    "quoted": lambda uri, n: _quoted(uri, n),
    "query": lambda uri, n: f"{uri}?x={n}",
    "fragment": lambda uri, n: f"{uri}#{n}",
    "dots": lambda uri, n: uri.replace("/1/", f"/1/{n}/../"),
    "doubled": lambda uri, n: uri.replace("/1/", "/1//"),
    "deeper": lambda uri, n: f"{uri}/model/{n}",
    "closed": lambda uri, n: f"{uri}/",
    "space": lambda uri, n: f" {uri}\n",
    "scheme": lambda uri, n: uri.partition(":")[0].upper() + uri[len(uri.partition(":")[0]) :],
    "user": lambda uri, n: uri.replace("hdfs://", "hdfs://me@"),
    "host": lambda uri, n: uri.replace("hdfs://nn", f"hdfs://nn{n}"),
    "server": lambda uri, n: uri.replace("mlflow-artifacts:/", f"mlflow-artifacts://h{n}/"),
    "local": lambda uri, n: uri.replace("file:///", "file://localhost/"),
    "alias": lambda uri, n: uri.replace("s3://", "s3a://"),
}
steps = st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 9)), max_size=4)


@settings(max_examples=400)
@given(st.sampled_from(STORES), steps, st.sampled_from([RUN, "12", "a run"]))
def test_a_tree_is_held_however_its_uri_was_changed(
    store: str, steps: list[tuple[str, int]], run: str
) -> None:
    dead = live = f"{store}/1/{run}/artifacts"
    for name, number in steps:
        if not (name == "scheme" and live.startswith((" ", "/"))):
            live = CHANGES[name](live, number % (len(run) - 1))
    assert is_held(live, dead, run, DISK), live


@settings(max_examples=300)
@given(st.text(max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    for found in (ids_in(text), names_in(text)):
        assert found == {name for name in found if name}
    assert all(place.path is not None for place in readings(text, DISK))
    if is_plain(text):
        assert "%" not in text


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("models:/name/3", {("name", 3)}),
        ("MODELS:/Name/3", {("Name", 3)}),
        ("models:/name/3/model", {("name", 3)}),
        ("models:/a%20b/3", {("a%20b", 3), ("a b", 3)}),
        ("models:/name/latest", {("name", None)}),
        ("models:/name/Production", {("name", None)}),
        ("models:/name@best", {("name@best", None), ("name", None)}),
        ("models:/name@best/model", {("name@best", None), ("name", None)}),
        ("models://profile@databricks/name/3", {("name", 3)}),
        ("models:/name/99999999999999999999", {("name", None)}),
        ("models:/name", {("name", None)}),
        ("models:/m-" + RUN, set()),
        ("models:/", set()),
        ("runs:/name/3", set()),
        ("/models:/name/3", set()),
        ("", set()),
    ],
)
def test_the_versions_that_a_source_names(uri: str, named: set[tuple[str, int | None]]) -> None:
    assert named_versions(uri) == named


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("model", True),
        ("./model", True),
        ("../a b/model", True),
        ("~/model", True),
        ("mlruns/1/run-of-an-import/artifacts", True),
        ("%6dodel", True),
        (f"mlruns/1/{RUN}/artifacts", False),
        (f"mlruns/1/%30{RUN[1:]}/artifacts", False),
        ("dummy-source", False),
        ("prompt-template", False),
        ("REDACTED-SOURCE-PATH", False),
        ("elsewhere", False),
        ("/model", False),
        ("%2Fmodel", False),
        ("C:\\model", False),
        ("c:/model", False),
        ("s3:model", False),
        ("dbfs:/model", False),
        ("", False),
        (" ", False),
        (":", False),
        ("?/.", False),
        ("\udcff\0", False),
    ],
)
def test_what_may_lie_in_any_local_tree(uri: str, expected: bool) -> None:
    scope = replace(NOWHERE, ignored_sources=frozenset({"elsewhere"}))
    assert is_adrift(uri, scope) is expected
