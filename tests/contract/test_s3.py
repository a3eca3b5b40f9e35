"""S3's store keeps the contract on a stub that keeps every key as it is, on moto and on real servers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from gcd.model import Place
from gcd.testing import ODD_KEYS, ODD_NAMES, ArtifactStoreContract
from tests.object_servers import ObjectServer, keys_of, new_bucket
from tests.s3_stub import stub_server

NOT_UTF8 = frozenset({"\udcff\udcfe"})
HARD_NAMES = (
    *["a<b>c", "nbsp\u00a0", "bom\ufeff", "dot.", "trailing ", "del\x7f", "cr\rlf", "one\x01two"],
    *["nul-like\x1f", "\ufffe", "+", "%", "%25", "a=b/c", "dir//", "/", "..", ".", "x/../../y"],
)
"""More names of objects in a tree: what consoles, sync tools and users' own texts leave."""

numbers = itertools.count()


@pytest.fixture(scope="session")
def bucket(objects: ObjectServer) -> tuple[Any, str]:
    """A client, and a bucket for the tests of a module."""
    client = objects.client()
    return client, new_bucket(client)


class _OnServer(ArtifactStoreContract):
    @pytest.fixture(autouse=True)
    def _fresh(self, objects: ObjectServer, bucket: tuple[Any, str]) -> None:
        self.client, name = bucket
        self.server = objects
        self.store = objects.store()
        self.root = Place("s3", name, f"t{next(numbers)}/ml-flow/")

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.root.authority, Key=self.root.path + key, Body=data)

    def keys(self) -> set[str]:
        found = keys_of(self.client, self.root.authority, self.root.path)
        return {key.removeprefix(self.root.path) for key in found}


class TestOnServers(_OnServer):
    def _supported(self, *names: str) -> list[str]:
        refused = {
            "moto": {"line\nbreak", "\udcff\udcfe"},
            "seaweedfs": {*ODD_KEYS, *NOT_UTF8, *(n for n in ODD_NAMES if "\\" in n)},
        }
        refused["radosgw"] = NOT_UTF8
        return [name for name in names if name not in refused[self.server.name]]

    @pytest.mark.parametrize(
        "objects", ["seaweedfs", "radosgw"], indirect=True
    )  # moto takes any credentials
    def test_wrong_credentials_are_one_clear_sentence(self) -> None:
        for name, mend in (("SECRET_ACCESS_KEY", "secret"), ("ACCESS_KEY_ID", "access key")):
            store = self.server.store({f"AWS_{name}": "not-the-right-one"})
            problem = store.probe(self.root, ()).problem
            assert problem is not None
            assert f"check the {mend}" in problem
            assert "not-the-right-one" not in problem

    @pytest.mark.parametrize("objects", ["radosgw"], indirect=True)  # it keeps every key as it is
    def test_hard_names_of_objects_are_deleted(self) -> None:
        gone = {f"1/run1/artifacts/{name}" for name in (*HARD_NAMES, *ODD_KEYS, "")}
        kept = {f"1/run1/{name}/f" for name in HARD_NAMES} | {"1/run1/artifacts"}
        self._put_all(gone | kept)
        assert self.delete("1/run1/artifacts/").usage.objects == len(gone)
        assert self.keys() == kept


class TestOnStub(ArtifactStoreContract):
    """A bucket that keeps any key, whose listings have short pages."""

    unsupported = NOT_UTF8

    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        with stub_server() as self.stub:
            self.stub.keys["bucket"] = {}
            server = ObjectServer("stub", self.stub.url)
            self.store, self.root = server.store(), Place("s3", "bucket", "ml/flow/")
            yield

    def put(self, key: str, data: bytes) -> None:
        self.stub.keys["bucket"][self.root.path + key] = data

    def keys(self) -> set[str]:
        return {key.removeprefix(self.root.path) for key in self.stub.keys["bucket"]}

    def test_hard_names_of_objects_are_deleted(self) -> None:
        gone = {
            f"1/run1/artifacts/{name}" for name in (*HARD_NAMES, *ODD_NAMES[:-1], *ODD_KEYS, "")
        }
        self._put_all(gone | {"1/run1", "1/run1/artifacts", "1/run10/artifacts/f"})
        assert self.delete("1/run1/artifacts/").usage.objects == len(gone)
        assert self.keys() == {"1/run1", "1/run1/artifacts", "1/run10/artifacts/f"}

    @pytest.mark.parametrize("name", HARD_NAMES)
    def test_trees_with_hard_names_are_told_apart(self, name: str) -> None:
        kept = {f"1/{name}x/artifacts/f", "1/run/artifacts/f", "run/artifacts/f", f"1/{name}/other"}
        self._put_all(kept | {f"1/{name}/artifacts/f"})
        assert self.delete(f"1/{name}/artifacts/").usage.objects == 1
        assert self.keys() == kept

    @pytest.mark.parametrize("path", ["/", "//", "/lead/", "a//b/", "%2F/", "./", "../", " /"])
    def test_roots_with_hard_names_are_what_they_are(self, path: str) -> None:
        self.root = Place("s3", "bucket", path)
        tidy = path.strip("/") + "/1/run1/artifacts/f"
        self.stub.keys["bucket"] = {
            tidy: b"",
            "1/run1/artifacts/f": b"",
            f"{path}1/run1/artifacts/f": b"",
        }
        expected = set(self.stub.keys["bucket"]) - {f"{path}1/run1/artifacts/f"}
        assert self.delete("1/run1/artifacts/").usage.objects == 1
        assert set(self.stub.keys["bucket"]) == expected
