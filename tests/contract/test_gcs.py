"""The store of Google Cloud Storage keeps the contract on its emulator, and on a stub that keeps every key as it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from gcd.model import Place
from gcd.testing import ODD_KEYS, ODD_NAMES, ArtifactStoreContract
from tests.contract.test_s3 import HARD_NAMES, NOT_UTF8
from tests.gcs_server import new_bucket, new_store, plain_client, sizes_of
from tests.gcs_stub import Fault, stub_server

numbers = itertools.count()


@pytest.fixture(scope="session")
def bucket(gcs: str) -> Any:
    """A bucket for the tests of a module."""
    return new_bucket(plain_client(gcs))


class TestOnEmulator(ArtifactStoreContract):
    marks_are_exclusive = False  # the emulator looks first, and writes then
    unsupported = NOT_UTF8 | {"up/../down"}
    """The emulator keeps objects in a file system."""

    @pytest.fixture(autouse=True)
    def _fresh(self, gcs: str, bucket: Any) -> None:
        self.bucket, self.store = bucket, new_store(gcs)
        self.root = Place("gs", bucket.name, f"t{next(numbers)}/ml-flow/")

    def put(self, key: str, data: bytes) -> None:
        self.bucket.blob(self.root.path + key).upload_from_string(data, retry=None)

    def keys(self) -> set[str]:
        return {key.removeprefix(self.root.path) for key in sizes_of(self.bucket, self.root.path)}


class TestOnStub(ArtifactStoreContract):
    """A bucket that keeps any key, whose listings have short pages."""

    unsupported = NOT_UTF8
    versions = "current"

    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        with stub_server() as self.stub:
            self.stub.objects["bucket"] = {}
            self.store = self.stub.store(versions=self.versions)
            self.root = Place("gs", "bucket", "ml/flow/")
            yield

    def put(self, key: str, data: bytes) -> None:
        self.stub.put("bucket", self.root.path + key, data)

    def keys(self) -> set[str]:
        return {key.removeprefix(self.root.path) for key in self.stub.keys("bucket")}

    def test_hard_names_of_objects_are_deleted(self) -> None:
        names = (*HARD_NAMES, *ODD_NAMES[:-1], *ODD_KEYS, "")
        gone = {f"1/run1/artifacts/{name}" for name in names}
        self._put_all(gone | {"1/run1", "1/run1/artifacts", "1/run10/artifacts/f"})
        assert self.delete("1/run1/artifacts/").usage.objects == len(gone)
        assert self.keys() == {"1/run1", "1/run1/artifacts", "1/run10/artifacts/f"}

    def test_trees_with_hard_names_are_told_apart(self) -> None:
        for name in HARD_NAMES:
            kept = {f"1/{name}x/artifacts/f", "1/run/artifacts/f", "run/artifacts/f"}
            self._put_all(kept | {f"1/{name}/artifacts/f", f"1/{name}/other"})
            assert self.delete(f"1/{name}/artifacts/").usage.objects == 1
            assert self.keys() == kept | {f"1/{name}/other"}
            self.stub.objects["bucket"].clear()

    @pytest.mark.parametrize("path", ["/", "//", "/lead/", "a//b/", "%2F/", "./", "../", " /"])
    def test_roots_with_hard_names_are_what_they_are(self, path: str) -> None:
        self.root = Place("gs", "bucket", path)
        kept = {path.strip("/") + "/1/run1/artifacts/f", "1/run1/artifacts/f"}
        for key in (*kept, f"{path}1/run1/artifacts/f"):
            self.stub.put("bucket", key)
        assert self.delete("1/run1/artifacts/").usage.objects == 1
        assert self.stub.keys("bucket") == kept - {f"{path}1/run1/artifacts/f"}


class TestOnStubOneByOne(TestOnStub):
    """The same where there are no batches, and where each generation is deleted by itself."""

    versions = "all"

    @pytest.fixture(autouse=True)
    def _without_batches(self, _fresh: None) -> None:
        self.stub.always["batch"] = Fault("refuse", 404, "notFound")
