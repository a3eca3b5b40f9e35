"""The store for FTP keeps the contract on a real server, whose listings follow links."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gcd.artifacts import ftp
from gcd.artifacts.base import Options
from gcd.artifacts.ftp import FtpArtifactStore
from gcd.artifacts.remote_files import Lost
from gcd.errors import PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Place, Root, Target
from gcd.testing import ODD_KEYS, ArtifactStoreContract
from tests.ftp_server import PASSWORD, Served, ftp_server
from tests.object_servers import free_port

TREE = "1/run1/artifacts/"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all, of the folder of all tests."""
    with ftp_server(tmp_path_factory.getbasetemp()) as server:
        yield server


class _OnServer:
    target = ArtifactStoreContract.target
    known_root = ArtifactStoreContract.known_root
    delete = ArtifactStoreContract.delete
    _put_all = ArtifactStoreContract._put_all

    @pytest.fixture(autouse=True)
    def _fresh(
        self, served: Served, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[None]:
        self.served, self.folder = served, tmp_path / "ml flow"
        self.folder.mkdir()
        self.store = FtpArtifactStore(Options(requests=2))
        self.store.learn(served.uri + "/somewhere/1")
        path = os.path.relpath(self.folder, tmp_path_factory.getbasetemp())
        self.root = Place("ftp", served.authority, path + "/")
        yield
        self.store.close()

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


class TestContract(_OnServer, ArtifactStoreContract):
    marks_are_exclusive = False
    unsupported = frozenset({*ODD_KEYS, "line\nbreak", "\udcff\udcfe"})


class TestSafety(_OnServer):
    def test_links_that_the_listing_follows_go_as_links(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "precious").write_bytes(b"x")
        self.put(TREE + "model/f", b"x")
        os.symlink(outside, self.folder / TREE / "a link")
        os.symlink(outside / "precious", self.folder / TREE / "model/file")
        os.symlink("..", self.folder / TREE / "model/up")
        assert self.delete(TREE).usage.objects == 4
        assert (outside / "precious").exists()
        assert self.folders() == {"1"}

    def test_a_tree_that_is_a_link_is_refused(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "precious").write_bytes(b"x")
        (self.folder / "1/run1").mkdir(parents=True)
        os.symlink(outside, self.folder / TREE.rstrip("/"))
        for call in (self.store.examine, self.store.measure):
            with pytest.raises(UnsafeTarget, match="symbolic link"):
                call(self.target(TREE))
        with pytest.raises(UnsafeTarget, match="symbolic link"):
            self.delete(TREE)
        assert (outside / "precious").exists()

    def test_a_folder_that_may_be_a_link_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server whose listing for people hides names, or is none of Unix's."""
        self._put_all({TREE + ".hidden/f", TREE + "g"})
        real = ftp.FtpFiles._lines

        def lines(files: ftp.FtpFiles, command: str) -> Iterator[str]:
            for line in real(files, command):
                if command != "LIST" or " ." not in line:
                    yield line

        monkeypatch.setattr(ftp.FtpFiles, "_lines", lines)
        with pytest.raises(PermanentArtifactError, match="whether it is a folder or a link"):
            self.delete(TREE)
        assert TREE + ".hidden/f" in self.keys()

    def test_one_folder_does_not_vouch_for_a_link_that_its_name_ends_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "precious").write_bytes(b"x")
        self.put(TREE + "x .b/f", b"x")
        os.symlink(outside, self.folder / TREE / ".b")
        real = ftp.FtpFiles._lines

        def lines(files: ftp.FtpFiles, command: str) -> Iterator[str]:
            for line in real(files, command):
                if command != "LIST" or not re.search(r"\d \.b\b", line):
                    yield line

        monkeypatch.setattr(ftp.FtpFiles, "_lines", lines)
        with pytest.raises(PermanentArtifactError, match="whether it is a folder or a link"):
            self.delete(TREE)
        assert (outside / "precious").exists()

    def test_a_name_that_the_protocol_cannot_carry_is_left_and_told(self) -> None:
        self._put_all({TREE + "line\nbreak", TREE + "g", TREE + "h/i"})
        with pytest.raises(PermanentArtifactError, match="FTP cannot name it"):
            self.delete(TREE)
        assert self.keys() == {TREE + "line\nbreak"}

    def test_a_line_without_an_end_defers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put(TREE + "a-rather-long-name", b"x")
        root = self.known_root()
        monkeypatch.setattr(ftp, "LONGEST", 20)
        with pytest.raises(Lost, match="no end"):
            self.store.delete(self.target(TREE), root)
        assert self.keys() == {TREE + "a-rather-long-name"}

    def test_a_wide_folder_is_listed_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ftp, "LISTED", 7)
        self._put_all({f"{TREE}{number}" for number in range(40)} | {TREE + "d/e", "1/run2/f"})
        assert self.delete(TREE).usage.objects == 41
        assert self.keys() == {"1/run2/f"}

    def test_an_experiments_empty_folders_go(self) -> None:
        (self.folder / "1/models").mkdir(parents=True)
        self.put("2/models/f", b"x")
        for path in ("1/", "2/", "3/"):
            self.store.prune(self.target(path))
        assert self.folders() == {"2", "2/models"}

    def test_who_may_not_delete_is_told(self, tmp_path: Path) -> None:
        self._put_all({TREE + "f", TREE + "g"})
        with ftp_server(self.folder, rights="elr") as reading:
            store = FtpArtifactStore()
            store.learn(reading.uri)
            root = Place("ftp", reading.authority, "")
            probe = store.probe(root, ())
            assert probe.is_there
            with pytest.raises(PermanentArtifactError, match=r"2 files.*Not enough privileges"):
                store.delete(Target(replace(root, path=TREE), root), Root(root, probe))
            store.close()
        assert len(self.keys()) == 2

    def test_a_wrong_password_is_told_and_not_shown(self) -> None:
        store = FtpArtifactStore()
        store.learn(self.served.uri.replace(PASSWORD, "s3cret"))
        probe = store.probe(self.root, ())
        assert not probe.is_there
        assert "login was refused" in str(probe.problem)
        assert "s3cret" not in str(probe.problem)

    def test_a_server_that_is_down_defers(self) -> None:
        root = Place("ftp", f"me@127.0.0.1:{free_port()}", "data/")
        probe = self.store.probe(root, ())
        assert "does it answer?" in str(probe.problem)
        with pytest.raises(TransientArtifactError):
            self.store.delete(Target(replace(root, path="data/" + TREE), root), Root(root, probe))

    def test_a_connection_that_breaks_defers_and_is_made_anew(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._put_all({f"{TREE}{number}" for number in range(20)})
        root, real = self.known_root(), ftp.FtpFiles._removed
        store = FtpArtifactStore(Options(requests=1))
        store.learn(self.served.uri)

        def removed(files: ftp.FtpFiles, path: str) -> object:
            if path.endswith("/7"):
                files._ftp.sock.shutdown(socket.SHUT_RDWR)
            return real(files, path)

        with monkeypatch.context() as patch:
            patch.setattr(ftp.FtpFiles, "_removed", removed)
            with pytest.raises(Lost, match="broke off"):
                store.delete(self.target(TREE), root)
        assert TREE + "7" in self.keys()
        store.delete(self.target(TREE), root)
        assert self.keys() == set()
        store.close()
