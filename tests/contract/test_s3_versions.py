"""Buckets that keep old versions, hold some of them, and have uploads that nobody finished."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gcd.artifacts.s3 import S3ArtifactStore
from gcd.errors import ArtifactError, LockedArtifactError, PermanentArtifactError
from gcd.model import Place, Root, Target, Usage
from tests.object_servers import ObjectServer, keys_of, new_bucket

TREE, NEIGHBOUR = "ml/1/run1/artifacts/", "ml/1/run10/artifacts/"


class Versioned:
    """A versioned bucket with a tree of two objects, of three versions and a marker each, and a neighbour."""

    def __init__(self, objects: ObjectServer, **options: Any) -> None:
        self.server, self.client = objects, objects.client()
        self.name = new_bucket(self.client, **options)
        self.root = Place("s3", self.name, "ml/")
        self.client.put_bucket_versioning(
            Bucket=self.name, VersioningConfiguration={"Status": "Enabled"}
        )

    def fill(self) -> None:
        for key in (f"{TREE}a", f"{TREE}model/b c", f"{NEIGHBOUR}a"):
            for body in (b"1", b"22"):
                self.put(key, body)
            self.client.delete_object(Bucket=self.name, Key=key)
            self.put(key, b"333")

    def put(self, key: str, body: bytes = b"x", **options: Any) -> str:
        made = self.client.put_object(Bucket=self.name, Key=key, Body=body, **options)
        return str(made["VersionId"])

    def versions(self, prefix: str) -> int:
        """Versions and markers."""
        found = self.client.list_object_versions(Bucket=self.name, Prefix=prefix)
        return len(found.get("Versions", ())) + len(found.get("DeleteMarkers", ()))

    def delete(self, store: S3ArtifactStore, tree: str = TREE) -> Usage:
        place = Place("s3", self.name, tree)
        root = Root(self.root, store.probe(self.root, ()))
        return store.delete(Target(place, self.root), root).usage


@pytest.fixture
def bucket(objects: ObjectServer) -> Versioned:
    made = Versioned(objects)
    made.fill()
    return made


def test_current_versions_go_and_the_operator_is_told(bucket: Versioned) -> None:
    store = bucket.server.store()
    note = store.probe(bucket.root, ()).note
    assert note is not None
    assert "keeps old versions" in note
    assert bucket.delete(store) == Usage(2, 6)
    assert keys_of(bucket.client, bucket.name) == {f"{NEIGHBOUR}a"}
    assert bucket.versions(TREE) > 6
    said = [each for each in store.inspect(bucket.root) if "no space is freed" in each.seen]
    assert said[0].mend


def test_a_second_deletion_piles_up_no_markers(bucket: Versioned) -> None:
    store = bucket.server.store()
    bucket.delete(store)
    before = bucket.versions(TREE)
    assert bucket.delete(store) == Usage()
    assert bucket.versions(TREE) == before


def test_every_version_and_marker_goes_where_that_is_asked_for(bucket: Versioned) -> None:
    store = bucket.server.store(versions="all")
    assert store.probe(bucket.root, ()).note is None
    assert store.measure(Target(Place("s3", bucket.name, TREE), bucket.root)) == Usage(6, 12)
    assert bucket.delete(store) == Usage(6, 12)
    assert bucket.versions(TREE) == 0
    assert bucket.versions(NEIGHBOUR) == 4
    assert not [each for each in store.inspect(bucket.root) if each.mend]


def test_what_was_deleted_before_goes_too_where_all_is_asked_for(bucket: Versioned) -> None:
    bucket.delete(bucket.server.store())
    assert bucket.delete(bucket.server.store(versions="all")).objects == 6
    assert bucket.versions(TREE) == 0


def test_a_bucket_without_versions_is_emptied_either_way(objects: ObjectServer) -> None:
    client = objects.client()
    name = new_bucket(client)
    for versions in ("current", "all"):
        client.put_object(Bucket=name, Key=f"{TREE}a", Body=b"xy")
        client.put_object(Bucket=name, Key=f"{NEIGHBOUR}a", Body=b"xy")
        store, root = objects.store(versions=versions), Place("s3", name, "ml/")
        probe = store.probe(root, ())
        assert probe.note is None
        target = Target(Place("s3", name, TREE), root)
        assert store.delete(target, Root(root, probe)).usage == Usage(1, 2)
        assert keys_of(client, name) == {f"{NEIGHBOUR}a"}


# What the store holds ---------------------------------------------------------------------------


@pytest.fixture
def locked(objects: ObjectServer) -> Versioned:
    return Versioned(objects, ObjectLockEnabledForBucket=True)


def failure(bucket: Versioned, store: S3ArtifactStore) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        bucket.delete(store)
    return caught.value


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_a_retained_version_is_told_with_its_end_and_the_rest_goes(
    locked: Versioned, mode: str
) -> None:
    until = (datetime.now(UTC) + timedelta(days=3)).replace(microsecond=0)
    held = {"ObjectLockMode": mode, "ObjectLockRetainUntilDate": until}
    locked.put(f"{TREE}held", **held)
    locked.put(f"{TREE}free")
    error = failure(locked, locked.server.store(versions="all"))
    if locked.server.name == "moto":  # it does not tell of retention
        assert isinstance(error, PermanentArtifactError), repr(error)
        return
    assert isinstance(error, LockedArtifactError), repr(error)
    assert error.until is not None
    assert abs(error.until - until) < timedelta(seconds=2)
    assert keys_of(locked.client, locked.name) == {f"{TREE}held"}
    assert any("Object Lock" in each.seen for each in locked.server.store().inspect(locked.root))


def test_a_legal_hold_has_no_end(locked: Versioned) -> None:
    version = locked.put(f"{TREE}held", ObjectLockLegalHoldStatus="ON")
    store = locked.server.store(versions="all")
    error = failure(locked, store)
    assert isinstance(error, LockedArtifactError), repr(error)
    assert error.until is None
    assert "legal hold" in error.message
    where = {"Bucket": locked.name, "Key": f"{TREE}held", "VersionId": version}
    locked.client.put_object_legal_hold(**where, LegalHold={"Status": "OFF"})
    assert locked.delete(store).objects == 1
    assert locked.versions(TREE) == 0


# Uploads ----------------------------------------------------------------------------------------


def test_unfinished_uploads_of_a_tree_go_with_it(objects: ObjectServer) -> None:
    client = objects.client()
    name = new_bucket(client)
    for key in (f"{TREE}big", f"{NEIGHBOUR}big", f"{TREE}deep/er"):
        begun = client.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
        part = {"Bucket": name, "Key": key, "UploadId": begun, "PartNumber": 1}
        client.upload_part(**part, Body=b"x" * 1000)
    store, root = objects.store(), Place("s3", name, "ml/")
    target = Target(Place("s3", name, TREE), root)
    store.delete(target, Root(root, store.probe(root, ())))
    left = client.list_multipart_uploads(Bucket=name).get("Uploads", [])
    assert [each["Key"] for each in left] == [f"{NEIGHBOUR}big"]
