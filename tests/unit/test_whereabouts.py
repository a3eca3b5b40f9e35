"""Where a file lies is told in words that stay, from the table of mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gcd import mounts
from gcd.mounts import Mount, MountTable, Whereabouts, read_mounts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "ml.db"
    path.parent.mkdir()
    path.write_bytes(b"x")
    return path


def lies(path: Path, table: MountTable | None = None) -> Whereabouts:
    fd = os.open(path, os.O_PATH)
    try:
        return (table or read_mounts()).whereabouts(fd)
    finally:
        os.close(fd)


def seen_through(path: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> Whereabouts:
    """Where it lies if it were reached by that mount."""
    monkeypatch.setattr(MountTable, "_row_of", lambda self, fd: mount)
    return lies(path)


def test_a_file_that_moved_keeps_its_inode_and_a_copy_has_its_own(file: Path) -> None:
    before = lies(file)
    moved = file.rename(file.with_name("moved.db"))
    file.write_bytes(moved.read_bytes())
    after, copy = lies(moved), lies(file)
    assert (after.fs, after.inode) == (before.fs, before.inode)
    assert after.path != before.path
    assert copy.inode != before.inode


def test_a_volume_has_one_path_in_every_container(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Mount(1, 1, "/volumes/prod", str(file.parent), "ext4", "/dev/sda1")
    alone = Mount(2, 1, "/volumes/prod/ml.db", str(file), "ext4", "/dev/sda1")
    paths = {seen_through(file, mount, monkeypatch).path for mount in (folder, alone)}
    assert paths == {"/volumes/prod/ml.db"}


@pytest.mark.parametrize(
    ("fstype", "source", "is_lasting"),
    [("xfs", "/dev/sda1", False), ("nfs4", "host:/export", True), ("cifs", "//host/x", True)],
)
def test_a_file_system_may_be_called_alike_on_two_hosts(
    file: Path, monkeypatch: pytest.MonkeyPatch, fstype: str, source: str, is_lasting: bool
) -> None:
    where = seen_through(file, Mount(1, 1, "/", "/", fstype, source), monkeypatch)
    assert (where.fs, where.is_lasting) == (f"{fstype}:{source}", is_lasting)


def test_inodes_of_fuse_say_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = seen_through(file, Mount(1, 1, "/", "/", "fuse.x", "bucket"), monkeypatch)
    assert where.inode == ""


def test_without_proc_no_path_is_made_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "true_path", lambda fd: None)
    where = lies(file)
    assert (where.path, where.is_lasting) == ("", False)
    assert where.inode == str(file.stat().st_ino)
