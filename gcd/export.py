"""Writes every row that a cycle purges to a compressed file of JSON lines, before it is gone.

It must never let a purge commit whose rows are not on the disk, nor delete a file that is not its own.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from gcd.errors import GcdError
from gcd.store.tracking import TrackingStore
from gcd.survey import Settings

NAME = "gcd-cycle-{cycle:06}-{at:%Y%m%dT%H%M%SZ}.jsonl.gz"
OURS = re.compile(r"gcd-cycle-[0-9]{6,}-[0-9]{8}T[0-9]{6}Z\.jsonl\.gz")
HINT = "nothing was purged that is not exported; free space there, or choose another folder"


class Exporter:
    """One file per cycle, made when its first row is written.

    Lines are {"table": ..., "row": {...}} between {"batch": n} and {"committed": n}; "changed" stands
    for "row" where the row, told as it was, stays but for a pointer in it. A batch that ends with
    {"abandoned": n} was rolled back, or its database's answer was lost.
    """

    def __init__(self, folder: Path, cycle: int, now: datetime) -> None:
        self.path = folder / NAME.format(cycle=cycle, at=now)
        self._file: BinaryIO | None = None
        self._lines: gzip.GzipFile | None = None
        self._batch = 0
        self._is_begun = False

    def write(
        self, table: str, rows: Iterable[Mapping[str, Any]], *, is_purged: bool = True
    ) -> None:
        """Keep rows of a table. Raises GcdError."""
        what = "row" if is_purged else "changed"
        for row in rows:
            if not self._is_begun:
                self._is_begun = True
                self._batch += 1
                self._line({"batch": self._batch})
            self._line({"table": table, what: {name: plain(value) for name, value in row.items()}})

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Mark what is written inside by how the transaction around it ended."""
        self._is_begun = False
        try:
            yield
        except BaseException:
            with suppress(GcdError):  # the error that is on its way says more
                self._end("abandoned")
                self.seal()
            raise
        self._end("committed")

    def _end(self, how: str) -> None:
        if self._is_begun:
            self._line({how: self._batch})

    def seal(self) -> None:
        """Make durable what was written. Raises GcdError."""
        if self._lines is None or self._file is None:
            return
        with written(self.path):
            self._lines.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the file. Raises GcdError."""
        lines, file = self._lines, self._file
        self._lines = self._file = None
        if lines is None or file is None:
            return
        with written(self.path), file:
            lines.close()
            file.flush()
            os.fsync(file.fileno())

    def _line(self, content: Mapping[str, Any]) -> None:
        with written(self.path):
            if self._lines is None:
                self._file = created(self.path)
                self._lines = gzip.GzipFile(filename="", mode="wb", fileobj=self._file, mtime=0)
            self._lines.write(json.dumps(content).encode() + b"\n")


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn what the operating system says into an error that stops the purge."""
    try:
        yield
    except OSError as error:
        raise GcdError(f"cannot write the export {path}: {error.strerror}", hint=HINT) from error


def created(path: Path) -> BinaryIO:
    """A new file that only its owner may read, its name durable."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o600), "wb")
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        file.close()
        raise
    return file


def plain(value: Any) -> Any:
    """A value that JSON can hold, with nothing lost: bytes as hexadecimal digits."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": bytes(value).hex()}
    if value is None or isinstance(value, str | int | float | bool | list | dict):
        return value
    return str(value)


def prune(folder: Path, before: datetime) -> int:
    """Delete gcd's own exports in a folder that were last written before a time; how many.

    Only plain files that carry the name of an export are touched; links are not followed.
    """
    gone = 0
    with written(folder), suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if is_export(entry, before):
                    os.unlink(entry.path)
                    gone += 1
    return gone


def is_export(entry: os.DirEntry[str], before: datetime) -> bool:
    """Whether an entry of the folder is an export from before a time."""
    info = entry.stat(follow_symlinks=False)
    is_old = info.st_mtime < before.timestamp()
    return bool(OURS.fullmatch(entry.name)) and stat.S_ISREG(info.st_mode) and is_old


@contextmanager
def exporting(
    store: TrackingStore, settings: Settings, cycle: int, now: datetime
) -> Iterator[None]:
    """Let the store export what is purged inside, if that is wanted; old exports go first."""
    if settings.export_to is None:
        yield
        return
    prune(settings.export_to, now - settings.keep_exports)
    exporter = Exporter(settings.export_to, cycle, now)
    store.export = exporter
    try:
        yield
    except BaseException:
        with suppress(GcdError):  # the error that is on its way says more
            exporter.close()
        raise
    finally:
        store.export = None
    exporter.close()
