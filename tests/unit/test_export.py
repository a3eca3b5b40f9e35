"""An export: every row once, on the disk before it is gone, for its owner alone; old ones go."""

from __future__ import annotations

import errno
import gzip
import json
import os
import resource
import stat
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcd.errors import GcdError
from gcd.export import Exporter, exporting, plain, prune
from gcd.planning.gate import Gate
from gcd.planning.policy import Policy
from gcd.survey import Settings
from tests.strategies import NOW, SCOPE

DAY = timedelta(days=1)
NAME = "gcd-cycle-000007-20260301T120000Z.jsonl.gz"
RUN = {"run_uuid": "run", "status": "FINISHED"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "exports"


@pytest.fixture
def exporter(folder: Path) -> Iterator[Exporter]:
    exporter = Exporter(folder, 7, NOW)
    yield exporter
    exporter.close()


def lines(path: Path) -> list[Any]:
    """What a whole export says."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def found_after_a_crash(path: Path) -> list[Any]:
    """What an export says that was never ended."""
    data = zlib.decompressobj(wbits=31).decompress(path.read_bytes())
    return [json.loads(line) for line in data.splitlines()]


def roll_back(exporter: Exporter, error: BaseException) -> None:
    """A batch of a row whose transaction fails."""
    with exporter.batch():
        exporter.write("runs", [RUN])
        raise error


# Lines ------------------------------------------------------------------------------------------


def test_rows_stand_between_the_marks_of_their_batch(exporter: Exporter) -> None:
    with exporter.batch():
        exporter.write("tags", [{"key": "a", "value": "b"}, {"key": "c", "value": None}])
        exporter.write("runs", iter([RUN]))
    with exporter.batch():
        exporter.write("runs", [RUN])
    exporter.close()
    assert lines(exporter.path) == [
        {"batch": 1},
        {"table": "tags", "row": {"key": "a", "value": "b"}},
        {"table": "tags", "row": {"key": "c", "value": None}},
        {"table": "runs", "row": RUN},
        {"committed": 1},
        {"batch": 2},
        {"table": "runs", "row": RUN},
        {"committed": 2},
    ]


def test_a_batch_that_was_rolled_back_says_so_and_its_error_goes_on(exporter: Exporter) -> None:
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            roll_back(exporter, error())
    with exporter.batch():
        exporter.write("runs", [RUN])
    exporter.close()
    marks = [line for line in lines(exporter.path) if "row" not in line]
    assert marks == [
        {"batch": 1},
        {"abandoned": 1},
        {"batch": 2},
        {"abandoned": 2},
        {"batch": 3},
        {"committed": 3},
    ]


def test_a_batch_without_rows_leaves_no_marks(exporter: Exporter) -> None:
    with exporter.batch():
        exporter.write("runs", [])
    with suppress(ZeroDivisionError), exporter.batch():
        raise ZeroDivisionError
    assert not exporter.path.exists()
    with exporter.batch():
        exporter.write("runs", [RUN])
    with exporter.batch():
        pass
    exporter.close()
    assert [line for line in lines(exporter.path) if "row" not in line] == [
        {"batch": 1},
        {"committed": 1},
    ]


def test_without_a_row_there_is_no_file_and_no_folder(exporter: Exporter, folder: Path) -> None:
    exporter.seal()
    with exporter.batch():
        exporter.seal()
    exporter.close()
    assert not folder.exists()


def test_other_programs_can_read_it(exporter: Exporter) -> None:
    with exporter.batch():
        exporter.write("runs", [{"name": "two\nlines \u2028 é \udcff"}])
    exporter.close()
    done = subprocess.run(["gzip", "-cd", exporter.path], capture_output=True, check=True)
    assert done.stdout.isascii()
    assert len(done.stdout.splitlines()) == 3
    assert done.stdout.endswith(b"\n")
    assert lines(exporter.path)[1]["row"]["name"] == "two\nlines \u2028 é \udcff"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (0, 0),
        (2**63, 2**63),
        (-0.5, -0.5),
        (1.7976931348623157e308, 1.7976931348623157e308),
        ("", ""),
        (b"", {"bytes": ""}),
        (b"\x00\xff", {"bytes": "00ff"}),
        (bytearray(b"a"), {"bytes": "61"}),
        (memoryview(b"ab"), {"bytes": "6162"}),
        (Decimal("1.10"), "1.10"),
        (datetime(2026, 3, 1, 12, tzinfo=UTC), "2026-03-01 12:00:00+00:00"),
        (date(2026, 3, 1), "2026-03-01"),
        ({"a": [1, None]}, {"a": [1, None]}),
        ([], []),
    ],
)
def test_a_value_loses_nothing(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)
    assert json.loads(json.dumps(plain(value))) == expected


values = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
values |= st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.text(), values))
def test_any_row_is_read_back_from_its_line(row: dict[str, Any]) -> None:
    line = json.dumps({name: plain(value) for name, value in row.items()})
    found = {
        name: bytes.fromhex(value["bytes"]) if isinstance(value, dict) else value
        for name, value in json.loads(line).items()
    }
    assert found == row


# The file ---------------------------------------------------------------------------------------


def test_a_file_is_named_by_its_cycle_and_time(folder: Path) -> None:
    assert Exporter(folder, 7, NOW).path == folder / NAME
    later = Exporter(folder, 12_345_678, NOW).path
    assert later.name == "gcd-cycle-12345678-20260301T120000Z.jsonl.gz"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_only_its_owner_can_read_it(exporter: Exporter, folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        exporter.write("runs", [RUN])
    finally:
        os.umask(before)
    assert stat.S_IMODE(exporter.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_is_there_is_left_as_it_is(exporter: Exporter, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    exporter.write("runs", [RUN])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "folder"])
def test_what_is_there_is_never_written_to(exporter: Exporter, folder: Path, kind: str) -> None:
    folder.mkdir()
    other = folder / "precious"
    other.write_bytes(b"precious")
    {
        "file": lambda: exporter.path.write_bytes(b"precious"),
        "link": lambda: exporter.path.symlink_to(other),
        "dangling": lambda: exporter.path.symlink_to(folder / "nowhere"),
        "folder": exporter.path.mkdir,
    }[kind]()
    with pytest.raises(GcdError, match="File exists"):
        exporter.write("runs", [RUN])
    assert other.read_bytes() == b"precious"
    assert not (folder / "nowhere").exists()
    if kind == "file":
        assert exporter.path.read_bytes() == b"precious"


# On the disk ------------------------------------------------------------------------------------


def test_what_was_sealed_is_found_after_a_crash(exporter: Exporter) -> None:
    with exporter.batch():
        exporter.write("runs", [RUN])
        exporter.seal()
        assert found_after_a_crash(exporter.path) == [{"batch": 1}, {"table": "runs", "row": RUN}]
    with exporter.batch():
        exporter.write("runs", [RUN])
        exporter.seal()
        marks = [line for line in found_after_a_crash(exporter.path) if "row" not in line]
        assert marks == [{"batch": 1}, {"committed": 1}, {"batch": 2}]


def test_that_a_batch_was_rolled_back_is_on_the_disk_at_once(exporter: Exporter) -> None:
    with suppress(ZeroDivisionError):
        roll_back(exporter, ZeroDivisionError())
    assert found_after_a_crash(exporter.path)[-1] == {"abandoned": 1}


@contextmanager
def synced() -> Iterator[list[Path]]:
    """What the kernel is asked to write, as the descriptors name it."""
    found: list[Path] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield found


def test_rows_and_the_name_of_their_file_are_made_durable(exporter: Exporter, folder: Path) -> None:
    with synced() as found, exporter.batch():
        exporter.write("runs", [RUN])
        assert found == [folder]
        exporter.seal()
        assert found == [folder, exporter.path]
    with synced() as found:
        exporter.close()
    assert exporter.path in found


@contextmanager
def broken_disk() -> Iterator[None]:
    """Nothing can be made durable."""

    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.mark.parametrize("call", ["write", "seal", "close"])
def test_what_cannot_be_made_durable_is_an_error(exporter: Exporter, call: str) -> None:
    if call != "write":
        exporter.write("runs", [RUN])
    with broken_disk(), pytest.raises(GcdError, match="Input/output error") as caught:
        exporter.write("runs", [RUN]) if call == "write" else getattr(exporter, call)()
    assert str(exporter.path) in caught.value.message
    assert "nothing was purged that is not exported" in str(caught.value.hint)
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_of_the_batch_is_told_before_one_of_the_export(exporter: Exporter) -> None:
    exporter.write("runs", [RUN])
    with broken_disk(), pytest.raises(ZeroDivisionError):
        roll_back(exporter, ZeroDivisionError())


def purge(exporter: Exporter, rows: list[dict[str, Any]]) -> None:
    """A batch as the store writes it: sealed before it is committed."""
    with exporter.batch():
        exporter.write("runs", rows)
        exporter.seal()


def test_an_export_that_fails_abandons_its_batch(exporter: Exporter) -> None:
    purge(exporter, [RUN])
    with broken_disk(), pytest.raises(GcdError):
        purge(exporter, [RUN])
    exporter.close()
    assert lines(exporter.path)[-1] == {"abandoned": 2}


@contextmanager
def full_disk(most: int = 64 * 1024) -> Iterator[None]:
    """No file grows beyond so many bytes: a write fails as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_before_the_commit(exporter: Exporter) -> None:
    rows = [{"value": os.urandom(1000)} for _ in range(300)]
    with full_disk(), pytest.raises(GcdError, match="File too large"):
        purge(exporter, rows)


def open_files() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return found


@pytest.mark.parametrize("call", ["write", "close"])
def test_an_export_that_could_not_be_begun_or_ended_is_not_left_open(
    folder: Path, call: str
) -> None:
    """A daemon would run out of descriptors, cycle by cycle."""
    exporter = Exporter(folder, 7, NOW)
    if call == "close":
        exporter.write("runs", [RUN])
    with broken_disk(), pytest.raises(GcdError):
        exporter.write("runs", [RUN]) if call == "write" else exporter.close()
    is_open = str(exporter.path) in open_files()
    exporter.close()
    assert not is_open


def test_an_ended_export_is_ended_once_and_open_no_more(exporter: Exporter) -> None:
    exporter.write("runs", [RUN])
    exporter.close()
    exporter.close()
    exporter.seal()
    assert str(exporter.path) not in open_files()
    assert [line for line in lines(exporter.path) if "row" in line] != []


# Old exports ------------------------------------------------------------------------------------


def made(folder: Path, name: str, age: timedelta = 9 * DAY) -> Path:
    """A file that was last written so long ago."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(b"x")
    dated(path, age)
    return path


def dated(path: Path, age: timedelta) -> None:
    at = int((NOW - age).timestamp())
    os.utime(path, (at, at), follow_symlinks=False)


def export_name(cycle: int) -> str:
    return f"gcd-cycle-{cycle:06}-20260101T000000Z.jsonl.gz"


def test_exports_that_are_old_enough_go_and_are_counted(folder: Path) -> None:
    for cycle, age in enumerate([9 * DAY, 5 * DAY, 5 * DAY - timedelta(seconds=1), timedelta(0)]):
        made(folder, export_name(cycle), age)
    made(folder, export_name(10**9), 6 * DAY)
    assert prune(folder, NOW - 5 * DAY) == 2
    assert {path.name for path in folder.iterdir()} == {export_name(each) for each in (1, 2, 3)}
    assert prune(folder, NOW - 5 * DAY) == 0


@pytest.mark.parametrize(
    "name",
    [
        "precious",
        "gcd.toml",
        NAME.removesuffix(".gz"),
        f"{NAME}.bak",
        f"my-{NAME}",
        f"{NAME}\n",
        NAME.upper(),
        NAME.replace("000007", "7"),
        NAME.replace("000007", "-00007"),
        NAME.replace("000007", "\u0667" * 6),
        NAME.replace("20260301T120000Z", "2026-03-01"),
        NAME.replace(".jsonl", "-jsonl"),
    ],
)
def test_a_file_with_any_other_name_stays(folder: Path, name: str) -> None:
    path = made(folder, name)
    assert prune(folder, NOW) == 0
    assert path.exists()


def test_only_plain_files_go(folder: Path, tmp_path: Path) -> None:
    old = made(tmp_path, "precious")
    folder.mkdir()
    (folder / export_name(1)).symlink_to(old)
    (folder / export_name(2)).symlink_to("nowhere")
    (folder / export_name(3)).mkdir()
    os.mkfifo(folder / export_name(4))
    for path in folder.iterdir():
        dated(path, 9 * DAY)
    made(folder / export_name(3), export_name(5))
    dated(folder / export_name(3), 9 * DAY)
    assert prune(folder, NOW) == 0
    assert len(list(folder.rglob("*"))) == 5
    assert old.exists()


def test_a_link_that_was_made_long_ago_to_a_young_export_is_not_followed(folder: Path) -> None:
    young = made(folder, export_name(1), timedelta(0))
    (folder / export_name(2)).symlink_to(young)
    dated(folder / export_name(2), 9 * DAY)
    assert prune(folder, NOW - DAY) == 0
    assert young.exists()


def test_a_folder_that_is_not_there_holds_no_exports(folder: Path) -> None:
    assert prune(folder, NOW) == 0
    assert not folder.exists()


def test_an_export_that_another_prunes_meanwhile_keeps_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where two stores export to one folder."""
    for cycle in range(3):
        made(folder, export_name(cycle))
    real, first = os.unlink, []

    def unlink(path: str) -> None:
        if not first:
            first.append(path)
            real(path)
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    prune(folder, NOW)
    assert first
    assert list(folder.iterdir()) == []


# Around a cycle ---------------------------------------------------------------------------------

SETTINGS = Settings(policy=Policy(older_than=DAY), scope=SCOPE, gate=Gate())


class Store(SimpleNamespace):
    """All that an export needs of a store."""

    export: Exporter | None = None


@contextmanager
def cycle(store: Store, folder: Path | None, **settings: Any) -> Iterator[None]:
    with exporting(
        store,  # type: ignore[arg-type]
        replace(SETTINGS, export_to=folder, **settings),
        7,
        NOW,
    ):
        yield


def test_a_store_exports_while_its_cycle_runs_and_only_then(folder: Path) -> None:
    store = Store()
    with cycle(store, folder):
        assert store.export is not None
        with store.export.batch():
            store.export.write("runs", [RUN])
    assert store.export is None
    assert lines(folder / NAME)[-1] == {"committed": 1}


def test_without_a_folder_nothing_is_exported(tmp_path: Path) -> None:
    store = Store()
    with cycle(store, None):
        assert store.export is None
    assert list(tmp_path.iterdir()) == []


def test_a_cycle_that_fails_ends_its_export(folder: Path) -> None:
    store = Store()

    def fail() -> None:
        with cycle(store, folder):
            assert store.export is not None
            roll_back(store.export, ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.export is None
    assert lines(folder / NAME)[-1] == {"abandoned": 1}
    assert str(folder / NAME) not in open_files()


@pytest.mark.parametrize(("keep", "left"), [(20 * DAY, 2), (5 * DAY, 1)])
def test_exports_are_kept_for_as_long_as_was_asked(
    folder: Path, keep: timedelta, left: int
) -> None:
    made(folder, export_name(1), 9 * DAY)
    made(folder, export_name(2), 4 * DAY)
    with cycle(Store(), folder, keep_exports=keep):
        assert len(list(folder.iterdir())) == left


def test_a_cycle_that_exports_nothing_prunes_nothing(folder: Path) -> None:
    path = made(folder, export_name(1), 9000 * DAY)
    with cycle(Store(), None):
        pass
    assert path.exists()


def test_an_export_folder_that_is_no_folder_is_an_error_with_its_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(GcdError) as caught, cycle(Store(), tmp_path / "file"):
        pytest.fail("began")
    assert caught.value.hint
