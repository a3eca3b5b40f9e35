"""Where a recorded URI lies, which tree belongs to a candidate, and what is never a target."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gcd.errors import GcdError, UnknownScheme, UnsafeTarget
from gcd.model import Candidate, Kind, Place, Target
from gcd.planning.guard import (
    Scope,
    Site,
    below,
    contains,
    in_workspace,
    layout_root,
    make_targets,
    nearest,
    parse_place,
    place_uri,
    proxy_at,
    why_sacred,
    written_place,
)
from tests.strategies import FOLDERS, file_places, near_places, places

NOWHERE = Scope(destination=None, hosts=frozenset(), roots=())
DISK = Place("file", "", "/srv/artifacts/")
BUCKET = Place("s3", "bucket", "team/")
HOSTS = frozenset({"tracking", "mlflow.example:5000"})
ON_DISK = Scope(destination=DISK, hosts=HOSTS, roots=())
IN_BUCKET = Scope(destination=BUCKET, hosts=HOSTS, roots=())


def local(path: str) -> Place:
    return Place("file", "", path)


def rooted(*roots: str, destination: Place | None = None) -> Scope:
    return Scope(destination, frozenset(), tuple(local(path) for path in roots))


# Local files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/data/mlruns/1", "/data/mlruns/1/"),
        ("/data/mlruns/1/", "/data/mlruns/1/"),
        ("//data///mlruns//", "/data/mlruns/"),
        ("/", "/"),
        ("/with space/ü?#;x", "/with space/ü?#;x/"),
        ("/...", "/.../"),
        ("/..data/.hidden", "/..data/.hidden/"),
        ("file:///data/1", "/data/1/"),
        ("file:/data/1", "/data/1/"),
        ("file://localhost/data/1", "/data/1/"),
        ("file:////data//1", "/data/1/"),
        ("file:///", "/"),
        ("file://", "/"),
        ("FILE:///data/1", "/data/1/"),
        ("file:///a%20b/%C3%BC%3F%23", "/a b/ü?#/"),
        ("file:///a%2520b", "/a%20b/"),
        ("file:///a%2Fb", "/a/b/"),
        ("file:///%FF", "/\udcff/"),
        ("file:///100%", "/100%/"),
    ],
)
def test_a_local_tree_has_one_name(uri: str, path: str) -> None:
    assert parse_place(uri, NOWHERE) == local(path)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("mlruns/1", "relative"),
        ("./mlruns/1", "relative"),
        (" /data/1", "relative"),
        ("file:mlruns/1", "relative"),
        ("C:\\mlruns\\1", "relative"),
        ("c:/mlruns/1", "relative"),
        ("s3", "relative"),
        (":/data", "relative"),
        ("1s3:/data", "relative"),
        ("/data/../etc", "dots"),
        ("/data/./1", "dots"),
        ("/..", "dots"),
        ("file:///data/../etc", "dots"),
        ("file:///data/%2e%2e/etc", "dots"),
        ("file:///data/%2E./etc", "dots"),
        ("file:///data%2F..%2Fetc", "dots"),
        ("file:///data/%2e", "dots"),
        ("/data/\0/1", "NUL"),
        ("file:///data\0", "NUL"),
        ("file:///data%00/1", "NUL"),
        ("s3://bucket/\0", "NUL"),
        ("s3://bucket/1\n", "line break"),
        ("s3://buck\tet/1", "tab"),
        ("file:///data/1\r", "line break"),
        ("mlflow-artifacts:/1\n", "line break"),
        ("file:///data/1?x=y", "query"),
        ("file:///data/1#x", "fragment"),
        ("file://server/data/1", "host server"),
        ("file://server", "host server"),
        ("runs:/0123456789abcdef/model", "reference"),
        ("models:/m-0123456789abcdef", "reference"),
        ("models:/classifier/3", "reference"),
        ("RUNS:/x", "reference"),
        ("s3:bucket/1", "reference"),
        ("mailto:somebody", "reference"),
    ],
)
@pytest.mark.parametrize("scope", [NOWHERE, ON_DISK, rooted("/")])
def test_what_names_no_sure_place_is_refused(uri: str, why: str, scope: Scope) -> None:
    with pytest.raises(UnsafeTarget, match=why):
        parse_place(uri, scope)


# Object stores ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://bucket/1", Place("s3", "bucket", "1/")),
        ("s3://bucket/1/", Place("s3", "bucket", "1/")),
        ("s3://bucket", Place("s3", "bucket", "")),
        ("s3://bucket/", Place("s3", "bucket", "")),
        ("S3://Bucket/Key", Place("s3", "Bucket", "Key/")),
        ("s3a://bucket/1", Place("s3a", "bucket", "1/")),
        ("s3://bucket//1", Place("s3", "bucket", "/1/")),
        ("s3://bucket/1//", Place("s3", "bucket", "1//")),
        ("s3://bucket/a%2e%20b/../c", Place("s3", "bucket", "a%2e%20b/../c/")),
        ("gs://bucket/1", Place("gs", "bucket", "1/")),
        ("wasbs://box@acct.blob.host/1", Place("wasbs", "box@acct.blob.host", "1/")),
        ("abfss://box@acct.dfs.host/1", Place("abfss", "box@acct.dfs.host", "1/")),
        ("dbfs:/databricks/1", Place("dbfs", "", "databricks/1/")),
        ("hdfs://node:8020/1", Place("hdfs", "node:8020", "1/")),
        ("sftp://me@host:22/data/1", Place("sftp", "me@host:22", "data/1/")),
        ("my-store+x.y://host/1", Place("my-store+x.y", "host", "1/")),
    ],
)
def test_a_key_is_kept_as_the_store_has_it(uri: str, place: Place) -> None:
    assert parse_place(uri, NOWHERE) == place


@pytest.mark.parametrize(
    ("authority", "kept"),
    [
        ("me:secret@host", "me@host"),
        ("me:se:cret@host:22", "me@host:22"),
        ("me:se@cret@host", "me@host"),
        (":secret@host", "@host"),
        ("host:22", "host:22"),
    ],
)
def test_a_password_is_no_part_of_a_place(authority: str, kept: str) -> None:
    place = parse_place(f"sftp://{authority}/data", NOWHERE)
    assert place == Place("sftp", kept, "data/")


# Proxied artifacts ------------------------------------------------------------------------------

PROXIED = [
    "mlflow-artifacts:/1/run",
    "mlflow-artifacts:///1/run",
    "mlflow-artifacts:////1/run",
    "mlflow-artifacts://tracking/1/run",
    "mlflow-artifacts://tracking:5000/1/run",
    "mlflow-artifacts://mlflow.example:5000/1/run/",
    "MLFLOW-ARTIFACTS:/1/run",
    "http://tracking/api/2.0/mlflow-artifacts/artifacts/1/run",
    "https://tracking:443/ajax-api/2.0/mlflow-artifacts/artifacts/1/run",
]


@pytest.mark.parametrize("uri", PROXIED)
def test_proxied_artifacts_are_below_the_destination(uri: str) -> None:
    assert parse_place(uri, ON_DISK) == local("/srv/artifacts/1/run/")
    assert parse_place(uri, IN_BUCKET) == Place("s3", "bucket", "team/1/run/")


def test_the_root_of_proxied_artifacts_is_the_destination() -> None:
    assert parse_place("mlflow-artifacts:/", ON_DISK) == DISK
    assert parse_place("mlflow-artifacts:/", IN_BUCKET) == BUCKET
    whole = replace(IN_BUCKET, destination=Place("s3", "bucket", ""))
    assert parse_place("mlflow-artifacts:/", whole) == Place("s3", "bucket", "")
    assert parse_place("mlflow-artifacts:/1", whole) == Place("s3", "bucket", "1/")


@pytest.mark.parametrize("uri", PROXIED)
def test_proxied_artifacts_without_a_destination_have_no_backend(uri: str) -> None:
    with pytest.raises(UnknownScheme) as caught:
        parse_place(uri, replace(ON_DISK, destination=None))
    assert "--artifacts-destination" in str(caught.value.hint)


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts://other/1",
        "mlflow-artifacts://mlflow.example/1",
        "mlflow-artifacts://mlflow.example:5001/1",
        "mlflow-artifacts://tracking.evil.example/1",
        "mlflow-artifacts://:5000/1",
        "http://other/api/2.0/mlflow-artifacts/artifacts/1",
    ],
)
def test_artifacts_of_another_host_are_not_taken_for_ours(uri: str) -> None:
    with pytest.raises(UnknownScheme, match="not known to be here"):
        parse_place(uri, ON_DISK)


def test_the_hint_for_another_host_is_what_to_write_without_its_password() -> None:
    with pytest.raises(UnknownScheme) as caught:
        parse_place("mlflow-artifacts://me:secret@other:80/1", ON_DISK)
    assert 'artifacts.hosts = ["me@other:80"]' in str(caught.value.hint)
    assert "secret" not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize(
    "uri",
    [
        "http://tracking/1/run",
        "https://tracking/mlflow-artifacts/artifacts/1",
        "http://tracking/x/api/2.0/mlflow-artifacts/artifacts/1",
        "https://account.blob.core.windows.net/container/1",
    ],
)
def test_nobody_deletes_at_any_other_web_address(uri: str) -> None:
    with pytest.raises(UnknownScheme, match="nobody can delete"):
        parse_place(uri, ON_DISK)


@pytest.mark.parametrize("scope", [ON_DISK, IN_BUCKET])
@pytest.mark.parametrize(
    "path", ["../etc", "1/../../etc", "1/.", "%2e%2e/etc", "1/%2E%2e", ".%2e/1", "%2e"]
)
@pytest.mark.parametrize(
    "base", ["mlflow-artifacts:/", "http://tracking/api/2.0/mlflow-artifacts/artifacts/"]
)
def test_proxied_dots_are_refused(base: str, path: str, scope: Scope) -> None:
    with pytest.raises(UnsafeTarget, match="dots"):
        parse_place(base + path, scope)


@pytest.mark.parametrize(
    "path",
    [
        "a%09b/1",
        "a\x7fb/1",
        "a%0ab",
        "a%3fb/1",
        "a%2523b/1",
        "a?x=y",
        "a#x",
        "%20a/1",
        "FILE:a",
        "a;",
    ],
)
@pytest.mark.parametrize("scope", [ON_DISK, IN_BUCKET])
def test_what_the_server_takes_for_another_path_is_refused(path: str, scope: Scope) -> None:
    """It puts a path through a URL parser, and writes control characters in another way (tried)."""
    with pytest.raises(UnsafeTarget):
        parse_place(f"mlflow-artifacts:/{path}", scope)


@pytest.mark.parametrize(
    ("uri", "taken"),
    [
        ("mlflow-artifacts:/own/1", "mlflow-artifacts:/workspaces/team/own/1"),
        ("mlflow-artifacts:///own/1", "mlflow-artifacts:///workspaces/team/own/1"),
        ("mlflow-artifacts://h:1/own", "mlflow-artifacts://h:1/workspaces/team/own"),
        ("MLFLOW-artifacts:/own", "MLFLOW-artifacts:/workspaces/team/own"),
        (
            "http://h/p/api/2.0/mlflow-artifacts/artifacts/own/1",
            "http://h/p/api/2.0/mlflow-artifacts/artifacts/workspaces/team/own/1",
        ),
        *((same, same) for same in ("s3://bucket/1", "/data/1", "", "http://h/1", "runs:/x")),
        *(
            (same, same)
            for same in (
                "mlflow-artifacts:/workspaces/team/1",
                "mlflow-artifacts:/workspaces%2fteam/1",
                "mlflow-artifacts://h/workspaces/other/1",
                "http://h/api/2.0/mlflow-artifacts/artifacts/workspaces/team/1",
            )
        ),
    ],
)
def test_what_is_of_a_workspace_is_below_its_folder(uri: str, taken: str) -> None:
    assert in_workspace(uri, "team") == taken
    assert in_workspace(uri, "default") == in_workspace(uri, None) == in_workspace(uri, "") == uri


# The server itself ------------------------------------------------------------------------------

ASKED = replace(ON_DISK, destination=None, proxy=proxy_at("http://MLflow.internal:5000/"))
BEHIND = replace(ON_DISK, destination=None, proxy=proxy_at("https://mlflow.internal/team"))


@pytest.mark.parametrize(
    "uri",
    [
        *PROXIED,
        "mlflow-artifacts://mlflow.internal:5000/1/run",
        "mlflow-artifacts://user:secret@MLFLOW.internal:5000/1/run",
        "http://mlflow.internal:5000/api/2.0/mlflow-artifacts/artifacts/1/run",
        "https://mlflow.internal:5000/ajax-api/2.0/mlflow-artifacts/artifacts/1/run/",
        "mlflow-artifacts:/1//run/",
        "mlflow-artifacts:/1/r%75n",
        "mlflow-artifacts:/1/r%2575n",
    ],
)
def test_every_name_of_a_tree_at_the_server_is_one_place(uri: str) -> None:
    assert parse_place(uri, ASKED) == Place("mlflow-artifacts", "mlflow.internal:5000", "1/run/")


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts://mlflow.internal/1",
        "mlflow-artifacts://mlflow.internal:5001/1",
        "mlflow-artifacts://other:5000/1",
        "http://mlflow.internal:5000/team/api/2.0/mlflow-artifacts/artifacts/1",
        "http://mlflow.internal:5000/mlflow-artifacts/artifacts/1",
        "http://other:5000/api/2.0/mlflow-artifacts/artifacts/1",
    ],
)
def test_what_another_server_has_is_not_asked_of_this_one(uri: str) -> None:
    with pytest.raises(UnknownScheme):
        parse_place(uri, ASKED)


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts:/1",
        "mlflow-artifacts://mlflow.internal/1",
        "mlflow-artifacts://mlflow.internal:443/1",
        "https://mlflow.internal/team/api/2.0/mlflow-artifacts/artifacts/1",
        "https://mlflow.internal:443/team/api/2.0/mlflow-artifacts/artifacts/1",
    ],
)
def test_a_server_may_serve_below_a_path(uri: str) -> None:
    assert parse_place(uri, BEHIND) == Place("mlflow-artifacts", "mlflow.internal", "1/")


@pytest.mark.parametrize("base", ["", "/team2", "/team/x", "/tea"])
def test_two_servers_may_share_a_host(base: str) -> None:
    with pytest.raises(UnknownScheme, match="nobody can delete"):
        parse_place(f"https://mlflow.internal{base}/api/2.0/mlflow-artifacts/artifacts/1", BEHIND)


def test_a_known_destination_wins_over_the_server() -> None:
    both = replace(ON_DISK, proxy=ASKED.proxy)
    for uri in ("mlflow-artifacts:/1", "mlflow-artifacts://mlflow.internal:5000/1"):
        assert parse_place(uri, both) == local("/srv/artifacts/1/")


@pytest.mark.parametrize("path", ["../etc", "1/.", "%2e%2e/1", "a#b", "a%3fb", "a%0ab", "a;"])
def test_what_the_server_may_not_be_asked_for_is_refused(path: str) -> None:
    with pytest.raises(UnsafeTarget):
        parse_place(f"mlflow-artifacts:/{path}", ASKED)


@pytest.mark.parametrize("path", ["", "1/", "1/a b/", "100%/x/", "n\u00e4me/"])
def test_a_place_at_a_server_is_read_back_whatever_is_configured_now(path: str) -> None:
    place = Place("mlflow-artifacts", "mlflow.internal:5000", path)
    assert written_place(place_uri(place)) == place
    assert written_place("s3://bucket/1/") == Place("s3", "bucket", "1/")
    with pytest.raises(UnknownScheme):
        written_place("mlflow-artifacts:/1")


def test_a_server_is_a_root_that_is_never_deleted() -> None:
    root = Place("mlflow-artifacts", "mlflow.internal:5000", "")
    location = parse_place("mlflow-artifacts:/1", ASKED)
    assert layout_root(location, "1", ASKED) == root
    assert why_sacred(root) == "it is all that the server keeps"


# Places and URIs --------------------------------------------------------------------------------


@settings(max_examples=300)
@given(places)
@example(local("/"))
@example(local("/a b/%2e%2e/?#/"))
@example(Place("s3", "bucket", ""))
@example(Place("s3", "bucket", "//a b/c/%20/"))
def test_a_place_is_read_back_from_its_uri(place: Place) -> None:
    assert parse_place(place_uri(place), NOWHERE) == place


@pytest.mark.parametrize(
    ("place", "uri"),
    [
        (local("/a b/ü/"), "file:///a%20b/%C3%BC/"),
        (local("/\udcff/"), "file:///%FF/"),
        (Place("s3", "bucket", "a b/"), "s3://bucket/a b/"),
        (Place("dbfs", "", "1/"), "dbfs:///1/"),
    ],
)
def test_a_place_is_told_as_a_uri(place: Place, uri: str) -> None:
    assert place_uri(place) == uri


URI_PARTS = st.sampled_from(
    [
        *["/", "//", ".", "..", "%2e", "%2E", "%2f", "%00", "\0", "?", "#", "@", ":", " ", "\n"],
        *["file:", "s3:", "mlflow-artifacts:", "http:", "runs:", "tracking", "1", "a", "%FF", "ü"],
        "/api/2.0/mlflow-artifacts/artifacts/",
    ]
)


@settings(max_examples=300)
@given(st.lists(URI_PARTS, max_size=8).map("".join), st.sampled_from([ON_DISK, IN_BUCKET]))
def test_any_text_is_a_place_or_an_error_of_ours(uri: str, scope: Scope) -> None:
    try:
        place = parse_place(uri, scope)
    except (UnsafeTarget, UnknownScheme):
        return
    assert "\0" not in place.path
    if place.scheme == "file":
        parts = place.path.split("/")
        assert (parts[0], parts[-1]) == ("", "")
        assert not {"", ".", ".."} & set(parts[1:-1])
    else:
        assert place.path == "" or place.path.endswith("/")


# Containment ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (local("/a/"), local("/a/"), True),
        (local("/a/"), local("/a/b/"), True),
        (local("/"), local("/a/"), True),
        (local("/a/b/"), local("/a/"), False),
        (local("/a/1/"), local("/a/10/"), False),
        (local("/a/10/"), local("/a/1/"), False),
        (local("/a/"), local("/A/"), False),
        (Place("s3", "b", ""), Place("s3", "b", "1/"), True),
        (Place("s3", "b", ""), Place("s3", "b2", "1/"), False),
        (Place("s3", "b", "1/"), Place("gs", "b", "1/"), False),
        (Place("s3", "b", "1/"), Place("s3", "b", "/1/"), False),
    ],
)
def test_a_tree_contains_what_lies_below_it(outer: Place, inner: Place, expected: bool) -> None:
    assert contains(outer, inner) is expected


@given(near_places, near_places)
def test_containment_is_by_whole_segments(outer: Place, inner: Place) -> None:
    ours, theirs = outer.path.split("/")[:-1], inner.path.split("/")[:-1]
    same_store = (outer.scheme, outer.authority) == (inner.scheme, inner.authority)
    assert contains(outer, inner) == (same_store and theirs[: len(ours)] == ours)


@given(file_places)
def test_what_is_below_a_place_is_contained_and_never_the_other_way_round(place: Place) -> None:
    deeper = below(place, "run", "artifacts")
    assert contains(place, deeper)
    assert not contains(deeper, place)
    assert deeper.path == place.path + "run/artifacts/"


# Storage roots ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/data/mlruns/1/", "/data/mlruns/"),
        ("/mlruns/1/", "/mlruns/"),
        ("/data/mlruns/10/", "/data/mlruns/10/"),
        ("/data/mlruns/mine/", "/data/mlruns/mine/"),
        ("/1/", "/1/"),
        ("/", "/"),
        ("/data/workspaces/team/1/", "/data/"),
        ("/data/workspaces/team/x/", "/data/workspaces/team/x/"),
        ("/workspaces/team/1/", "/workspaces/team/"),
        ("/data/workspaces/1/", "/data/workspaces/"),
    ],
)
def test_the_root_of_a_location_follows_from_mlflows_layout(path: str, root: str) -> None:
    assert layout_root(local(path), "1", NOWHERE) == local(root)


def test_a_bucket_is_its_own_root() -> None:
    assert layout_root(Place("s3", "bucket", "team/1/"), "1", NOWHERE) == Place("s3", "bucket", "")


def test_folders_on_a_server_have_the_roots_of_folders_on_a_disk() -> None:
    def there(path: str) -> Place:
        return Place("sftp", "me@host", path)

    for path, root in (
        ("data/mlruns/1/", "data/mlruns/"),
        ("data/mine/", "data/mine/"),
        ("1/", "1/"),
    ):
        assert layout_root(there(path), "1", NOWHERE) == there(root)


def test_a_configured_place_in_a_bucket_is_the_root_of_what_lies_below_it() -> None:
    """What is found elsewhere in the bucket says nothing of where proxied files are."""
    assert layout_root(Place("s3", "bucket", "team/1/"), "1", IN_BUCKET) == BUCKET
    assert layout_root(Place("s3", "bucket", "x/1/"), "1", IN_BUCKET) == Place("s3", "bucket", "")


def test_a_known_root_around_a_location_is_its_root_the_nearest_first() -> None:
    location = local("/data/mlruns/x/1/")
    assert layout_root(location, "1", rooted("/data/")) == local("/data/")
    assert layout_root(location, "1", rooted("/data/", "/data/mlruns/", "/")) == local(
        "/data/mlruns/"
    )
    assert layout_root(location, "1", rooted("/data/mlruns/x/1/")) == location


def test_the_destination_is_the_root_of_what_lies_in_it() -> None:
    scope = rooted("/data/", destination=local("/data/mlruns/"))
    assert layout_root(local("/data/mlruns/x/1/"), "1", scope) == local("/data/mlruns/")
    assert layout_root(local("/data/x/1/"), "1", scope) == local("/data/")


def test_a_root_beside_or_inside_a_location_is_not_its_root() -> None:
    scope = rooted("/data/mlruns/1/deep/", "/data/mlrun/", "/other/")
    assert layout_root(local("/data/mlruns/1/"), "1", scope) == local("/data/mlruns/")


@pytest.mark.parametrize(
    ("remembered", "expected"),
    [
        ([], "/data/"),
        (["/data/mlruns/"], "/data/mlruns/"),
        (["/data/mlruns/1/"], "/data/mlruns/1/"),
        (["/data/mlruns/1/", "/data/mlruns/"], "/data/mlruns/1/"),
        (["/data/"], "/data/"),
        (["/", "/data/mlruns/10/", "/data/mlrun/", "/data/mlruns/1/run/", "/mlruns/"], "/data/"),
    ],
)
def test_the_root_that_is_remembered_nearest_to_a_location_is_its_root(
    remembered: list[str], expected: str
) -> None:
    known = [local(path) for path in remembered]
    assert nearest(local("/data/"), local("/data/mlruns/1/"), known) == local(expected)


def test_a_remembered_root_of_another_store_is_none_of_a_location() -> None:
    bucket, location = Place("s3", "bucket", ""), Place("s3", "bucket", "team/1/")
    assert nearest(bucket, location, [Place("s3", "other", "team/")]) == bucket
    assert nearest(bucket, location, [Place("s3", "bucket", "team/")]).path == "team/"
    other = Place("s3", "other", "")
    assert nearest(other, location, [Place("s3", "other", "team/")]) == other


def test_a_root_beside_a_location_is_replaced_by_none() -> None:
    root, location = local("/mnt/disk/"), local("/data/mlruns/1/")
    assert nearest(root, location, [local("/data/"), location]) == root


@pytest.mark.parametrize(
    ("place", "why"),
    [
        (local("/"), "root of the file system"),
        (local("/data/"), "top of the file system"),
        (local("/mlruns/"), "top of the file system"),
        (local("/root/"), "top of the file system"),
        (local("/home/"), "top of the file system"),
        (local("/usr/local/"), "top of the file system"),
        (local("/home/somebody/"), "home folder"),
        (local("/Users/somebody/"), "home folder"),
        (local("/etc/"), "the system"),
        (local("/etc/mlflow/1/"), "the system"),
        (local("/usr/"), "the system"),
        (local("/usr/share/mlruns/"), "the system"),
        (local("/proc/1/root/"), "the system"),
        (local("/lib64/x/"), "the system"),
        (Place("s3", "bucket", ""), "whole bucket"),
        (Place("s3", "bucket", "//"), "whole bucket"),
    ],
)
def test_some_places_are_too_general(place: Place, why: str) -> None:
    assert why in str(why_sacred(place))


SYSTEM = "bin boot dev etc lib lib32 lib64 libx32 proc run sbin sys usr"


@pytest.mark.parametrize("name", SYSTEM.split())
def test_every_folder_of_the_system_is_too_general_and_all_below_it(name: str) -> None:
    assert why_sacred(local(f"/{name}/")) is not None
    assert why_sacred(local(f"/{name}/mlflow/1/")) is not None


@pytest.mark.parametrize(
    "place",
    [
        local("/data/mlruns/"),
        local("/mlruns/1/"),
        local("/home/somebody/mlruns/"),
        local("/usr/local/mlruns/"),
        local("/var/lib/mlflow/"),
        local("/data/etc/"),
        Place("s3", "bucket", "mlruns/"),
        Place("s3", "bucket", "etc/"),
    ],
)
def test_other_places_are_not(place: Place) -> None:
    assert why_sacred(place) is None


# Targets ----------------------------------------------------------------------------------------

LOCATION = "file:///data/mlruns/1"
RUN = Candidate(
    kind=Kind.RUN,
    id="run",
    experiment_id="1",
    token="deleted@1",
    deleted_at=None,
    uri=f"{LOCATION}/run/artifacts",
    location=LOCATION,
)
MODEL = replace(
    RUN, kind=Kind.LOGGED_MODEL, id="m-model", uri=f"{LOCATION}/models/m-model/artifacts"
)


TRACE = replace(RUN, kind=Kind.TRACE, id="tr-trace", uri=f"{LOCATION}/traces/tr-trace/artifacts")


def all_made(
    candidate: Candidate, scope: Scope = NOWHERE, true: Place | None = None
) -> tuple[Target, ...]:
    assert candidate.location is not None
    recorded = parse_place(candidate.location, scope)
    true = true or recorded
    return make_targets(candidate, Site(recorded, true, layout_root(true, "1", scope)), scope)


def made(candidate: Candidate, scope: Scope = NOWHERE, true: Place | None = None) -> Target:
    (target,) = all_made(candidate, scope, true)
    return target


def test_the_tree_of_a_run_is_the_folder_that_carries_its_id() -> None:
    expected = Target(local("/data/mlruns/1/run/artifacts/"), local("/data/mlruns/"))
    assert made(RUN) == expected
    assert made(replace(RUN, uri=None)) == expected
    assert made(replace(RUN, uri="/data//mlruns/1/run/artifacts/")) == expected


def test_the_tree_of_a_logged_model_is_below_models() -> None:
    expected = Target(local("/data/mlruns/1/models/m-model/artifacts/"), local("/data/mlruns/"))
    assert made(MODEL) == expected
    assert made(replace(MODEL, uri=None)) == expected


def test_the_tree_of_a_trace_is_below_traces() -> None:
    expected = Target(local("/data/mlruns/1/traces/tr-trace/artifacts/"), local("/data/mlruns/"))
    assert made(TRACE) == expected
    assert made(replace(TRACE, uri=None)) == expected


def test_a_tree_in_a_bucket_has_the_bucket_for_its_root() -> None:
    stored = replace(RUN, location="s3://bucket/1", uri="s3://bucket/1/run/artifacts")
    expected = Target(Place("s3", "bucket", "1/run/artifacts/"), Place("s3", "bucket", ""))
    assert made(stored) == expected


def test_a_proxied_tree_is_below_the_destination() -> None:
    proxied = replace(
        RUN, location="mlflow-artifacts:/1", uri="mlflow-artifacts://tracking/1/run/artifacts"
    )
    assert made(proxied, ON_DISK) == Target(local("/srv/artifacts/1/run/artifacts/"), DISK)


def test_a_tree_is_under_the_true_name_of_its_location() -> None:
    target = made(RUN, true=local("/mnt/disk/mlruns/1/"))
    assert target == Target(local("/mnt/disk/mlruns/1/run/artifacts/"), local("/mnt/disk/mlruns/"))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/",
        LOCATION,
        f"{LOCATION}/run",
        f"{LOCATION}/run/artifacts/model",
        f"{LOCATION}/run2/artifacts",
        f"{LOCATION}/RUN/artifacts",
        f"{LOCATION}/models/run/artifacts",
        f"{LOCATION}/x/run/artifacts",
        f"{LOCATION}/../1/run/artifacts",
        "/data/mlruns/2/run/artifacts",
        "/data/mlruns/10/run/artifacts",
        "s3://bucket/1/run/artifacts",
        "runs:/run/artifacts",
    ],
)
def test_a_tree_anywhere_else_is_refused(uri: str) -> None:
    with pytest.raises(UnsafeTarget):
        made(replace(RUN, uri=uri))


def test_a_tree_anywhere_else_says_what_allows_it() -> None:
    with pytest.raises(UnsafeTarget) as caught:
        made(replace(RUN, uri="/attic/run/artifacts"))
    assert caught.value.message == (
        "its artifact URI file:///attic/run/artifacts/ is not file:///data/mlruns/1/run/artifacts/"
    )
    assert "artifacts.roots" in str(caught.value.hint)


def test_a_tree_of_another_server_has_no_backend() -> None:
    with pytest.raises(UnknownScheme):
        made(replace(RUN, uri="mlflow-artifacts://other/1/run/artifacts"), ON_DISK)


@pytest.mark.parametrize("uri", ["/attic/run/artifacts", "/attic/deep/er/run/artifacts"])
def test_a_configured_root_allows_trees_with_the_right_id(uri: str) -> None:
    target = made(replace(RUN, uri=uri), rooted("/attic/"))
    assert target == Target(local(f"{uri}/"), local("/attic/"))


def test_the_nearest_configured_root_is_the_root_of_a_tree() -> None:
    scope = rooted("/attic/", "/attic/old/", "/")
    target = made(replace(RUN, uri="/attic/old/x/run/artifacts"), scope)
    assert target.root == local("/attic/old/")


@pytest.mark.parametrize(
    "uri",
    [
        "/attic",
        "/attic/run",
        "/attic/run2/artifacts",
        "/attic/2run/artifacts",
        "/attic/run/artifacts/model",
        "/attics/run/artifacts",
        "/other/run/artifacts",
    ],
)
def test_a_configured_root_allows_nothing_else(uri: str) -> None:
    with pytest.raises(UnsafeTarget, match="is not"):
        made(replace(RUN, uri=uri), rooted("/attic/"))


@pytest.mark.parametrize(("candidate", "folder"), [(MODEL, "models"), (TRACE, "traces")])
def test_a_model_or_trace_elsewhere_must_be_below_its_folder(
    candidate: Candidate, folder: str
) -> None:
    scope = rooted("/attic/")
    uri = f"/attic/{folder}/{candidate.id}/artifacts"
    assert made(replace(candidate, uri=uri), scope).place == local(f"{uri}/")
    for other in ("", "runs/", "models/" if folder == "traces" else "traces/"):
        with pytest.raises(UnsafeTarget):
            made(replace(candidate, uri=f"/attic/{other}{candidate.id}/artifacts"), scope)


@pytest.mark.parametrize("root", ["/attic/run/artifacts/", "/attic/run/"])
def test_a_tree_must_be_well_below_its_root(root: str) -> None:
    with pytest.raises(UnsafeTarget, match="not well below its storage root"):
        made(replace(RUN, uri="/attic/run/artifacts"), rooted(root))


def test_a_tree_outside_the_root_of_its_site_is_refused() -> None:
    recorded = parse_place(LOCATION, NOWHERE)
    with pytest.raises(UnsafeTarget, match="not well below its storage root"):
        make_targets(RUN, Site(recorded, recorded, local("/mnt/disk/")), NOWHERE)


@pytest.mark.parametrize(
    "location", ["/", "/data", "/etc/mlflow", "/home/somebody", "s3://bucket", "gs://bucket/"]
)
def test_nothing_is_deleted_below_a_place_that_is_too_general(location: str) -> None:
    placed = replace(RUN, location=location, uri=None)
    with pytest.raises(UnsafeTarget) as caught:
        made(placed)
    assert caught.value.message.startswith("its experiment's location is ")
    assert caught.value.hint == "artifacts.roots allows it"


def test_a_location_is_judged_by_its_true_name() -> None:
    with pytest.raises(UnsafeTarget, match="the system"):
        made(RUN, true=local("/etc/mlflow/1/"))


def test_a_configured_root_allows_a_place_that_is_too_general() -> None:
    placed = replace(RUN, location="/home/somebody", uri=None)
    target = made(placed, rooted("/home/somebody/"))
    assert target.place == local("/home/somebody/run/artifacts/")
    with pytest.raises(UnsafeTarget):
        made(placed, rooted("/home/somebody/mlruns/", "/home/some/"))


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "/", "../1", "a\0b"])
@pytest.mark.parametrize("kind", [Kind.RUN, Kind.LOGGED_MODEL, Kind.TRACE])
@pytest.mark.parametrize("uri", [None, f"{LOCATION}/../artifacts"])
def test_an_id_that_is_no_folder_name_has_no_tree(bad: str, kind: Kind, uri: str | None) -> None:
    with pytest.raises(UnsafeTarget, match="cannot be the name of a folder"):
        made(replace(RUN, kind=kind, id=bad, uri=uri), rooted("/"))


def test_a_job_has_no_tree() -> None:
    with pytest.raises(UnsafeTarget, match="no tree of its own"):
        made(replace(RUN, kind=Kind.JOB, uri=f"{LOCATION}/run/artifacts"), rooted("/data/"))


# Archived traces --------------------------------------------------------------------------------

# As MLflow 3.17 writes it: <archival location>/<experiment>/traces/<trace>/artifacts.
ARCHIVED = replace(TRACE, archive_uri="/attic/1/traces/tr-trace/artifacts")


def test_an_archived_trace_has_two_trees_each_below_its_own_root() -> None:
    payload = Target(local("/data/mlruns/1/traces/tr-trace/artifacts/"), local("/data/mlruns/"))
    archive = Target(local("/attic/1/traces/tr-trace/artifacts/"), local("/attic/"))
    assert all_made(ARCHIVED, rooted("/attic/")) == (payload, archive)
    assert all_made(replace(ARCHIVED, uri=None), rooted("/attic/")) == (payload, archive)
    assert all_made(replace(ARCHIVED, archive_uri=None), rooted("/attic/")) == (payload,)
    assert all_made(replace(ARCHIVED, archive_uri=""), rooted("/attic/")) == (payload,)


def test_an_archive_outside_the_scope_refuses_both_trees_and_says_the_mend() -> None:
    with pytest.raises(UnsafeTarget, match="file:///attic/1/traces/tr-trace/artifacts/") as caught:
        all_made(ARCHIVED)
    assert "artifacts.roots" in str(caught.value.hint)


@pytest.mark.parametrize(
    "uri",
    [
        "/attic",
        "/attic/1/traces",
        "/attic/1/traces/tr-trace",
        "/attic/1/traces/tr-trace/artifacts/spans",
        "/attic/1/traces/tr-trace2/artifacts",
        "/attic/1/models/tr-trace/artifacts",
        "/attic/1/tr-trace/artifacts",
        "/attic/../data/mlruns/1/traces/tr-trace/artifacts",
        "/elsewhere/1/traces/tr-trace/artifacts",
        "traces/tr-trace/artifacts",
    ],
)
def test_an_archive_must_carry_the_id_below_a_configured_root(uri: str) -> None:
    with pytest.raises(UnsafeTarget):
        all_made(replace(ARCHIVED, archive_uri=uri), rooted("/attic/"))


def test_an_archive_in_a_store_without_a_backend_has_no_tree_that_can_go() -> None:
    with pytest.raises(UnknownScheme):
        all_made(replace(ARCHIVED, archive_uri="mlflow-artifacts:/1/traces/tr-trace/artifacts"))


def test_an_archive_in_the_place_of_the_trace_itself_is_one_tree() -> None:
    """As where the archival location is the artifact root: it is not measured or swept twice."""
    same = replace(TRACE, archive_uri="/data/mlruns/1/traces/tr-trace/artifacts/")
    assert len(all_made(same)) == 1


# The folder of an experiment --------------------------------------------------------------------

EXPERIMENT = replace(RUN, kind=Kind.EXPERIMENT, id="1", uri=None)


def test_an_experiment_has_its_folder_and_no_tree() -> None:
    assert made(EXPERIMENT) == Target(local("/data/mlruns/1/"), local("/data/mlruns/"))
    true = local("/mnt/disk/mlruns/1/")
    assert made(EXPERIMENT, true=true) == Target(true, local("/mnt/disk/mlruns/"))
    stored = replace(EXPERIMENT, location="s3://bucket/team/1")
    assert made(stored) == Target(Place("s3", "bucket", "team/1/"), Place("s3", "bucket", ""))


def test_an_experiment_whose_folder_is_a_storage_root_says_so() -> None:
    """What is deleted with it is only what MLflow made in it."""
    mine = replace(EXPERIMENT, location="/data/mlruns/mine")
    assert made(mine) == Target(local("/data/mlruns/mine/"), local("/data/mlruns/mine/"))


@pytest.mark.parametrize(
    "location", ["/", "/data", "/etc/mlflow", "/home/somebody", "s3://bucket", "gs://bucket/"]
)
def test_an_experiment_in_a_place_that_is_too_general_has_no_folder(location: str) -> None:
    with pytest.raises(UnsafeTarget) as caught:
        all_made(replace(EXPERIMENT, location=location))
    assert caught.value.hint == "artifacts.roots allows it"
    if location.startswith("/home"):
        assert made(replace(EXPERIMENT, location=location), rooted(location + "/"))


def test_an_experiment_outside_the_root_of_its_site_has_no_folder() -> None:
    recorded = parse_place(LOCATION, NOWHERE)
    site = Site(recorded, recorded, local("/mnt/disk/"))
    assert make_targets(EXPERIMENT, site, NOWHERE) == ()


@pytest.mark.parametrize(
    "scope",
    [rooted("/data/mlruns/1/models/"), rooted(destination=local("/data/mlruns/1/traces/"))],
)
def test_an_experiment_whose_folder_holds_another_storage_root_has_none(scope: Scope) -> None:
    """A disk that is not mounted is an empty folder: rmdir would take its mount point away."""
    with suppress(UnsafeTarget):
        assert all_made(EXPERIMENT, scope) == ()


PATHS = st.lists(
    st.sampled_from(["run", "artifacts", "models", "1", "attic", "data", "mlruns", "home", ".."]),
    max_size=5,
).map(lambda parts: "/" + "/".join(parts))


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(FOLDERS)),
    st.sampled_from(["run", "artifacts", "models", "..", "1"]),
    PATHS | st.builds("s3://b{}".format, PATHS) | st.builds("mlflow-artifacts:{}".format, PATHS),
    st.none() | PATHS | st.just("canonical"),
    st.none() | PATHS | st.just("canonical"),
    st.sampled_from([NOWHERE, ON_DISK, IN_BUCKET, rooted("/attic/"), rooted("/")]),
)
def test_whatever_is_recorded_targets_carry_the_id_well_below_their_roots(
    kind: Kind, entity: str, location: str, uri: str | None, archive: str | None, scope: Scope
) -> None:
    tail = f"{FOLDERS[kind]}{entity}/artifacts"
    canonical = f"{location.rstrip('/')}/{tail}"
    uri, archive = (canonical if each == "canonical" else each for each in (uri, archive))
    candidate = replace(RUN, kind=kind, id=entity, location=location, uri=uri, archive_uri=archive)
    with suppress(GcdError):
        targets = all_made(candidate, scope)
        home = parse_place(location, scope)
        recorded = [parse_place(each, scope) for each in (uri, archive) if each is not None]
        own = below(home, *tail.split("/"))
        assert {target.place for target in targets} == {*recorded, *([own] if uri is None else [])}
        for target in targets:
            assert target.place.path.endswith(f"/{tail}/")
            assert contains(target.root, target.place)
            rest = target.place.path.removeprefix(target.root.path)
            assert rest.count("/") >= 2
            assert any(contains(place, target.place) for place in (home, *scope.roots))
            assert not contains(target.place, home)


@settings(max_examples=300)
@given(
    st.sampled_from(["1", "run", "artifacts", "..", "mlruns"]),
    PATHS | st.builds("s3://b{}".format, PATHS) | st.builds("mlflow-artifacts:{}".format, PATHS),
    st.sampled_from([NOWHERE, ON_DISK, IN_BUCKET, rooted("/attic/"), rooted("/")]),
)
def test_whatever_is_recorded_an_experiments_folder_is_its_location_and_not_too_general(
    entity: str, location: str, scope: Scope
) -> None:
    candidate = replace(EXPERIMENT, id=entity, experiment_id=entity, location=location)
    with suppress(GcdError):
        for target in all_made(candidate, scope):
            assert target.place == parse_place(location, scope)
            assert contains(target.root, target.place)
            is_allowed = any(contains(root, target.place) for root in scope.roots)
            assert is_allowed or why_sacred(target.place) is None


# What MLflow does with a path -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "scope", "place"),
    [
        # LocalArtifactRepository unquotes a bare path as well (tried, MLflow 3.17).
        ("/data/1/%64ead/artifacts", NOWHERE, local("/data/1/dead/artifacts/")),
        ("/data/team%20a", NOWHERE, local("/data/team a/")),
        # The tracking server unquotes a proxied path until it stops changing (tried).
        (
            "mlflow-artifacts:/1/%64ead/artifacts",
            ON_DISK,
            local("/srv/artifacts/1/dead/artifacts/"),
        ),
        ("mlflow-artifacts:/1/%2564ead", ON_DISK, local("/srv/artifacts/1/dead/")),
        ("mlflow-artifacts:/team%20a", IN_BUCKET, Place("s3", "bucket", "team/team a/")),
        # Clients collapse its slashes, whatever the destination is (tried).
        ("mlflow-artifacts:/1//dead", IN_BUCKET, Place("s3", "bucket", "team/1/dead/")),
    ],
)
def test_a_place_is_where_mlflow_writes(uri: str, scope: Scope, place: Place) -> None:
    assert parse_place(uri, scope) == place


@pytest.mark.parametrize("path", ["/data/%2e%2e/etc", "/data%2F..%2Fetc", "/%2e/data"])
def test_quoted_dots_of_a_bare_path_are_refused(path: str) -> None:
    with pytest.raises(UnsafeTarget, match="dots"):
        parse_place(path, NOWHERE)


@pytest.mark.parametrize("path", ["1%2F..%2F..%2Fetc", "1/%252e%252e/x"])
def test_proxied_dots_are_refused_however_they_are_quoted(path: str) -> None:
    with pytest.raises(UnsafeTarget, match="dots"):
        parse_place(f"mlflow-artifacts:/{path}", ON_DISK)


@pytest.mark.parametrize(
    "uri",
    [
        "mlflow-artifacts://tracking:x@evil.example/1/run/artifacts",
        "http://tracking:x@evil.example/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts",
    ],
)
def test_a_user_is_not_taken_for_a_host(uri: str) -> None:
    with pytest.raises(UnknownScheme):
        parse_place(uri, ON_DISK)


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:secret@host/data",
        "https://me:secret@host/1/../x",
        "file://me:secret@host/data",
        "mlflow-artifacts://me:secret@host/1",
    ],
)
def test_no_error_tells_a_password(uri: str) -> None:
    with pytest.raises(GcdError) as caught:
        parse_place(uri, ON_DISK)
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    "scope",
    [
        rooted("/data/mlruns/1/run/artifacts/"),
        rooted("/data/mlruns/1/run/artifacts/deep/"),
        rooted(destination=local("/data/mlruns/1/run/artifacts/")),
        rooted("/data/", destination=local("/data/mlruns/1/run/artifacts/deep/")),
    ],
)
def test_a_tree_that_is_or_contains_any_storage_root_is_refused(scope: Scope) -> None:
    with pytest.raises(UnsafeTarget):
        made(RUN, scope)


def test_a_tree_elsewhere_that_contains_a_storage_root_is_refused() -> None:
    scope = rooted("/attic/", "/attic/run/artifacts/deep/")
    with pytest.raises(UnsafeTarget):
        made(replace(RUN, uri="/attic/run/artifacts"), scope)
