"""The proxy's store keeps the contract on real MLflow servers, before a folder and before a bucket."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gcd.artifacts.base import Options
from gcd.artifacts.pace import Pace
from gcd.artifacts.proxy import ProxyArtifactStore
from gcd.errors import PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Place
from gcd.testing import ODD_KEYS, ArtifactStoreContract
from tests.mlflow_server import files_below, mlflow_server
from tests.object_servers import keys_of, moto, new_bucket

NOT_UTF8 = "\udcff\udcfe"
REFUSED = frozenset({"%2e%2e", "%2F", "hash#mark", "question?mark", "line\nbreak", "tab\tbed"})
"""Names of folders that MLflow's server takes for others, or refuses (tried)."""

numbers = itertools.count()


class _OnServer(ArtifactStoreContract):
    url: str

    def _fresh_root(self) -> None:
        self.store = ProxyArtifactStore(self.url, Options())
        authority = self.url.removeprefix("http://")
        self.root = Place("mlflow-artifacts", authority, f"t{next(numbers)}/ml flow/")

    def test_odd_names_of_trees_are_told_apart(self) -> None:
        for name in REFUSED:
            with pytest.raises(UnsafeTarget):
                self.store.examine(self.target(f"1/{name}/artifacts/"))
        self.unsupported = type(self).unsupported | REFUSED  # type: ignore[misc]
        super().test_odd_names_of_trees_are_told_apart()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server before a folder, and the folder."""
    folder = tmp_path_factory.mktemp("server")
    destination = folder / "destination"
    destination.mkdir()
    with mlflow_server(
        folder, "--artifacts-only", "--artifacts-destination", str(destination)
    ) as url:
        yield url, destination


class TestBeforeAFolder(_OnServer):
    unsupported = frozenset({*ODD_KEYS, NOT_UTF8})

    @pytest.fixture(autouse=True)
    def _fresh(self, served: tuple[str, Path]) -> None:
        self.url, self.destination = served
        self._fresh_root()

    def put(self, key: str, data: bytes) -> None:
        path = self.destination / (self.root.path + key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def keys(self) -> set[str]:
        return set(files_below(self.destination / self.root.path))

    def test_what_leads_out_of_the_folder_is_stuck_and_stays(self, tmp_path: Path) -> None:
        outside = tmp_path / "run" / "artifacts"
        outside.mkdir(parents=True)
        (outside / "f").write_text("x")
        self.put("1/run2/artifacts/f", b"x")
        (self.destination / self.root.path / "1" / "run").symlink_to(tmp_path / "run")
        with pytest.raises(PermanentArtifactError, match="outside the artifact directory"):
            self.delete("1/run/artifacts/")
        assert (outside / "f").exists()

    def test_a_link_inside_a_tree_goes_and_what_it_names_stays(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("x")
        self.put("1/run/artifacts/model/f", b"x")
        (self.destination / self.root.path / "1/run/artifacts/model/out").symlink_to(tmp_path)
        self.delete("1/run/artifacts/")
        assert self.keys() == set()
        assert (tmp_path / "f").exists()

    def test_an_upload_that_broke_off_goes_with_its_tree(self) -> None:
        """MLflow lists none: they are hidden from the listing, not from the deletion."""
        self.put("1/run/artifacts/.artifact.uploading.abc", b"x")
        self.put("1/run2/artifacts/f", b"x")
        self.delete("1/run/artifacts/")
        assert self.keys() == {"1/run2/artifacts/f"}

    def test_a_name_that_is_no_unicode_keeps_the_server_from_listing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Pace, "pause", lambda self, attempt: None)
        self.put(f"1/run/artifacts/{NOT_UTF8}", b"x")
        with pytest.raises(TransientArtifactError, match="500"):
            self.delete("1/run/artifacts/")
        assert self.keys() == {f"1/run/artifacts/{NOT_UTF8}"}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any, str]]:
    """A server before a bucket, a client and the bucket."""
    with moto() as objects:
        client = objects.client()
        name = new_bucket(client)
        folder = tmp_path_factory.mktemp("server")
        words = ("--artifacts-only", "--artifacts-destination", f"s3://{name}/served")
        with mlflow_server(folder, *words, environment=objects.environment) as url:
            yield url, client, name


class TestBeforeABucket(_OnServer):
    unsupported = frozenset({*ODD_KEYS, NOT_UTF8, "line\nbreak"})

    @pytest.fixture(autouse=True)
    def _fresh(self, bucket: tuple[str, Any, str]) -> None:
        self.url, self.client, self.bucket = bucket
        self._fresh_root()

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"served/{self.root.path}{key}", Body=data)

    def keys(self) -> set[str]:
        prefix = f"served/{self.root.path}"
        found = keys_of(self.client, self.bucket, prefix)
        return {key.removeprefix(prefix) for key in found}

    def test_what_the_bucket_refuses_is_not_gone_whatever_the_server_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """MLflow's server does not read what a bucket says of each key: it answers 200."""
        monkeypatch.setattr(Pace, "pause", lambda self, attempt: None)
        self.put("1/run/artifacts/f", b"x")
        deny = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:DeleteObject",
            "Resource": f"arn:aws:s3:::{self.bucket}/*",
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
        self.client.put_bucket_policy(Bucket=self.bucket, Policy=policy)
        try:
            with pytest.raises(TransientArtifactError, match="still listed"):
                self.delete("1/run/artifacts/")
        finally:
            self.client.delete_bucket_policy(Bucket=self.bucket)
        assert self.delete("1/run/artifacts/").usage.objects == 1
        assert self.keys() == set()
