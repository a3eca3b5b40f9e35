"""The store for SFTP keeps the contract on OpenSSH's server, and never leaves the tree it was given."""

from __future__ import annotations

import getpass
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import pytest

from gcd.artifacts import remote_walk
from gcd.artifacts.base import Deleted, InspectableArtifactStore, LearningArtifactStore, Options
from gcd.artifacts.registry import Registry
from gcd.artifacts.remote_files import Item, Lost
from gcd.artifacts.sftp import SftpArtifactStore, SftpFiles
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Place, Root, Target, Usage
from gcd.testing import ODD_KEYS, ArtifactStoreContract
from tests.object_servers import free_port
from tests.sftp_server import Cut, SftpServer, sshd
from tests.sftp_stub import PASSWORD, USER, Stub, stub

TREE = "1/run1/artifacts/"


@pytest.fixture(scope="session")
def ssh() -> Iterator[SftpServer]:
    """One server for all."""
    with sshd() as server:
        yield server


@pytest.fixture(scope="session")
def shared(ssh: SftpServer) -> SftpArtifactStore:
    """A store whose connections serve many tests."""
    return ssh.store()


@pytest.fixture(scope="module")
def served() -> Iterator[Stub]:
    """A stub for all."""
    with stub() as server:
        yield server


class _OnFolder:
    """What the contract supplies, without its tests."""

    target = ArtifactStoreContract.target
    known_root = ArtifactStoreContract.known_root
    delete = ArtifactStoreContract.delete
    _put_all = ArtifactStoreContract._put_all
    root: Place
    folder: Path
    store: SftpArtifactStore
    authority: str

    def place(self, path: Path) -> Place:
        return Place("sftp", self.authority, str(path).lstrip("/") + "/")

    def absent_root(self) -> Place:
        return self.place(self.folder / "absent")

    def put(self, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def make(self, *folders: str) -> None:
        for folder in folders:
            (self.folder / folder).mkdir(parents=True, exist_ok=True)

    def keys(self) -> set[str]:
        return self._found(2)

    def folders(self) -> set[str]:
        return self._found(1)

    def _found(self, index: int) -> set[str]:
        return {
            os.path.relpath(os.path.join(each[0], name), self.folder)
            for each in os.walk(self.folder)
            for name in each[index]
        }

    def refused(self, path: str, match: str) -> None:
        """The tree is refused, looked at or deleted."""
        for call in (self.store.examine, self.store.measure):
            with pytest.raises(UnsafeTarget, match=match):
                call(self.target(path))
        with pytest.raises(UnsafeTarget, match=match):
            self.delete(path)


class _OnServer(_OnFolder):
    @pytest.fixture(autouse=True)
    def _fresh(self, ssh: SftpServer, shared: SftpArtifactStore, tmp_path: Path) -> None:
        self.ssh, self.folder = ssh, tmp_path / "ml flow"
        self.folder.mkdir()
        self.store, self.authority = shared, ssh.authority
        self.root = self.place(self.folder)


class TestContract(_OnServer, ArtifactStoreContract):
    unsupported = frozenset(ODD_KEYS)


class TestOnStub(_OnFolder, ArtifactStoreContract):
    """The contract again on a server that asks for a password and tells nothing of disks."""

    unsupported = frozenset({*ODD_KEYS, "\udcff\udcfe"})
    has_marks = False

    @pytest.fixture(autouse=True)
    def _fresh(self, served: Stub, tmp_path: Path) -> Iterator[None]:
        self.stub, self.folder = served, tmp_path / "root"
        self.folder.mkdir()
        self.authority = f"{USER}@127.0.0.1:{served.port}"
        own = {"SFTP_KNOWN_HOSTS": str(served.known_hosts(tmp_path))}
        self.store = SftpArtifactStore(Options(environment=own, requests=2))
        self.store.learn(f"sftp://{USER}:{PASSWORD}@127.0.0.1:{served.port}/somewhere/1")
        self.root = self.place(self.folder)
        yield
        self.store.close()

    def test_the_server_is_the_identity_where_no_disk_is_told(self) -> None:
        identity = self.known_root().probe.identity
        assert identity == f"{self.stub.key.fingerprint}:/{self.root.path}"
        notes = [each.seen for each in self.store.inspect(self.root)]
        assert any("does not tell its file systems apart" in note for note in notes)

    def test_links_on_the_way_are_refused_though_the_server_does_not_follow_them(self) -> None:
        self.put("elsewhere/run1/artifacts/f", b"x")
        os.symlink("elsewhere", self.folder / "1")
        tree = self.target(TREE).place
        assert self.store.resolve(tree) == tree
        self.refused(TREE, "1 is a symbolic link")
        assert self.keys() == {"elsewhere/run1/artifacts/f"}


class TestLinks(_OnServer):
    def test_links_go_as_links(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        (outside / "deep").mkdir(parents=True)
        (outside / "deep/precious").write_bytes(b"x")
        self.make(TREE + "model")
        os.symlink(outside, self.folder / TREE / "folder")
        os.symlink(outside / "deep/precious", self.folder / TREE / "model/file")
        os.symlink("nowhere", self.folder / TREE / "dangling")
        os.symlink("..", self.folder / TREE / "up")
        assert self.store.measure(self.target(TREE)).objects == 4
        assert self.delete(TREE).usage.objects == 4
        assert (outside / "deep/precious").read_bytes() == b"x"
        assert self.folders() == {"1"}

    @pytest.mark.parametrize("where", ["1", "1/run1", "1/run1/artifacts"])
    def test_a_link_on_the_way_or_as_the_tree_is_refused(self, where: str, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        rest = TREE.removeprefix(where).strip("/")
        (outside / rest).mkdir(parents=True, exist_ok=True)
        (outside / rest / "precious").write_bytes(b"x")
        (self.folder / where).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(outside, self.folder / where)
        self.refused(TREE, "symbolic link, which gcd never follows")
        assert (outside / rest / "precious").exists()
        assert (self.folder / where).is_symlink()

    def test_a_root_that_is_a_link_is_refused(self, tmp_path: Path) -> None:
        self.put(TREE + "f", b"x")
        link = tmp_path / "link"
        os.symlink(self.folder, link)
        root = self.place(link)
        target = Target(replace(root, path=root.path + TREE), root)
        probe = self.store.probe(root, ())
        assert not probe.is_there
        assert "symbolic link" in str(probe.problem)
        with pytest.raises(UnsafeTarget, match="symbolic link"):
            self.store.delete(target, Root(root, probe))
        assert self.keys() == {TREE + "f"}

    @pytest.mark.parametrize("where", ["1", "1/run1", "1/run1/artifacts"])
    def test_a_file_on_the_way_is_refused(self, where: str) -> None:
        self.put(where, b"x")
        self.refused(TREE, "not a folder")
        assert self.keys() == {where}

    def test_the_true_name_is_what_the_server_says(self, tmp_path: Path) -> None:
        self.make("1")
        link = tmp_path / "link"
        os.symlink(self.folder, link)
        for path in ("1/", TREE, "7/absent/"):
            found = self.store.resolve(replace(self.root, path=f"{self.place(link).path}{path}"))
            assert found == replace(self.root, path=self.root.path + path)
        odd = replace(self.root, path="/" + self.root.path.replace("/", "//") + "1\t\n/")
        assert self.store.resolve(odd).path == self.root.path + "1/"
        assert self.store.resolve(replace(self.root, path="")).path == ""
        for path in ("a/../b/", "./", "a/./"):
            with pytest.raises(UnsafeTarget, match="component"):
                self.store.resolve(replace(self.root, path=path))

    def test_what_could_not_be_followed_holds_what_it_leads_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A live tree recorded over a link, whose true name was asked for while the server was away."""
        self._put_all({TREE + "model/f", "1/run2/artifacts/f"})
        os.symlink(self.folder / "1", tmp_path / "link")
        store = self.store = self.ssh.store()
        live = self.place(tmp_path / "link/run1/artifacts/model")

        def away(files: SftpFiles, path: str) -> str:
            raise Lost("away")

        with monkeypatch.context() as patch:
            patch.setattr(SftpFiles, "true_path", away)
            assert store.resolve(live) == live
        for _ in range(2):
            with pytest.raises(TransientArtifactError, match="not known when"):
                self.delete(TREE)
        assert self.delete("1/run2/artifacts/").usage.objects == 1
        assert store.resolve(live) == self.target(TREE + "model/").place
        assert self.delete(TREE).usage.objects == 1

    def test_a_folder_that_becomes_a_link_is_not_listed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outside = self.swapped(tmp_path)
        real = SftpFiles.look

        def look(files: SftpFiles, path: str) -> Item | None:
            item = real(files, path)
            if path.endswith("/inner"):
                self.swap(outside)
            return item

        monkeypatch.setattr(SftpFiles, "look", look)
        with pytest.raises(UnsafeTarget, match="now reached by a link"):
            self.delete(TREE)
        assert len(os.listdir(outside)) == 300

    def test_a_folder_that_becomes_a_link_is_not_emptied_any_further(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outside = self.swapped(tmp_path)
        real = SftpFiles.remove

        def remove(files: SftpFiles, paths: list[str]) -> list[ArtifactError | None]:
            replies = real(files, paths)
            self.swap(outside)
            return replies

        monkeypatch.setattr(SftpFiles, "remove", remove)
        with pytest.raises(UnsafeTarget, match="symbolic link"):
            self.delete(TREE)
        assert len(os.listdir(outside)) == 300

    def swapped(self, tmp_path: Path) -> Path:
        """A folder with the same names outside."""
        outside = tmp_path / "outside"
        outside.mkdir()
        for number in range(300):
            self.put(f"{TREE}inner/{number}", b"x")
            (outside / str(number)).write_bytes(b"precious")
        return outside

    def swap(self, outside: Path) -> None:
        inner = self.folder / TREE / "inner"
        if not inner.is_symlink():
            inner.rename(self.folder / "moved away")
            os.symlink(outside, inner)


class TestTrees(_OnServer):
    def test_wide_and_deep_trees_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote_walk, "BATCH", 10)
        self.make(*(f"{TREE}wide/{number}" for number in range(130)), TREE + "deep/" + "d/" * 50)
        self._put_all({f"{TREE}many/{number}" for number in range(1500)} | {"1/run2/f"})
        assert self.delete(TREE).usage.objects == 1500
        assert (self.folders(), self.keys()) == ({"1", "1/run2"}, {"1/run2/f"})

    def test_what_appears_meanwhile_goes_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put(TREE + "model/f", b"x")
        late = iter(["model/late", "model/deep/later", "last"])
        real = SftpFiles.remove_folder

        def remove_folder(files: SftpFiles, path: str) -> bool:
            if name := next(late, None):
                self.put(TREE + name, b"late")
            return real(files, path)

        monkeypatch.setattr(SftpFiles, "remove_folder", remove_folder)
        assert self.delete(TREE).usage == Usage(4, 13)
        assert self.keys() == set()

    def test_files_that_keep_appearing_defer_the_tree(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.put(TREE + "f", b"x")
        real = SftpFiles.remove_folder

        def remove_folder(files: SftpFiles, path: str) -> bool:
            self.put(TREE + "again", b"late")
            return real(files, path)

        monkeypatch.setattr(SftpFiles, "remove_folder", remove_folder)
        with pytest.raises(TransientArtifactError, match="keep appearing") as caught:
            self.delete(TREE)
        assert caught.value.hint == "is somebody uploading?"

    def test_an_experiments_empty_folders_go_and_others_stay(self) -> None:
        self.make("1/models", "1/traces", "2/models", "3/other", "4")
        self._put_all({"2/models/f", "4/traces"})
        for path in ("1/", "2/", "3/", "4/", "5/", "6/7/"):
            self.store.prune(self.target(path))
        assert self.folders() == {"2", "2/models", "3", "3/other", "4"}
        assert self.keys() == {"2/models/f", "4/traces"}
        self.make("models", "other")
        self.store.prune(Target(self.root, self.root))
        assert "models" not in self.folders()
        assert "other" in self.folders()

    def test_a_user_without_the_right_is_told_so(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can log in as somebody else")
        shared = Path(tempfile.gettempdir())
        above = [each for each in self.folder.parents if shared in each.parents]
        for path in (self.ssh.home, self.ssh.home / ".ssh", *above, self.folder):
            path.chmod(path.stat().st_mode | 0o755)
        self._put_all({TREE + "f", TREE + "g"})
        key = self.ssh.home / "nobodys"
        shutil.copyfile(self.ssh.home / ".ssh/id", key)
        nobody = self.ssh.store()
        target = Target(
            *(
                replace(p, authority=p.authority.replace("root@", "nobody@"))
                for p in (self.target(TREE).place, self.root)
            )
        )
        root = Root(target.root, nobody.probe(target.root, ()))
        assert root.probe.is_there
        with pytest.raises(PermanentArtifactError, match=r"2 files.*permission denied") as caught:
            nobody.delete(target, root)
        assert "write and search" in str(caught.value.hint)
        assert self.keys() == {TREE + "f", TREE + "g"}
        (self.folder / "1/run1/artifacts").chmod(0o777)
        with pytest.raises(PermanentArtifactError, match="run1/artifacts: permission denied"):
            nobody.delete(target, root)
        assert self.keys() == set()
        (self.folder / "1").chmod(0o700)
        with pytest.raises(PermanentArtifactError, match="permission denied"):
            nobody.examine(target)

    def test_hands_share_no_more_connections_than_allowed(self) -> None:
        store = self.ssh.store(requests=2)
        runs = [f"1/run{number}/artifacts/" for number in range(12)]
        self._put_all({run + "f" for run in runs})
        before = set(self.ssh.sessions())
        root, most = self.known_root(), 0

        def delete(run: str) -> Deleted:
            nonlocal most
            most = max(most, len(set(self.ssh.sessions()) - before))
            return store.delete(self.target(run), root)

        with ThreadPoolExecutor(8) as hands:
            assert sum(each.usage.objects for each in hands.map(delete, runs)) == 12
        assert 0 < most <= 2
        store.close()


class TestDisks(_OnServer):
    def mount(self, folder: Path, *how: str) -> None:
        words = ["mount", *(how or ("-t", "tmpfs", "gcd-test")), str(folder)]
        if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("mounting is not permitted here: run as root of the mount namespace")
        self.mounted.append(folder)

    @pytest.fixture(autouse=True)
    def _unmount(self, _fresh: None) -> Iterator[None]:
        self.mounted: list[Path] = []
        yield
        for folder in reversed(self.mounted):
            subprocess.run(["umount", str(folder)], check=True)

    def test_an_unmounted_disk_is_no_empty_root(self) -> None:
        self.mount(self.folder)
        self.put(TREE + "f", b"x")
        root = self.known_root()
        self.mount(self.folder)
        assert self.store.probe(self.root, ()).identity != root.remembered_identity
        with pytest.raises(TransientArtifactError, match="another one") as caught:
            self.delete_below(root)
        assert "mounted" in str(caught.value.hint)

    def delete_below(self, root: Root) -> Deleted:
        return self.store.delete(self.target(TREE), root)

    def test_a_disk_inside_a_tree_or_on_the_way_is_not_entered(self) -> None:
        self.make(TREE + "inner", "2")
        self.mount(self.folder / TREE / "inner")
        self.mount(self.folder / "2")
        self._put_all({TREE + "inner/precious", "2/run1/artifacts/precious"})
        with pytest.raises(PermanentArtifactError, match="mounted there"):
            self.delete(TREE)
        with pytest.raises(UnsafeTarget, match="another file system"):
            self.delete("2/run1/artifacts/")
        assert not self.store.probe(
            self.root, [self.target("2/run1/artifacts/").place]
        ).is_named_found
        assert len(self.keys()) == 2
        location = self.target("2/").place
        assert self.store.storage_root(location, self.root) == location
        assert self.store.storage_root(self.target("1/").place, self.root) == self.root

    def test_a_read_only_disk_is_told(self) -> None:
        self.mount(self.folder)
        self._put_all({TREE + "f", TREE + "g"})
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        assert "read-only" in str(self.store.probe(self.root, ()).problem)
        with pytest.raises(PermanentArtifactError, match="read-only") as caught:
            self.delete(TREE)
        assert "writable" in str(caught.value.hint)


class TestConnections(_OnServer):
    def test_a_connection_that_died_idle_is_made_anew(self) -> None:
        self._put_all({TREE + "f", "1/run2/artifacts/f"})
        store = self.store = self.ssh.store()
        root = self.known_root()
        self.ssh.drop()
        assert store.delete(self.target(TREE), root).usage.objects == 1
        self.ssh.drop()
        assert store.measure(self.target("1/run2/artifacts/")).objects == 1

    @pytest.mark.parametrize("after", [1, 2])
    def test_a_connection_that_breaks_in_the_middle_defers_the_tree(
        self, after: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._put_all({f"{TREE}{number // 30}/{number}" for number in range(100)} | {"1/run2/f"})
        root, calls, real = self.known_root(), 0, SftpFiles.remove

        def remove(files: SftpFiles, paths: list[str]) -> list[ArtifactError | None]:
            nonlocal calls
            calls += 1
            if calls > after:
                self.ssh.drop()
            return real(files, paths)

        self.store = self.ssh.store()
        with monkeypatch.context() as patch:
            patch.setattr(SftpFiles, "remove", remove)
            with pytest.raises(Lost, match="broke off"):
                self.store.delete(self.target(TREE), root)
        assert 2 < len(self.keys()) < 101
        self.store.delete(self.target(TREE), root)
        assert self.keys() == {"1/run2/f"}

    def test_a_way_that_is_cut_loses_nothing_but_time(self) -> None:
        """Bytes stop at any moment: what is left is known, and goes the next time."""
        cut = Cut(self.ssh.port)
        known = self.ssh.home / "known_hosts_cut"
        key = " ".join((self.ssh.home / "host.pub").read_text().split()[:2])
        known.write_text(f"[127.0.0.1]:{cut.port} {key}\n")
        self.authority = f"{getpass.getuser()}@127.0.0.1:{cut.port}"
        self.root = self.place(self.folder)
        self._put_all({f"{TREE}{n % 3}/{n}" for n in range(60)})
        store = self.store = self.ssh.store(
            {**self.ssh.environment, "SFTP_KNOWN_HOSTS": str(known)}
        )
        root = self.known_root()
        for left in (300, 2_000):
            cut.passed, cut.left = 0, left
            with pytest.raises(Lost):
                store.delete(self.target(TREE), root)
            assert self.keys()
        cut.left = None
        store.delete(self.target(TREE), root)
        assert self.keys() == set()
        cut.close()

    @pytest.mark.parametrize(
        "error",
        [
            paramiko.SFTPError("Garbage packet"),
            OSError("Socket is closed"),
            struct.error("unpack"),
            EOFError(),
            TimeoutError(),
        ],
        ids=repr,
    )
    def test_a_reply_that_is_none_defers(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lstat(client: paramiko.SFTPClient, path: bytes) -> None:
            if isinstance(error, OSError):
                client.get_channel().close()
            raise error

        root = self.known_root()
        monkeypatch.setattr(paramiko.SFTPClient, "lstat", lstat)
        store = self.ssh.store()
        assert "broke off" in str(store.probe(self.root, ()).problem)
        with pytest.raises(Lost, match="broke off"):
            store.delete(self.target(TREE), root)

    def test_a_registry_ends_the_connections_of_its_stores(self) -> None:
        before = set(self.ssh.sessions())
        registry = Registry(options=Options(environment=self.ssh.environment))
        assert registry.open("sftp").probe(self.root, ()).is_there
        assert set(self.ssh.sessions()) - before
        registry.close()
        for _ in range(100):
            if not set(self.ssh.sessions()) - before:
                return
            time.sleep(0.05)
        raise AssertionError("a connection is left")

    def test_a_server_that_is_down_is_left_alone_for_a_while(self) -> None:
        port = free_port()
        down = Place("sftp", f"me@127.0.0.1:{port}", "data/")
        store = self.ssh.store()
        problems = [str(store.probe(down, ()).problem) for _ in range(8)]
        assert "does it answer?" in problems[0]
        assert "not tried" in problems[-1]
        target = Target(replace(down, path="data/" + TREE), down)
        for call in (store.examine, store.measure, store.prune):
            with pytest.raises(TransientArtifactError):
                call(target)
        assert store.resolve(down) == down

    @pytest.mark.parametrize(
        "authority",
        [
            "-oProxyCommand=x",
            "$(id)",
            "a;b",
            "h:port",
            "me|you@h",
            "-l@h",
            "[::1",
            "a b",
            "u:s3cret",
        ],
    )
    def test_what_a_shell_would_take_for_more_is_no_host(self, authority: str) -> None:
        store = self.ssh.store()
        place = Place("sftp", authority, "data/")
        with pytest.raises(UnsafeTarget) as caught:
            store.resolve(place)
        assert "s3cret" not in str(caught.value)
        assert store.probe(place, ()).problem


class TestLogins(_OnServer):
    def problem(self, environment: dict[str, str] | None = None, **changed: Any) -> str:
        store = self.ssh.store(environment)
        probe = store.probe(replace(self.root, **changed), ())
        assert not probe.is_there
        assert probe.problem is not None
        assert len(probe.problem) < 500
        return probe.problem

    def test_a_host_that_nobody_knows_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        own = {**self.ssh.environment, "SFTP_KNOWN_HOSTS": str(tmp_path / "empty")}
        problem = self.problem(own)
        assert "ssh-ed25519 SHA256:" in problem
        assert f"ssh-keyscan -p {self.ssh.port} 127.0.0.1" in problem
        missing = self.problem({**own, "SFTP_KNOWN_HOSTS": str(tmp_path / "missing")})
        assert "missing" in missing

    def test_another_host_key_is_refused(self, tmp_path: Path) -> None:
        key = " ".join((self.ssh.home / "other.pub").read_text().split()[:2])
        (tmp_path / "other").write_text(f"[127.0.0.1]:{self.ssh.port} {key}\n")
        own = {**self.ssh.environment, "SFTP_KNOWN_HOSTS": str(tmp_path / "other")}
        assert "is another one than in known_hosts" in self.problem(own)

    def test_a_wrong_password_is_told_and_not_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        own = {"SFTP_KNOWN_HOSTS": self.ssh.environment["SFTP_KNOWN_HOSTS"]}
        key = str(self.ssh.home / "other")
        problem = self.problem({**own, "SFTP_PASSWORD": "s3cret-one", "SFTP_KEY_FILE": key})
        assert "the login was refused" in problem
        assert "s3cret-one" not in problem + caplog.text + repr(self.ssh.stores)
        assert "SFTP_KEY_FILE" in problem

    def test_a_key_that_is_missing_is_told(self) -> None:
        own = {**self.ssh.environment, "SFTP_KEY_FILE": "/nonexistent/key"}
        assert "/nonexistent/key" in self.problem(own)

    def test_the_users_own_configuration_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As MLflow has it: an alias with host, port, user and key; the URI's user and port over it."""
        monkeypatch.setenv("HOME", str(self.ssh.home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        self.put(TREE + "f", b"x")
        store = self.ssh.store({})
        for authority in ("artifacts", f"{getpass.getuser()}@artifacts:{self.ssh.port}"):
            root = replace(self.root, authority=authority)
            assert store.probe(root, [replace(root, path=root.path + TREE)]).is_named_found
        assert isinstance(store, InspectableArtifactStore)
        said = [each.seen for each in store.inspect(replace(self.root, authority="artifacts"))]
        assert f"{getpass.getuser()}@127.0.0.1:{self.ssh.port}" in said[0]
        assert "~/.ssh/known_hosts" in said[0]

    def test_a_way_over_another_host_is_told_how(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh/config").write_text("Host *\n  ProxyJump gate\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        problem = self.ssh.store().probe(self.root, ()).problem
        assert "ProxyCommand ssh -W %h:%p gate" in str(problem)

    def test_a_configuration_that_cannot_be_read_is_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh/config").write_text("Host\x00 nonsense\n=\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert ".ssh/config cannot be used" in str(self.ssh.store().probe(self.root, ()).problem)


class TestPasswords:
    @pytest.fixture
    def server(self) -> Iterator[Stub]:
        with stub() as served:
            yield served

    @pytest.fixture
    def make(self, server: Stub, tmp_path: Path) -> Iterator[Callable[..., SftpArtifactStore]]:
        stores: list[SftpArtifactStore] = []

        def make(**own: str) -> SftpArtifactStore:
            own["SFTP_KNOWN_HOSTS"] = str(server.known_hosts(tmp_path))
            stores.append(
                SftpArtifactStore(Options(environment={"SFTP_KEY_FILE": "/nonexistent", **own}))
            )
            return stores[-1]

        yield make
        for store in stores:
            store.close()

    def test_passwords_of_uris_are_tried_the_latest_first(
        self, server: Stub, make: Callable[..., SftpArtifactStore], tmp_path: Path
    ) -> None:
        store = make()
        assert isinstance(store, LearningArtifactStore)
        here = f"127.0.0.1:{server.port}"
        for uri in (
            f"sftp://{USER}:{PASSWORD}@{here}/a",
            f"sftp://{USER}:changed-since@{here}/b",
            f"sftp://other:theirs@{here}/c",
            f"sftp://{USER}:of-another-port@127.0.0.1:1/",
            f"ftp://{USER}:of-another-scheme@{here}/d",
            f"sftp://{USER}@{here}/none",
            "s3://bucket/x:y@z",
        ):
            store.learn(uri)
        place = Place("sftp", f"{USER}@{here}", str(tmp_path).lstrip("/") + "/")
        assert store.probe(place, ()).is_there
        assert server.asked == ["changed-since", PASSWORD]
        assert PASSWORD not in repr(store.logins("sftp"))

    def test_a_store_may_have_a_password_of_its_own(
        self, server: Stub, make: Callable[..., SftpArtifactStore], tmp_path: Path
    ) -> None:
        store = make(SFTP_PASSWORD=PASSWORD)
        place = Place("sftp", f"{USER}@127.0.0.1:{server.port}", str(tmp_path).lstrip("/") + "/")
        assert store.probe(place, ()).is_there
