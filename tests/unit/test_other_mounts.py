"""One folder at two mount points has a name in common, by the mount table or by its inodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcd import mounts
from gcd.artifacts.other_names import OtherNames
from gcd.model import Hold, KeepReason, Place, Reach, Way
from gcd.planning.holds import HoldIndex
from tests.strategies import NOW

ROOT = "1 0 8:1 / / rw - ext4 /dev/sda1 rw"


def is_held(live: str, dead: str, reach: Reach = Reach.OVERLAP) -> bool:
    """Whether a live place keeps a dead one by what else both are called."""
    other_names = OtherNames()
    hold = Hold(KeepReason.SHARED, "", uri=live, reach=reach)
    pairs = [(hold, name) for name in other_names(Place("file", "", f"{live}/"))]
    index = HoldIndex.build(pairs, NOW)
    return index.over_any(other_names(Place("file", "", f"{dead}/"))) is not None


@pytest.mark.parametrize(
    ("rows", "live", "dead"),
    [
        (["2 1 8:1 /data /mnt/b rw - ext4 /dev/sda1 rw"], "/mnt/b/1", "/data/1/run"),
        (["2 1 8:1 /data /mnt/b rw - ext4 /dev/sda1 rw"], "/data", "/mnt/b/1/run"),
        (["2 1 8:1 /data/1/run/x /mnt/b rw - ext4 /dev/sda1 rw"], "/mnt/b", "/data/1/run"),
        (
            ["2 1 8:9 / /m/a rw - xfs /dev/sdb rw", "3 1 8:9 / /m/b rw - xfs /dev/sdb rw"],
            "/m/a/1",
            "/m/b/1/run",
        ),
        (
            ["2 1 0:9 /@a /m/a rw - btrfs /dev/sdb rw", "3 1 0:9 / /m/b rw - btrfs /dev/sdb rw"],
            "/m/a/1",
            "/m/b/@a/1/run",
        ),
        (
            ["2 1 0:8 / /m/a rw - nfs4 host:/export rw", "3 1 0:9 / /m/b rw - nfs 10.0.0.7:/export/x rw"],
            "/m/b/1",
            "/m/a/x/1/run",
        ),
        (
            ["2 1 0:8 / /m/a rw - cifs //host/share rw", "3 1 0:9 / /m/b rw - cifs //host/share/x rw"],
            "/m/b/1",
            "/m/a/x/1/run",
        ),
        (
            ["2 1 0:8 / /m/a rw - fuse.s3fs s3fs rw", "3 1 0:9 / /m/b rw - fuse.rclone r:bucket rw"],
            "/m/b/1/run/artifacts",
            "/m/a/1/run",
        ),
    ],
)  # fmt: skip
def test_one_folder_at_two_mount_points_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str], live: str, dead: str
) -> None:
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(mounts, "TABLE", str(table))
    table.write_text("\n".join([ROOT, *rows]))
    assert is_held(live, dead)
    assert is_held(dead, live)
    table.write_text("\n".join([ROOT, *(row.replace("8:1 ", "8:2 ") for row in rows[:1])]))
    assert not is_held(live, dead)


def test_the_inodes_of_a_server_are_compared_whatever_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 {number} / / rw - nfs host:/export rw")
    monkeypatch.setattr(mounts, "TABLE", str(table))
    way = next(
        name for name in OtherNames()(Place("file", "", f"{tmp_path}/")) if isinstance(name, Way)
    )
    assert way.is_whole
    assert way.nodes[-1] == (0, os.stat(tmp_path).st_ino)


def test_without_a_mount_table_inodes_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "TABLE", str(tmp_path / "none"))
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")  # as a folder with a second name
    assert is_held(f"{tmp_path}/link/c", f"{tmp_path}/a/b")
    assert is_held(f"{tmp_path}/link", f"{tmp_path}/a/b/c")
    assert not is_held(f"{tmp_path}/link", f"{tmp_path}/a/b/c", Reach.WITHIN)
    assert is_held(f"{tmp_path}/link/c", f"{tmp_path}/a/b", Reach.WITHIN)
    assert not is_held(f"{tmp_path}/link", f"{tmp_path}/a/other")


paths = st.lists(st.sampled_from("ab"), max_size=5).map(tuple)


def _way(path: tuple[str, ...], entrance: int) -> Way:
    """The way to a folder from a mount point that shows one of the folders above it."""
    nodes = [(1, hash(path[:depth]) % 10**9) for depth in range(len(path) + 1)]
    return Way(((2, 0), *nodes[min(entrance, len(path)) :]), is_whole=True)


@settings(max_examples=300)
@given(paths, paths, st.integers(0, 5), st.sampled_from(Reach))
def test_folders_that_overlap_are_found_by_their_inodes(
    live: tuple[str, ...], dead: tuple[str, ...], entrance: int, reach: Reach
) -> None:
    """As far as both are reached from above the outer one."""
    hold = Hold(KeepReason.SHARED, "", uri="/x", reach=reach)
    entrance = min(entrance, len(live), len(dead))
    index = HoldIndex.build([(hold, _way(live, entrance))], NOW)
    inside = live[: len(dead)] == dead
    around = dead[: len(live)] == live and reach is Reach.OVERLAP
    assert (index.over_any([_way(dead, 0)]) is not None) == (inside or around)
