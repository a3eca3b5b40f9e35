"""What the local store must never do, and what it must survive, on a real file system."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from gcd.artifacts import descent, walk
from gcd.artifacts.local import LocalArtifactStore
from gcd.errors import PermanentArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Place, Root, Target, Usage

NOBODY = 65_534
HAS_OPENAT2 = descent.has_openat2()
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def place(path: Path | str) -> Place:
    return Place("file", "", str(path).rstrip("/") + "/")


class Tree:
    """A storage root with one run, a file outside that must stay, and a store."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalArtifactStore()
        self.root_path = folder / "mlruns"
        self.path = self.root_path / "1/run1/artifacts"
        self.path.mkdir(parents=True)
        self.outside = folder / "outside"
        (self.outside / "sub").mkdir(parents=True)
        self.victims = [self.outside / "victim", self.outside / "sub/victim"]
        for victim in self.victims:
            victim.write_bytes(b"precious")
        self.root = place(self.root_path)
        self.target = Target(place(self.path), self.root)

    def known_root(self) -> Root:
        probe = self.store.probe(self.root, ())
        return Root(self.root, probe, remembered_identity=probe.identity)

    def delete(self) -> Usage:
        return self.store.delete(self.target, self.known_root()).usage

    def all_calls(self) -> list[Callable[[], object]]:
        return [
            lambda: self.store.examine(self.target),
            lambda: self.store.measure(self.target),
            self.delete,
        ]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path)
    yield tree
    assert all(victim.read_bytes() == b"precious" for victim in tree.victims)


# Symbolic links ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["1", "1/run1", "1/run1/artifacts"])
def test_a_link_on_the_way_is_refused(tree: Tree, where: str) -> None:
    (tree.outside / "run1/artifacts").mkdir(parents=True)
    (tree.outside / "artifacts").mkdir()
    shutil.rmtree(tree.root_path / where)
    os.symlink(tree.outside, tree.root_path / where)
    for call in tree.all_calls():
        with pytest.raises(UnsafeTarget, match=f"{where} is a symbolic link"):
            call()
    assert (tree.outside / "run1/artifacts").is_dir()
    assert (tree.root_path / where).is_symlink()


@pytest.mark.parametrize("where", ["1", "1/run1", "1/run1/artifacts"])
def test_a_file_on_the_way_is_refused(tree: Tree, where: str) -> None:
    shutil.rmtree(tree.root_path / where)
    (tree.root_path / where).write_bytes(b"x")
    for call in tree.all_calls():
        with pytest.raises(UnsafeTarget, match=f"{where} is not a folder"):
            call()
    assert (tree.root_path / where).read_bytes() == b"x"


def test_links_inside_are_unlinked_and_never_followed(tree: Tree) -> None:
    os.symlink(tree.outside, tree.path / "folder")
    os.symlink(tree.victims[0], tree.path / "file")
    os.symlink("../../../../outside", tree.path / "relative")
    os.symlink(".", tree.path / "itself")
    sizes = sum(os.lstat(link).st_size for link in tree.path.iterdir())
    assert tree.store.measure(tree.target) == Usage(4, sizes)
    assert tree.delete() == Usage(4, sizes)
    assert not tree.path.exists()


@pytest.mark.parametrize("has_openat2", [True, False])
@pytest.mark.parametrize("what", ["1", "1/run1", "1/run1/artifacts", "1/run1/artifacts/sub"])
def test_a_folder_swapped_for_a_link_before_it_is_opened(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, what: str, has_openat2: bool
) -> None:
    """The worst moment, every time: it was seen as a folder and is a link when it is opened."""
    (tree.path / "sub").mkdir()
    (tree.path / "sub/f").write_bytes(b"x")
    inside = tree.outside / os.path.relpath(tree.path, tree.root_path / what)
    if what in ("1", "1/run1"):  # the link leads to where the names go on
        inside.mkdir(parents=True)
        tree.victims.append(inside / "victim")
        tree.victims[-1].write_bytes(b"precious")
    swapped, real = tree.root_path / what, descent.open_below

    def swap_and_open(folder: int, name: str, flags: int) -> int:
        if name == swapped.name and not swapped.is_symlink():
            swapped.rename(tree.outside.parent / "aside")
            swapped.symlink_to(tree.outside)
        return real(folder, name, flags)

    root = tree.known_root()
    monkeypatch.setattr(descent, "has_openat2", lambda: has_openat2 and HAS_OPENAT2)
    monkeypatch.setattr(walk, "open_below", swap_and_open)
    if what.endswith("sub"):  # a link inside is unlinked when it is met again
        assert tree.store.delete(tree.target, root).usage.objects == 1
        assert not tree.path.exists()
    else:
        with pytest.raises(UnsafeTarget, match="symbolic link"):
            tree.store.delete(tree.target, root)
    monkeypatch.undo()
    assert list((tree.outside.parent / "aside").rglob("f"))


def test_a_folder_swapped_for_a_link_over_and_over(tree: Tree) -> None:
    """Somebody who may write in the tree exchanges a folder and a link as fast as the kernel can."""
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    aside = tree.root_path / "aside"
    aside.symlink_to(tree.outside)
    stop = threading.Event()

    def swap() -> None:
        names = os.fsencode(aside), os.fsencode(tree.path / "sub")
        while not stop.is_set():
            exchange(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(300):
            with suppress(OSError):
                (tree.path / "sub").mkdir(parents=True)
            with suppress(OSError):
                aside.symlink_to(tree.outside)
            with suppress(UnsafeTarget, TransientArtifactError):
                tree.delete()
    finally:
        stop.set()
        swapping.join()


def test_a_folder_moved_away_meanwhile_is_not_left_by_its_new_way_up(tree: Tree) -> None:
    """`..` of a moved folder is a folder of somebody else."""
    (tree.path / "a/b").mkdir(parents=True)
    neighbour = tree.outside / "neighbour"
    neighbour.mkdir()
    holder = os.open(tree.path.parent, os.O_RDONLY)
    try:
        position = walk._Position(holder, "1/run1")
        for name in ("artifacts", "a", "b"):
            position.enter(name)
        os.rename(tree.path / "a/b", neighbour / "b")
        with pytest.raises(TransientArtifactError, match="moved"):
            position.leave()
        position.close()
    finally:
        os.close(holder)


# What is no target ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "below",
    [
        "",
        "1/",
        "../outside/sub/",
        "1/../../outside/sub/",
        "1/run1/../run1/artifacts/",
        "1/run1/./artifacts/",
        "1//run1/artifacts/",
        "/1/run1/artifacts/",
        "1/run1/artifacts",
        "1/run1/artifacts//",
        "1/run1/nul\0/",
        "1/run1/\ud800/",
    ],
)
def test_what_is_not_a_tree_in_an_own_folder_is_refused(tree: Tree, below: str) -> None:
    (tree.path / "f").write_bytes(b"x")
    tree.target = Target(Place("file", "", tree.root.path + below), tree.root)
    for call in tree.all_calls():
        with pytest.raises(UnsafeTarget):
            call()
    assert (tree.path / "f").exists()


def test_what_contains_the_root_or_lies_beside_it_is_refused(tree: Tree) -> None:
    beside = tree.root_path.with_name("mlruns2") / "1/run1/artifacts"
    beside.mkdir(parents=True)
    for path in (tree.root_path.parent, "/", beside, tree.outside):
        tree.target = Target(place(path), tree.root)
        for call in tree.all_calls():
            with pytest.raises(UnsafeTarget):
                call()
    odd_root = Place("file", "", f"{tree.root_path}/1/../")
    for root in (odd_root, Place("file", "", ""), Place("file", "host", tree.root.path)):
        with pytest.raises(UnsafeTarget):
            tree.store.examine(Target(Place("file", "", root.path + "1/run1/artifacts/"), root))
    assert beside.is_dir()


def test_a_target_of_another_root_than_the_one_that_was_checked_is_refused(tree: Tree) -> None:
    other = Root(place(tree.outside), tree.store.probe(place(tree.outside), ()))
    with pytest.raises(UnsafeTarget, match="is not below"):
        tree.store.delete(tree.target, other)
    assert tree.path.is_dir()


# Size and shape ---------------------------------------------------------------------------------


def test_five_thousand_levels(tree: Tree) -> None:
    fd = os.open(tree.path, os.O_RDONLY)
    for _ in range(5_000):
        os.mkdir("deep", dir_fd=fd)
        below = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    with _few_descriptors():
        assert tree.store.measure(tree.target) == Usage(1, 0)
        assert tree.delete() == Usage(1, 0)
    assert not tree.path.exists()


def test_a_wide_tree_in_bounded_memory(tree: Tree) -> None:
    for number in range(100_000):
        os.mknod(tree.path / f"file{number:060}")
    tree.known_root()
    tracemalloc.start()
    try:
        with _few_descriptors():
            assert tree.delete() == Usage(100_000, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert not tree.path.exists()


def test_more_folders_than_are_remembered_at_a_time(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "BATCH", 7)
    for number in range(80):
        (tree.path / f"{number}/sub").mkdir(parents=True)
        (tree.path / f"{number}/sub/f").write_bytes(b"x")
        (tree.path / f"file{number}").write_bytes(b"x")
    assert tree.store.measure(tree.target) == Usage(160, 160)
    assert tree.delete() == Usage(160, 160)
    assert not tree.path.exists()


def test_many_folders_in_bounded_memory(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "BATCH", 100)
    for number in range(5_000):
        (tree.path / f"{number:0200}").mkdir()
    root = tree.known_root()
    tracemalloc.start()
    try:
        tree.store.delete(tree.target, root)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000
    assert not tree.path.exists()


def test_names_of_any_bytes(tree: Tree) -> None:
    folder = os.fsencode(tree.path)
    for name in (b"\xff\xfe", b"new\nline", b"\x01\x1b[31m", b"-rf", b"\xc3\x28", b"a" * 255):
        os.mkdir(folder + b"/" + name)
        os.close(os.open(folder + b"/" + name + b"/" + name, os.O_CREAT))
    assert tree.delete() == Usage(6, 0)
    assert not tree.path.exists()


def test_a_storage_root_of_odd_bytes(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff %2e"))
    odd.mkdir()
    tree = Tree(odd)
    (tree.path / "f").write_bytes(b"x")
    assert tree.store.resolve(tree.root) == tree.root
    assert tree.store.probe(tree.root, [tree.target.place]).is_named_found
    assert tree.delete() == Usage(1, 1)


def test_two_thousand_trees_are_quick(tree: Tree) -> None:
    targets = []
    for number in range(2_000):
        path = tree.root_path / f"1/many{number}/artifacts"
        path.mkdir(parents=True)
        for name in "abcde":
            (path / name).write_bytes(b"x")
        targets.append(Target(place(path), tree.root))
    root = tree.known_root()
    before = time.monotonic()
    with ThreadPoolExecutor(8) as hands:
        deleted = list(hands.map(lambda target: tree.store.delete(target, root), targets))
    tree.store.flush(targets)
    assert time.monotonic() - before < 15  # 0.8 s on two idle cores; this is for busy ones
    assert sum((one.usage for one in deleted), Usage()) == Usage(10_000, 10_000)
    assert os.listdir(tree.root_path / "1") == ["run1"]


class _few_descriptors:
    """A process that may open only a few more files than it has open."""

    def __enter__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 16, self.limits[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)


def test_no_descriptor_is_left_open(tree: Tree) -> None:
    (tree.path / "a/b").mkdir(parents=True)
    os.symlink(tree.outside, tree.root_path / "2")
    behind_link = Target(place(tree.root_path / "2/run/artifacts"), tree.root)
    root = tree.known_root()
    before = os.listdir("/proc/self/fd")
    tree.store.measure(tree.target)
    tree.store.examine(tree.target)
    tree.store.probe(tree.root, [behind_link.place, tree.target.place])
    with pytest.raises(UnsafeTarget):
        tree.store.delete(behind_link, root)
    tree.store.delete(tree.target, root)
    tree.store.flush([tree.target])
    assert os.listdir("/proc/self/fd") == before


# Others at work ---------------------------------------------------------------------------------


def test_two_that_delete_the_same_tree_both_succeed(tree: Tree) -> None:
    for _ in range(20):
        for number in range(20):
            (tree.path / f"{number}/sub").mkdir(parents=True)
            (tree.path / f"{number}/sub/f").write_bytes(b"x")
        stores = [LocalArtifactStore() for _ in range(4)]
        root = tree.known_root()
        with ThreadPoolExecutor(4) as hands:
            tries = [hands.submit(store.delete, tree.target, root) for store in stores]
        assert sum(one.result().usage.objects for one in tries) == 20
        assert not tree.path.parent.exists()


def test_files_that_appear_once_are_deleted_too(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = iter(["sub/late", "late"])
    (tree.path / "sub").mkdir()
    with _before_each_rmdir(monkeypatch, lambda: _touch(tree.path, next(late, None))):
        assert tree.delete() == Usage(2, 0)
    assert not tree.path.exists()


def test_files_that_keep_appearing_defer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        _before_each_rmdir(monkeypatch, lambda: _touch(tree.path, "late")),
        pytest.raises(TransientArtifactError, match="keep appearing"),
    ):
        tree.delete()
    assert tree.path.is_dir()
    assert tree.delete() == Usage(1, 0)


def test_an_own_folder_that_is_used_meanwhile_stays(tree: Tree) -> None:
    (tree.path.parent / "other").write_bytes(b"x")
    assert tree.delete() == Usage()
    assert os.listdir(tree.path.parent) == ["other"]


def _touch(folder: Path, name: str | None) -> None:
    if name is not None:
        (folder / name).touch()


class _before_each_rmdir:
    """Somebody else acts at the worst moment: when a folder was emptied and not yet removed."""

    def __init__(self, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
        self.patch, self.act = patch, act

    def __enter__(self) -> None:
        real = os.rmdir

        def rmdir(path: str, *, dir_fd: int) -> None:
            if os.path.basename(path) in ("sub", "artifacts"):
                self.act()
            real(path, dir_fd=dir_fd)

        self.patch.setattr(os, "rmdir", rmdir)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


# Errors of the system ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, PermanentArtifactError),
        (errno.EPERM, PermanentArtifactError),
        (errno.EROFS, PermanentArtifactError),
        (errno.ENAMETOOLONG, PermanentArtifactError),
        (errno.EBUSY, TransientArtifactError),
        (errno.EIO, TransientArtifactError),
        (errno.ESTALE, TransientArtifactError),
        (errno.ETIMEDOUT, TransientArtifactError),
        (errno.ENOSPC, TransientArtifactError),
        (errno.EDQUOT, TransientArtifactError),
        (errno.EINTR, TransientArtifactError),
        (errno.EMFILE, TransientArtifactError),
    ],
)
def test_each_error_of_the_system_has_its_class(number: int, kind: type[Exception]) -> None:
    error = walk.artifact_error(OSError(number, "as the system says"), "1/run1/\n\udcff")
    assert type(error) is kind
    assert "1/run1/\\n\\udcff: " in error.message
    assert (error.hint is not None) == (kind is PermanentArtifactError)


def test_too_long_a_name_is_stuck(tree: Tree) -> None:
    tree.target = Target(place(tree.root_path / "1" / ("a" * 256) / "artifacts"), tree.root)
    with pytest.raises(PermanentArtifactError, match="too long"):
        tree.delete()


def test_long_paths_are_cut_in_the_middle() -> None:
    text = walk.shown("a" * 300 + "b" * 300)
    assert len(text) == 240
    assert text.startswith("aaa")
    assert "..." in text
    assert text.endswith("bbb")


def test_a_file_that_cannot_be_deleted_does_not_keep_the_rest(tree: Tree) -> None:
    """The immutable flag stops root too; where there is none, permissions are tested below."""
    for name in ("a/stays", "a/b/goes", "c", "d/stays too", "e/f"):
        (tree.path / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.path / name).write_bytes(b"x")
    stuck = [tree.path / "a/stays", tree.path / "d/stays too"]
    if subprocess.run(["chattr", "+i", *stuck], capture_output=True).returncode:
        pytest.skip("no immutable files here")
    try:
        with pytest.raises(PermanentArtifactError) as caught:
            tree.delete()
    finally:
        subprocess.run(["chattr", "-i", *stuck], check=True)
    assert caught.value.message.startswith("2 files or folders could not be deleted, the first is")
    assert "1/run1/artifacts/" in caught.value.message
    assert "stays" in caught.value.message
    left = {str(path.relative_to(tree.path)) for path in tree.path.rglob("*")}
    assert left == {"a", "a/stays", "d", "d/stays too"}
    assert tree.delete() == Usage(2, 2)
    assert not tree.path.parent.exists()


def test_what_cannot_be_deleted_is_counted_once(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "BATCH", 2)
    for number in range(10):
        (tree.path / f"{number}").mkdir()
        (tree.path / f"file{number}").write_bytes(b"x")
    stuck = [tree.path / f"file{number}" for number in range(10)]
    if subprocess.run(["chattr", "+i", *stuck], capture_output=True).returncode:
        pytest.skip("no immutable files here")
    try:
        with pytest.raises(PermanentArtifactError, match="10 files"):
            tree.delete()
    finally:
        subprocess.run(["chattr", "-i", *stuck], check=True)
    assert sorted(tree.path.iterdir()) == stuck


def test_a_tree_full_of_undeletable_files_is_left_early(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "MAX_FAILURES", 3)
    files = [tree.path / f"{number}" for number in range(10)]
    for file in files:
        file.write_bytes(b"x")
    if subprocess.run(["chattr", "+i", *files], capture_output=True).returncode:
        pytest.skip("no immutable files here")
    try:
        with pytest.raises(PermanentArtifactError, match="3 files"):
            tree.delete()
    finally:
        subprocess.run(["chattr", "-i", *files], check=True)


# Permissions, as a user who is not root ---------------------------------------------------------

PROGRAM = """
import os, sys
from gcd.artifacts.local import LocalArtifactStore
from gcd.errors import ArtifactError
from gcd.model import Place, Root, Target
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({nobody})
    os.setuid({nobody})
store, root = LocalArtifactStore(), Place("file", "", sys.argv[2])
target = Target(Place("file", "", sys.argv[3]), root)
try:
    probe = store.probe(root, ())
    if sys.argv[1] == "probe":
        print(probe.problem)
    elif sys.argv[1] == "delete":
        print(store.delete(target, Root(root, probe)).usage.objects)
    else:
        print(getattr(store, sys.argv[1])(target))
except ArtifactError as error:
    print(type(error).__name__, error.message, "|", error.hint)
"""


@pytest.fixture
def shared() -> Iterator[Tree]:
    """A tree where another user can get at it: the folders of pytest are its own user's only."""
    folder = tempfile.mkdtemp(prefix="gcd-test-")
    os.chmod(folder, 0o755)
    yield Tree(Path(folder))
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    shutil.rmtree(folder)


def as_user(method: str, tree: Tree) -> str:
    """What a method comes to in a process of the user `nobody`, or of ours if that is not root."""
    program = [sys.executable, "-W", "error", "-c", PROGRAM.format(nobody=NOBODY)]
    arguments = [method, tree.root.path, tree.target.place.path]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def give(tree: Tree, *paths: Path) -> None:
    if os.geteuid() == 0:
        for path in paths or [tree.root_path, *tree.root_path.rglob("*")]:
            os.lchown(path, NOBODY, NOBODY)


def test_a_user_may_delete_what_is_its_own(shared: Tree) -> None:
    (shared.path / "f").write_bytes(b"x")
    give(shared)
    assert as_user("probe", shared) == "None"
    assert as_user("examine", shared) == "None"
    assert as_user("delete", shared) == "1"
    assert not shared.path.parent.exists()


@pytest.mark.parametrize("up", [1, 2])
def test_an_unwritable_folder_around_the_tree_is_found_beforehand(shared: Tree, up: int) -> None:
    (shared.path / "f").write_bytes(b"x")
    give(shared)
    folder = shared.path.parents[up - 1]
    folder.chmod(0o555)
    said = as_user("examine", shared)
    assert said.startswith(f"PermanentArtifactError {folder} is not writable and searchable")
    assert f"| let uid {os.geteuid() or NOBODY} write and search {folder}" in said
    assert "Permission denied" in as_user("delete", shared)


def test_an_unsearchable_folder_above_is_told(shared: Tree) -> None:
    give(shared)
    (shared.root_path / "1").chmod(0o600)
    for method in ("examine", "measure", "delete"):
        assert as_user(method, shared).startswith("PermanentArtifactError 1/run1: Permission")


def test_an_unwritable_root_is_a_problem_of_the_probe(shared: Tree) -> None:
    give(shared)
    shared.root_path.chmod(0o555)
    assert "not writable and searchable" in as_user("probe", shared)
    shared.root_path.chmod(0o600)
    assert "not writable and searchable" in as_user("probe", shared)


def test_folders_of_ours_without_permission_bits_are_mended(shared: Tree) -> None:
    for mode in (0o000, 0o100, 0o400, 0o555, 0o300):
        folder = shared.path / f"{mode:o}" / "inner"
        folder.mkdir(parents=True)
        (folder / "f").write_bytes(b"x")
    give(shared)
    for mode in (0o000, 0o100, 0o400, 0o555, 0o300):
        (shared.path / f"{mode:o}/inner").chmod(mode)
        (shared.path / f"{mode:o}").chmod(mode)
    shared.path.chmod(0o555)
    assert as_user("examine", shared) == "None"
    assert as_user("delete", shared) == "5"
    assert not shared.path.parent.exists()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of two users need root to make")


@needs_root
def test_a_tree_of_another_user_is_found_beforehand(shared: Tree) -> None:
    give(shared, shared.root_path, shared.root_path / "1", shared.path.parent)
    said = as_user("examine", shared)
    assert said.startswith(f"PermanentArtifactError {shared.path} is not writable")


@needs_root
def test_an_undeletable_folder_of_another_user_inside_is_reported_by_path(shared: Tree) -> None:
    for name in ("foreign/f", "own/f", "g"):
        (shared.path / name).parent.mkdir(exist_ok=True)
        (shared.path / name).write_bytes(b"x")
    give(shared)
    os.chown(shared.path / "foreign", 0, 0)
    said = as_user("delete", shared)
    assert said.startswith("PermanentArtifactError 1/run1/artifacts/foreign/f: Permission denied |")
    assert f"uid {NOBODY}" in said
    assert os.listdir(shared.path) == ["foreign"]


@needs_root
@pytest.mark.parametrize("up", [0, 1, 2])
def test_a_sticky_folder_with_what_others_own_is_found_beforehand(shared: Tree, up: int) -> None:
    (shared.path / "f").write_bytes(b"x")
    folders = [shared.path, *shared.path.parents[:2]]
    for folder in folders:
        folder.chmod(0o777)
    assert as_user("examine", shared) == "None"
    folders[up].chmod(0o1777)
    said = as_user("examine", shared)
    assert said.startswith(f"PermanentArtifactError {folders[up]} has the sticky bit")
    assert "Operation not permitted" in as_user("delete", shared)
    give(shared, folders[up])
    assert as_user("examine", shared) == "None"
