"""Marks in buckets whose store or whose credentials allow less than others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest

from gcd.artifacts.base import MARK
from gcd.artifacts.s3 import S3ArtifactStore
from gcd.errors import PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Place
from tests.object_servers import ObjectServer
from tests.s3_stub import Fault, Stub, stub_server

ROOT = Place("s3", "bucket", "ml/")
KEY = ROOT.path + MARK
DENIED = Fault("refuse", "AccessDenied")


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as stub:
        stub.keys["bucket"] = {}
        yield stub


@pytest.fixture
def store(stub: Stub) -> S3ArtifactStore:
    made: S3ArtifactStore = ObjectServer("stub", stub.url).store()
    return made


def test_a_store_that_knows_no_condition_is_asked_without_one(
    stub: Stub, store: S3ArtifactStore
) -> None:
    stub.faults["put"] = deque([Fault("refuse", "NotImplemented")])
    assert store.write_mark(ROOT, b"mark", before=None)
    assert stub.keys["bucket"] == {KEY: b"mark"}
    assert stub.count("put") == 2


def test_who_may_not_read_knows_by_the_listing_that_there_is_none(
    stub: Stub, store: S3ArtifactStore
) -> None:
    stub.always["get"] = DENIED
    stub.keys["bucket"][KEY + ".bak"] = b"x"
    assert store.read_mark(ROOT) is None
    stub.keys["bucket"][KEY] = b"mark"
    with pytest.raises(UnsafeTarget, match="AccessDenied"):
        store.read_mark(ROOT)


def test_who_may_not_read_writes_no_mark(stub: Stub, store: S3ArtifactStore) -> None:
    stub.always["get"] = DENIED
    with pytest.raises(PermanentArtifactError, match="AccessDenied"):
        store.write_mark(ROOT, b"mark", before=None)
    assert stub.keys["bucket"] == {}


def test_who_may_neither_read_nor_list_cannot_tell(stub: Stub, store: S3ArtifactStore) -> None:
    stub.always = {"get": DENIED, "list": DENIED}
    with pytest.raises(PermanentArtifactError, match="AccessDenied"):
        store.read_mark(ROOT)


def test_who_may_not_write_is_told(stub: Stub, store: S3ArtifactStore) -> None:
    stub.always["put"] = DENIED
    with pytest.raises(PermanentArtifactError) as caught:
        store.write_mark(ROOT, b"mark", before=None)
    assert caught.value.hint == "allow s3:PutObject"


def test_a_store_that_is_away_is_no_store_without_marks(stub: Stub, store: S3ArtifactStore) -> None:
    stub.always["get"] = Fault("reset")
    with pytest.raises(TransientArtifactError):
        store.read_mark(ROOT)


def test_a_write_that_got_lost_is_no_mark(stub: Stub, store: S3ArtifactStore) -> None:
    """The store did it, and its answer was lost: it is read back before it counts."""
    stub.faults["put"] = deque([Fault("broken")])
    is_written = store.write_mark(ROOT, b"mark", before=None)
    assert stub.keys["bucket"] == {KEY: b"mark"}
    assert is_written is False  # the second request met the first one's; the caller looks again
