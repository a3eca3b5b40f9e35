"""The store for local file systems keeps the contract, and knows disks and mounts from one another."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gcd import mounts
from gcd.artifacts import descent, walk
from gcd.artifacts.base import Deleted
from gcd.artifacts.local import LocalArtifactStore, _entered
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Place, Root, Target, Usage
from gcd.testing import ODD_KEYS, ArtifactStoreContract
from tests.mounting import Mount, mounting

TREE = "1/run1/artifacts/"


@pytest.fixture
def mount() -> Iterator[Mount]:
    with mounting() as mount:
        yield mount


def place(path: Path | str) -> Place:
    return Place("file", "", str(path).rstrip("/") + "/")


class _OnDisk(ArtifactStoreContract):
    unsupported = frozenset(ODD_KEYS)

    @pytest.fixture(autouse=True)
    def _fresh(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "mlruns"
        self.folder.mkdir()
        self.store, self.root = LocalArtifactStore(), place(self.folder)

    def put(self, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def keys(self) -> set[str]:
        return self._walk(lambda folders, files: files)

    def folders(self) -> set[str]:
        return self._walk(lambda folders, files: folders)

    def _walk(self, chosen: Callable[[list[str], list[str]], list[str]]) -> set[str]:
        return {
            os.path.relpath(os.path.join(above, name), self.folder)
            for above, folders, files in os.walk(self.folder)
            for name in chosen(folders, files)
        }


class TestLocal(_OnDisk):
    def test_empty_folders_go_too(self) -> None:
        (self.folder / TREE / "a/b/c").mkdir(parents=True)
        (self.folder / TREE / "d").mkdir()
        assert self.delete(TREE).usage == Usage()
        assert self.folders() == {"1"}

    def test_an_own_folder_left_empty_by_a_crash_goes(self) -> None:
        (self.folder / "1/run1").mkdir(parents=True)
        assert self.delete(TREE) == Deleted(Usage(), None)
        assert self.folders() == {"1"}

    def test_sockets_fifos_and_links_are_objects_that_are_unlinked(self) -> None:
        self.put(TREE + "f", b"12345")
        os.mkfifo(self.folder / TREE / "fifo")
        os.symlink("nowhere", self.folder / TREE / "dangling")
        os.link(self.folder / TREE / "f", self.folder / "second name")
        with socket.socket(socket.AF_UNIX) as listening, _working_in(self.folder / TREE):
            listening.bind("socket")
        measured = self.store.measure(self.target(TREE))
        assert measured == Usage(4, 5 + len("nowhere"))
        assert self.delete(TREE).usage == measured
        assert self.keys() == {"second name"}

    def test_the_newest_change_is_told_also_if_only_a_folder_shows_it(self) -> None:
        old, new = datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)
        self.put(TREE + "model/copied with its old time", b"x")
        for path, moment in (("model/copied with its old time", old), ("model", new), ("", old)):
            os.utime(self.folder / TREE / path, (moment.timestamp(),) * 2)
        assert self.delete(TREE).changed_at == new

    def test_flush_reaches_what_is_left_of_every_target(self) -> None:
        self._put_all({TREE + "f", "1/run2/artifacts/f", "1/run2/sibling", "2/run3/artifacts/f"})
        targets = [self.target(f"{run}/artifacts/") for run in ("1/run1", "1/run2", "2/run3")]
        for target in targets:
            self.store.delete(target, self.known_root())
        os.rmdir(self.folder / "2")
        synced = _synced(lambda: self.store.flush(targets))
        assert synced == {self.folder, self.folder / "1", self.folder / "1/run2"}

    def test_flush_of_an_absent_root_fails(self) -> None:
        os.rmdir(self.folder)
        with pytest.raises(TransientArtifactError, match="cannot be written to disk"):
            self.store.flush([self.target(TREE)])

    def test_resolve_follows_links_as_far_as_the_path_exists(self) -> None:
        self.put(TREE + "f", b"x")
        os.symlink(self.folder, self.folder.parent / "link")
        for path in ("link/" + TREE, "link/1/../1/missing/artifacts/"):
            resolved = self.store.resolve(place(self.folder.parent / path))
            assert resolved == place(os.path.realpath(self.folder.parent / path))
            assert resolved.path.startswith(self.root.path)
        assert self.store.resolve(place("/")) == place("/")

    def test_a_root_that_is_a_link_or_a_file_is_not_there(self) -> None:
        link, file = self.folder.parent / "link", self.folder.parent / "file"
        os.symlink(self.folder, link)
        file.write_bytes(b"")
        assert not self.store.probe(place(file), ()).is_there
        probe = self.store.probe(place(link), ())
        assert not probe.is_there
        assert "symbolic link" in str(probe.problem)
        with pytest.raises(UnsafeTarget, match="symbolic link"):
            self.store.delete(_target(link), Root(place(link), probe))
        with pytest.raises(TransientArtifactError, match="not there"):
            self.store.delete(_target(file), Root(place(file), probe))

    def test_named_trees_behind_a_link_or_outside_prove_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere/run1/artifacts").mkdir(parents=True)
        (tmp_path / "mlruns2/1/run1/artifacts").mkdir(parents=True)
        os.symlink(tmp_path / "elsewhere", self.folder / "1")
        self.put("2/run2/artifacts", b"a file, no folder")
        named = [
            self.target("1/run1/artifacts/").place,
            self.target("2/run2/artifacts/").place,
            place(tmp_path / "mlruns2/1/run1/artifacts"),
        ]
        assert not self.store.probe(self.root, named).is_named_found

    def test_a_probe_looks_no_further_than_the_first_that_is_there(self) -> None:
        self.put(TREE + "f", b"x")

        def named() -> Iterator[Place]:
            yield self.target(TREE).place
            pytest.fail("asked for more")

        assert self.store.probe(self.root, named()).is_named_found

    def test_the_identity_found_now_counts_while_none_is_remembered(self) -> None:
        self.put(TREE + "f", b"x")
        root = replace(self.known_root(), remembered_identity=None)
        self.folder.rename(self.folder.with_name("moved away"))
        self.folder.mkdir()
        with pytest.raises(TransientArtifactError, match="another one"):
            self.store.delete(self.target(TREE), root)


class _Pruning(_OnDisk):
    """What is left of a collected experiment is its folder: that goes only where it is empty."""

    def prune(self, path: str = "1/") -> None:
        self.store.prune(self.target(path))

    def make(self, *paths: str) -> None:
        for path in paths:
            (self.folder / path).mkdir(parents=True, exist_ok=True)


class TestPrune(_Pruning):
    @pytest.mark.parametrize("inside", [[], ["models"], ["traces"], ["models", "traces"]])
    def test_an_empty_folder_goes_with_the_empty_folders_that_mlflow_made(
        self, inside: list[str]
    ) -> None:
        self.make("1", "10", "2/models", *(f"1/{name}" for name in inside))
        self.prune()
        assert self.folders() == {"10", "2", "2/models"}

    def test_the_folder_above_an_experiments_stays(self) -> None:
        self.make("workspaces/team/1/models")
        self.prune("workspaces/team/1/")
        assert self.folders() == {"workspaces", "workspaces/team"}

    @pytest.mark.parametrize(
        "kept",
        ["1/f", "1/run1/artifacts/f", "1/models/f", "1/models/m-1/artifacts/f", "1/traces/f"],
    )
    def test_a_folder_with_anything_in_it_stays_with_all_of_that(self, kept: str) -> None:
        self._put_all({kept, "1/traces/x/artifacts/f"})
        before = self.folders()
        self.prune()
        assert self.keys() == {kept, "1/traces/x/artifacts/f"}
        assert self.folders() == before

    @pytest.mark.parametrize("name", ["models", "traces"])
    def test_files_and_links_that_are_named_like_mlflows_folders_stay(self, name: str) -> None:
        self.make("1", "elsewhere", "10/models")
        (self.folder / f"1/{name}").write_bytes(b"x")
        os.symlink(self.folder / "elsewhere", self.folder / f"10/{'runs'}")
        os.symlink(self.folder / "elsewhere", self.folder / "10/traces")
        self.prune()
        self.prune("10/")
        assert (self.folder / f"1/{name}").read_bytes() == b"x"
        assert (self.folder / "10/traces").is_symlink()
        assert (self.folder / "elsewhere").is_dir()

    def test_what_is_not_there_is_left_as_it_is(self) -> None:
        self.make("10")
        self.prune()
        self.prune("workspaces/team/1/")
        os.rmdir(self.folder / "10")
        os.rmdir(self.folder)
        self.prune()
        assert not self.folder.exists()

    def test_pruning_twice_is_pruning_once(self) -> None:
        self.make("1/models", "2")
        self.prune()
        self.prune()
        assert self.folders() == {"2"}

    def test_a_folder_that_is_the_storage_root_stays(self) -> None:
        self.make("models", "traces", "other")
        self.prune("")
        assert self.folders() == {"other"}
        os.rmdir(self.folder / "other")
        self.prune("")
        assert self.folder.is_dir()

    @pytest.mark.parametrize("where", ["1", "workspaces"])
    def test_a_link_on_the_way_is_not_followed(self, where: str, tmp_path: Path) -> None:
        (tmp_path / "elsewhere/team/1/models").mkdir(parents=True)
        (tmp_path / "elsewhere/models").mkdir()
        os.symlink(tmp_path / "elsewhere", self.folder / where)
        with pytest.raises(UnsafeTarget, match="symbolic link"):
            self.prune("1/" if where == "1" else "workspaces/team/1/")
        assert (self.folder / where).is_symlink()
        assert (tmp_path / "elsewhere/team/1/models").is_dir()
        assert (tmp_path / "elsewhere/models").is_dir()

    def test_a_file_in_its_place_stays(self) -> None:
        (self.folder / "1").write_bytes(b"x")
        with pytest.raises(UnsafeTarget, match="not a folder"):
            self.prune()
        assert (self.folder / "1").read_bytes() == b"x"

    def test_a_root_that_is_a_link_is_not_entered(self) -> None:
        self.make("1")
        link = self.folder.parent / "link"
        os.symlink(self.folder, link)
        with pytest.raises(UnsafeTarget, match="symbolic link"):
            self.store.prune(Target(place(link / "1"), place(link)))
        assert self.folders() == {"1"}

    @pytest.mark.parametrize("path", ["../outside/", "1/../2/", "./", "1//", "1"])
    def test_what_is_not_below_its_root_is_refused(self, path: str, tmp_path: Path) -> None:
        self.make("1", "2")
        (tmp_path / "outside").mkdir()
        for target in (
            self.target(path),
            Target(place(tmp_path / "outside"), self.root),
            Target(replace(self.target("1/").place, scheme="s3"), self.root),
        ):
            with pytest.raises(UnsafeTarget):
                self.store.prune(target)
        assert self.folders() == {"1", "2"}
        assert (tmp_path / "outside").is_dir()

    def test_flush_after_a_prune_reaches_the_folder_above(self) -> None:
        self.make("workspaces/team/1", "2", "models")
        targets = [self.target(path) for path in ("workspaces/team/1/", "2/", "")]
        for target in targets:
            self.store.prune(target)
        synced = _synced(lambda: self.store.flush(targets))
        assert synced >= {self.folder, self.folder / "workspaces/team"}

    def test_a_run_that_is_logged_meanwhile_is_not_harmed(self) -> None:
        """The folder goes by rmdir alone: what comes between looking and removing keeps it."""
        self.make("1/models")
        real = os.rmdir

        def log_and_rmdir(path: str, *, dir_fd: int | None = None) -> None:
            self.put("1/models/m-new/artifacts/f", b"x")
            real(path, dir_fd=dir_fd)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "rmdir", log_and_rmdir)
            self.prune()
        assert self.keys() == {"1/models/m-new/artifacts/f"}

    def test_many_hands_prune_at_once(self) -> None:
        self.make(*(f"{number}/models" for number in range(40)), "live")
        paths = [f"{number % 40}/" for number in range(120)]
        with ThreadPoolExecutor(8) as hands:
            list(hands.map(self.prune, paths))
        assert self.folders() == {"live"}

    def test_no_descriptor_is_left_open(self) -> None:
        self.make("1/models", "2/run1")
        before = len(os.listdir("/proc/self/fd"))
        for path in ("1/", "2/", "3/", ""):
            self.prune(path)
        assert len(os.listdir("/proc/self/fd")) == before


class TestPruneMounts(_Pruning):
    @pytest.mark.parametrize("where", ["1", "1/models", "1/traces"])
    @pytest.mark.parametrize("kind", ["tmpfs", "bind"])
    def test_a_mount_stays_and_is_nothing_to_try_again(
        self, mount: Mount, tmp_path: Path, where: str, kind: str
    ) -> None:
        """No later attempt will find it otherwise: not a TransientArtifactError."""
        (self.folder / where).mkdir(parents=True)
        if kind == "tmpfs":
            mount(self.folder / where)
        else:
            (tmp_path / "source").mkdir()
            mount(self.folder / where, "--bind", tmp_path / "source")
        with suppress(UnsafeTarget):
            self.prune()
        assert where in self.folders()  # that it is still mounted, its unmounting shows

    def test_a_mount_with_empty_folders_of_mlflows_is_not_entered(self, mount: Mount) -> None:
        self.make("1")
        mount(self.folder / "1")
        self.make("1/models")
        with suppress(UnsafeTarget):
            self.prune()
        assert self.folders() == {"1", "1/models"}


class TestOnTmpfs(_OnDisk):
    """The contract again on another file system."""

    @pytest.fixture(autouse=True)
    def _mounted(self, _fresh: None, mount: Mount) -> None:
        mount(self.folder)


KERNELS = {
    "openat2": {},
    "fdinfo": {"has_openat2": lambda: False},
    "table": {"has_openat2": lambda: False, "mount_id": lambda fd: None},
}
"""How a mount is told from a folder: by the kernel, by the mount's id, by the mount table."""


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "openat2" and not descent.has_openat2():
        pytest.skip("this kernel has no openat2")
    for name, instead in KERNELS[request.param].items():
        monkeypatch.setattr(descent, name, instead)


@pytest.mark.usefixtures("kernel")
class TestKernels(_OnDisk):
    """The contract by each way to tell a mount, and mounts that appear at the worst moment."""

    @pytest.fixture
    def live(self, _fresh: None, mount: Mount, tmp_path: Path) -> Iterator[Path]:
        """Files of somebody else's, of which names on the way to the tree lead to some."""
        self.put(TREE + "a", b"x")
        self.put(TREE + "sub/deep/f", b"x")
        live = tmp_path / "live"
        for name in ("f", "deep/f", "artifacts/f", "run1/artifacts/f", "artifacts/sub/deep/f"):
            (live / name).parent.mkdir(parents=True, exist_ok=True)
            (live / name).write_bytes(b"precious")
        yield live
        assert [path.read_bytes() for path in live.rglob("f")] == [b"precious"] * 5

    @pytest.mark.parametrize("call", ["delete", "measure", "examine", "prune"])
    @pytest.mark.parametrize("where", ["1", "1/run1", TREE[:-1], TREE + "sub", TREE + "sub/deep"])
    def test_a_bind_mount_between_the_listing_and_the_opening(
        self, mount: Mount, live: Path, monkeypatch: pytest.MonkeyPatch, where: str, call: str
    ) -> None:
        real = descent.open_below

        def mount_and_open(folder: int, name: str, flags: int) -> int:
            if name == Path(where).name and not mount.folders:
                mount(self.folder / where, "--bind", live)
            return real(folder, name, flags)

        root = self.known_root()
        monkeypatch.setattr(walk, "open_below", mount_and_open)
        with suppress(UnsafeTarget):
            self._call(call, root)
        assert mount.folders or call in ("examine", "prune")  # which go down less far

    def _call(self, call: str, root: Root) -> None:
        target = self.target(TREE)
        match call:
            case "delete":
                with pytest.raises((UnsafeTarget, PermanentArtifactError), match="file system"):
                    self.store.delete(target, root)
            case "measure":
                assert self.store.measure(target).bytes < len(b"precious")
            case "examine":
                self.store.examine(target)
            case "prune":
                self.store.prune(Target(place(self.folder / "1"), self.root))

    def test_a_bind_mount_over_the_folder_that_is_emptied(
        self, mount: Mount, live: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was opened is emptied, what covers it stays, and the folder itself cannot go."""
        real = os.unlink

        def mount_and_unlink(path: str, *, dir_fd: int | None = None) -> None:
            if path == "f" and not mount.folders:
                mount(self.folder / TREE / "sub/deep", "--bind", live)
            real(path, dir_fd=dir_fd)

        root = self.known_root()
        monkeypatch.setattr(os, "unlink", mount_and_unlink)
        with pytest.raises(ArtifactError, match="sub/deep"):
            self.store.delete(self.target(TREE), root)
        monkeypatch.undo()
        assert mount.folders
        mount.unmount(self.folder / TREE / "sub/deep")
        self.delete(TREE)
        assert self.keys() == set()

    def test_folders_alone_are_no_files(self) -> None:
        (self.folder / TREE / "model/data").mkdir(parents=True)
        assert not self.store.has_files(self.target(TREE))
        (self.folder / TREE / "model/data/link").symlink_to("nowhere")
        assert self.store.has_files(self.target(TREE))


class TestMounts(_OnDisk):
    def test_an_unmounted_disk_is_no_empty_root(self, mount: Mount) -> None:
        mount(self.folder)
        self.put(TREE + "f", b"x")
        root = self.known_root()
        mount.unmount(self.folder)
        assert self.store.probe(self.root, ()).is_there
        with pytest.raises(TransientArtifactError, match="another one") as caught:
            self.store.delete(self.target(TREE), root)
        assert "mounted" in str(caught.value.hint)

    def test_another_disk_in_its_stead_is_seen(self, mount: Mount) -> None:
        mount(self.folder)
        root = self.known_root()
        mount(self.folder)
        self.put(TREE + "f", b"x")
        with pytest.raises(TransientArtifactError, match="another one"):
            self.store.delete(self.target(TREE), root)
        assert self.keys() == {TREE + "f"}

    def test_the_same_disk_mounted_elsewhere_keeps_its_identity(
        self, mount: Mount, tmp_path: Path
    ) -> None:
        mount(self.folder)
        again = tmp_path / "again"
        again.mkdir()
        mount(again, "--bind", self.folder)
        assert self.store.probe(place(again), ()).identity == self.known_root().probe.identity

    @pytest.mark.parametrize("kind", ["tmpfs", "bind"])
    @pytest.mark.parametrize("where", ["1", "1/run1", "1/run1/artifacts"])
    def test_a_mount_on_the_way_is_refused(
        self, mount: Mount, tmp_path: Path, where: str, kind: str
    ) -> None:
        (self.folder / where).mkdir(parents=True)
        self._mount_kind(mount, kind, self.folder / where, tmp_path)
        self.put(TREE + "f", b"x")
        for call in self._examine_and_delete(TREE):
            with pytest.raises(UnsafeTarget, match="another file system") as caught:
                call()
            assert "artifacts.roots" in str(caught.value.hint)
        assert self.keys() == {TREE + "f"}
        assert not self.store.probe(self.root, [self.target(TREE).place]).is_named_found

    @pytest.mark.parametrize("kind", ["tmpfs", "bind"])
    def test_a_mount_inside_the_tree_is_not_entered(
        self, mount: Mount, tmp_path: Path, kind: str
    ) -> None:
        self.put(TREE + "a", b"x")
        inside = self.folder / TREE / "deep/er\nline"
        inside.mkdir(parents=True)
        self._mount_kind(mount, kind, inside, tmp_path)
        (inside / "precious").write_bytes(b"x")
        for call in self._examine_and_delete(TREE):
            with pytest.raises(PermanentArtifactError, match="mounted there") as caught:
                call()
            assert "\n" not in caught.value.message
        assert (inside / "precious").exists()
        mount.unmount(inside)
        self.delete(TREE)
        assert self.keys() == set()

    def test_a_file_that_is_mounted_on_a_file(self, mount: Mount, tmp_path: Path) -> None:
        self.put(TREE + "a", b"x")
        (tmp_path / "live").write_bytes(b"precious")
        mount(self.folder / TREE / "a", "--bind", tmp_path / "live")
        for call in self._examine_and_delete(TREE):
            with pytest.raises(PermanentArtifactError, match="mounted there"):
                call()
        assert (tmp_path / "live").read_bytes() == b"precious"

    def test_a_mount_is_met_by_its_device_without_a_table(
        self, mount: Mount, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also what is mounted after the table was read, and what needs no mount (btrfs)."""
        self._put_all({TREE + "a", TREE + "deep/f", TREE + "z/b"})
        inside = mount(self.folder / TREE / "deep")
        (inside / "precious").write_bytes(b"x")
        monkeypatch.setattr(mounts, "TABLE", "/nonexistent")
        assert self.store.measure(self.target(TREE)) == Usage(2, 2)
        with pytest.raises(PermanentArtifactError, match=r"1/run1/artifacts/deep: another"):
            self.delete(TREE)
        assert self.keys() == {TREE + "deep/precious"}
        assert self.store.storage_root(place(inside), self.root) == place(inside)
        way = Target(place(inside / "run/artifacts"), self.root)
        with pytest.raises(UnsafeTarget, match="another file system"):
            self.store.delete(way, self.known_root())

    def test_identity_without_a_table_is_device_and_inode(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mounts, "TABLE", "/nonexistent")
        info = os.stat(self.folder)
        assert self.known_root().probe.identity == f"{info.st_dev}:{info.st_ino}"

    def test_the_storage_root_is_the_nearest_mount(self, mount: Mount, tmp_path: Path) -> None:
        location = self.folder / "disk/team/5"
        location.mkdir(parents=True)
        assert self._storage_root(location) == self.root
        mount(self.folder / "disk")
        location.mkdir(parents=True)
        assert self._storage_root(location) == place(self.folder / "disk")
        mount(location, "--bind", self.folder / "disk")  # no other device, yet another mount
        assert self._storage_root(location) == place(location)
        assert self._storage_root(self.folder / "disk/missing") == self.root
        assert self._storage_root(self.folder / "disk") == place(self.folder / "disk")
        os.symlink(location, self.folder / "link")
        assert self._storage_root(self.folder / "link") == self.root
        assert self._storage_root(tmp_path) == self.root
        absent = place(tmp_path / "absent")
        assert self.store.storage_root(place(tmp_path / "absent/1"), absent) == absent

    def test_a_change_that_no_calendar_holds_is_none(self, mount: Mount) -> None:
        mount(self.folder)  # tmpfs keeps a time that ext4 would cut to its own range
        self.put(TREE + "f", b"x")
        os.utime(self.folder / TREE / "f", (1e12, 1e12))
        assert self.delete(TREE) == Deleted(Usage(1, 1), None)

    def test_a_read_only_disk_is_told_and_mended_by_hand(self, mount: Mount) -> None:
        mount(self.folder)
        self._put_all({TREE + "f", TREE + "g"})
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)
        assert "read-only" in str(self.store.probe(self.root, ()).problem)
        with pytest.raises(PermanentArtifactError, match="read-only"):
            self.store.examine(self.target(TREE))
        with pytest.raises(PermanentArtifactError, match=r"2 files or folders.*ead-only") as caught:
            self.delete(TREE)
        assert "writable" in str(caught.value.hint)
        assert len(self.keys()) == 2

    def _storage_root(self, location: Path) -> Place:
        return self.store.storage_root(place(location), self.root)

    def _examine_and_delete(self, path: str) -> list[Callable[[], object]]:
        return [lambda: self.store.examine(self.target(path)), lambda: self.delete(path)]

    def _mount_kind(self, mount: Mount, kind: str, where: Path, tmp_path: Path) -> None:
        if kind == "tmpfs":
            mount(where)
        else:
            source = tmp_path / "source of the bind mount"
            source.mkdir()
            mount(where, "--bind", source)


def test_identities_of_file_systems_without_a_lasting_number() -> None:
    """By a mount table as XFS, NFS and FUSE give it; the folder is a real one."""
    with _entered(place("/")) as fd:
        info = os.fstat(fd)
        device = f"{os.major(info.st_dev)}:{os.minor(info.st_dev)}"
        ids = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        mount_id = next(line.split()[1] for line in ids if line.startswith("mnt_id"))
        expected = {
            ("xfs", "/dev/mapper/vg-data"): f"xfs:/dev/mapper/vg-data:{info.st_ino}",
            ("nfs4", "server:/ex\\040port"): f"nfs4:server:/ex port:{info.st_ino}",
            ("fuse.sshfs", "host:/data"): "fuse.sshfs:host:/data:/",
        }
        for (fstype, source), identity in expected.items():
            rest = f"/ / rw shared:1 - {fstype} {source} rw\n"
            table = f"{mount_id} 1 {device} {rest}"
            assert mounts._parse(table.encode()).identity(fd) == identity
            subvolume = f"{mount_id} 1 0:4095 {rest}"  # as on btrfs: a device of its own
            assert mounts._parse(subvolume.encode()).identity(fd) == identity


def _target(folder: Path) -> Target:
    return Target(place(folder / TREE), place(folder))


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """A socket's name is short: bind it from its own folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _synced(call: Callable[[], None]) -> set[Path]:
    """Which folders a call really asks the kernel to write, as the descriptors name them."""
    found: set[Path] = set()
    real = os.fsync

    def fsync(fd: int) -> None:
        found.add(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        call()
    return found


def test_a_mark_has_no_name_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector that is killed while it writes one leaves nothing behind."""
    seen: list[list[str]] = []
    link = os.link

    def noted(*arguments: Any, **named: Any) -> None:
        seen.append(os.listdir(tmp_path))
        link(*arguments, **named)

    monkeypatch.setattr(os, "link", noted)
    root = Place("file", "", f"{tmp_path}/")
    assert LocalArtifactStore().write_mark(root, b"mark", before=None)
    assert seen == [[]]
    assert LocalArtifactStore().read_mark(root) == b"mark"


def test_a_disk_that_is_full_leaves_no_part_of_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:2]))
    root = Place("file", "", f"{tmp_path}/")
    with pytest.raises(PermanentArtifactError, match="No space"):
        LocalArtifactStore().write_mark(root, b"mark", before=None)
    assert os.listdir(tmp_path) == []
