"""The store for fsspec keeps the contract on its local and memory file systems, and on pyarrow's as for Hadoop."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from gcd.artifacts import fsspec_store
from gcd.artifacts.base import Options
from gcd.artifacts.fsspec_store import PLAIN, FsspecArtifactStore, FsspecFiles
from gcd.errors import PermanentArtifactError, UnsafeTarget
from gcd.model import Place, Root, Target
from gcd.testing import ODD_KEYS, ArtifactStoreContract

TREE = "1/run1/artifacts/"


class Local(FsspecArtifactStore):
    """fsspec's own file system of this machine."""

    def file_system(self, scheme: str, authority: str) -> Any:
        return LocalFileSystem(**PLAIN)


class Arrow(FsspecArtifactStore):
    """pyarrow's, through the wrapper that Hadoop's has, too: `rmdir` takes all that is in a folder."""

    def file_system(self, scheme: str, authority: str) -> Any:
        return ArrowFSWrapper(pyarrow.fs.LocalFileSystem(), **PLAIN)


class Memory(FsspecArtifactStore):
    """Objects and folders of this process."""

    def file_system(self, scheme: str, authority: str) -> Any:
        return MemoryFileSystem(**PLAIN)


class _OnDisk:
    target = ArtifactStoreContract.target
    known_root = ArtifactStoreContract.known_root
    delete = ArtifactStoreContract.delete
    _put_all = ArtifactStoreContract._put_all
    kind: type[FsspecArtifactStore] = Local

    @pytest.fixture(autouse=True)
    def _fresh(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "ml flow"
        self.folder.mkdir()
        self.store = self.kind()
        self.root = Place("hdfs", "name", str(self.folder).lstrip("/") + "/")

    def absent_root(self) -> Place:
        return replace(self.root, path=self.root.path + "absent/")

    def put(self, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def keys(self) -> set[str]:
        return {
            os.path.relpath(os.path.join(where, name), self.folder)
            for where, _, names in os.walk(self.folder)
            for name in names
        }

    def folders(self) -> set[str]:
        return {
            os.path.relpath(os.path.join(where, name), self.folder)
            for where, names, _ in os.walk(self.folder)
            for name in names
        }


class TestLocal(_OnDisk, ArtifactStoreContract):
    marks_are_exclusive = False
    unsupported = frozenset(ODD_KEYS)

    def test_links_go_as_links_and_a_tree_that_is_one_is_refused(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "precious").write_bytes(b"x")
        self.put(TREE + "f", b"x")
        os.symlink(outside, self.folder / TREE / "folder")
        os.symlink(outside / "precious", self.folder / TREE / "file")
        assert self.delete(TREE).usage.objects == 3
        (self.folder / "1/run1").mkdir(parents=True)
        os.symlink(outside, self.folder / TREE.rstrip("/"))
        with pytest.raises(UnsafeTarget, match="symbolic link"):
            self.delete(TREE)
        assert (outside / "precious").exists()

    def test_an_experiments_empty_folders_go(self) -> None:
        (self.folder / "1/models").mkdir(parents=True)
        self.put("2/models/f", b"x")
        for path in ("1/", "2/"):
            self.store.prune(self.target(path))
        assert self.folders() == {"2", "2/models"}


class TestArrow(_OnDisk, ArtifactStoreContract):
    marks_are_exclusive = False
    kind = Arrow
    unsupported = frozenset({*ODD_KEYS, "\udcff\udcfe"})

    def test_what_appears_in_the_own_folder_is_not_removed_with_it(self) -> None:
        """`rmdir` would take it: only what lists empty is removed, and nothing above a tree's own folder."""
        self._put_all({TREE + "f", "1/run1/late"})
        self.delete(TREE)
        (self.folder / "2/models").mkdir(parents=True)
        self.store.prune(self.target("2/"))
        assert self.keys() == {"1/run1/late"}
        assert self.folders() == {"1", "1/run1", "2", "2/models"}
        assert "stay" in [each.seen for each in self.store.inspect(self.root)][-1]

    def test_what_appears_after_the_first_look_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put(TREE + "f", b"x")
        real = FsspecFiles.remove_folder

        def remove_folder(files: FsspecFiles, path: str) -> bool:
            if path.endswith("run1"):
                self.put("1/run1/late", b"x")
            return real(files, path)

        monkeypatch.setattr(FsspecFiles, "remove_folder", remove_folder)
        assert self.delete(TREE).usage.objects == 1
        assert self.keys() == {"1/run1/late"}

    def test_names_that_the_library_reads_as_others_keep_the_tree(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._put_all({TREE + "x::y", TREE + "z/x::y", TREE + "f", "y", "1/run1/y"})
        tidy = staticmethod(lambda path: path.partition("::")[2] or path)
        monkeypatch.setattr(ArrowFSWrapper, "_strip_protocol", tidy)
        with pytest.raises(PermanentArtifactError, match="another name"):
            self.delete(TREE)
        assert self.keys() == {TREE + "x::y", TREE + "z/x::y", "y", "1/run1/y"}

    def test_patterns_in_names_are_names(self) -> None:
        self._put_all({TREE + "*", TREE + "[a-z]", TREE + "?", "1/run1/b", "1/*/artifacts/f"})
        self.delete("1/*/artifacts/")
        assert len(self.keys()) == 4
        self.delete(TREE)
        assert self.keys() == {"1/run1/b"}

    @pytest.mark.parametrize(
        "entry", ["elsewhere/f", "{}/../f", "{}/", "{}x/f", "f", "hdfs://name:9000/elsewhere/f"]
    )
    def test_a_listing_of_what_is_not_in_the_folder_keeps_the_tree(
        self, entry: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.put(TREE + "f", b"x")
        real = ArrowFSWrapper.ls

        def ls(fs: ArrowFSWrapper, path: str, **options: Any) -> Any:
            return [{**each, "name": entry.format(path)} for each in real(fs, path, **options)]

        monkeypatch.setattr(ArrowFSWrapper, "ls", ls)
        with pytest.raises(PermanentArtifactError, match="not in it"):
            self.delete(TREE)
        assert self.keys() == {TREE + "f"}

    def test_a_listing_in_libhdfs_form_is_understood(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._put_all({TREE + "f", TREE + "d/e"})
        real = ArrowFSWrapper.ls

        def ls(fs: ArrowFSWrapper, path: str, **options: Any) -> Any:
            entries = real(fs, path, **options)
            return [{**each, "name": f"hdfs://name:9000{each['name']}"} for each in entries]

        monkeypatch.setattr(ArrowFSWrapper, "ls", ls)
        self.delete(TREE)
        assert self.folders() == {"1"}


class TestMemory(ArtifactStoreContract):
    marks_are_exclusive = False
    unsupported = frozenset(ODD_KEYS)

    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MemoryFileSystem, "store", {})
        monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", ["", "/store"])
        self.fs = MemoryFileSystem(skip_instance_cache=True)
        self.store = Memory()
        self.root = Place("hdfs", "name", "store/")

    def absent_root(self) -> Place:
        return replace(self.root, path="absent/")

    def put(self, key: str, data: bytes) -> None:
        path = f"/store/{key}"
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.fs.pipe_file(path, data)

    def keys(self) -> set[str]:
        return {path.removeprefix("/store/") for path in self.fs.store}

    def folders(self) -> set[str]:
        return {path.removeprefix("/store/") for path in self.fs.pseudo_dirs} - {"", "/store"}


def test_hadoop_is_asked_for_as_mlflow_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def hadoop(**arguments: Any) -> Any:
        asked.append(arguments)
        raise OSError("Unable to load libjvm")

    monkeypatch.setattr(fsspec_store, "HadoopFileSystem", hadoop)
    own = {
        "MLFLOW_KERBEROS_TICKET_CACHE": "/tmp/krb5cc_22222222",
        "MLFLOW_KERBEROS_USER": "ann",
        "MLFLOW_PYARROW_EXTRA_CONF": "a.b=c,d=e=f",
    }
    store = FsspecArtifactStore(Options(environment=own))
    for scheme, authority in (("hdfs", "name:9000"), ("viewfs", "cluster"), ("hdfs", "")):
        root = Place(scheme, authority, "mlflow/")
        problem = str(store.probe(root, ()).problem)
        assert "Unable to load libjvm" in problem
        assert "HADOOP_HOME" in problem
        target = Target(replace(root, path="mlflow/" + TREE), root)
        with pytest.raises(Exception, match="libjvm"):
            store.delete(target, Root(root, store.probe(root, ())))
    found = {(each["host"], each["port"]) for each in asked}
    assert found == {("hdfs://name", 9000), ("viewfs://cluster", 0), ("default", 0)}
    assert {(each["user"], each["kerb_ticket"]) for each in asked} == {
        ("ann", "/tmp/krb5cc_22222222")
    }
    assert asked[0]["extra_conf"] == {"a.b": "c", "d": "e=f"}
    wrong = FsspecArtifactStore(Options(environment={"MLFLOW_PYARROW_EXTRA_CONF": "nonsense"}))
    assert "key=value" in str(wrong.probe(Place("hdfs", "name", "x/"), ()).problem)
