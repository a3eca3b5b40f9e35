"""paramiko's SFTP client with what it lacks: listings by page, many removals at once, the server's disks.

It must never decode a name: what a server sends is sent back byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import paramiko
from paramiko import sftp

READ_ONLY = 1
"""The flag ST_RDONLY of statvfs@openssh.com."""
REALLY_UNIQUE = 1 << 32
"""File system ids below are device numbers (XFS), which another order of discovery changes."""


class Entry(NamedTuple):
    """One entry of a folder."""

    name: bytes
    attributes: paramiko.SFTPAttributes


class FileSystem(NamedTuple):
    """What a server tells of a file system."""

    id: int | None
    """A number that stays over reboots; None where there is none that does."""
    is_read_only: bool


class _Replies:
    """Takes the replies to requests that were sent together, in whatever order they come."""

    def __init__(self) -> None:
        self.by_number: dict[int, Any] = {}

    def _async_response(self, kind: int, message: Any, number: int) -> None:  # paramiko's name
        self.by_number[number] = (kind, message)


class Client(paramiko.SFTPClient):
    """A client whose paths are bytes."""

    _has_disks = True

    def pages(self, path: bytes) -> Iterator[list[Entry]]:
        """What is in a folder, as the server sends it; the folder is open until the last page."""
        kind, message = self._request(sftp.CMD_OPENDIR, path)
        if kind != sftp.CMD_HANDLE:
            raise paramiko.SFTPError("a folder was opened without a handle")
        handle = message.get_binary()
        try:
            while (page := self._page(handle)) is not None:
                yield page
        finally:
            with suppress(EOFError, OSError, paramiko.SSHException):
                self._request(sftp.CMD_CLOSE, handle)

    def _page(self, handle: bytes) -> list[Entry] | None:
        try:
            kind, message = self._request(sftp.CMD_READDIR, handle)
        except EOFError:
            return None
        if kind != sftp.CMD_NAME:
            raise paramiko.SFTPError("a folder was listed without names")
        page = []
        for _ in range(message.get_int()):
            name = message.get_string()
            message.get_string()  # a line for people
            attributes = paramiko.SFTPAttributes._from_msg(message)
            if name not in (b".", b".."):
                page.append(Entry(name, attributes))
        return page

    def remove_all(self, paths: Sequence[bytes]) -> list[Exception | None]:
        """Remove files, all asked for at once; what came of each, None for done."""
        replies = _Replies()
        numbers = [self._async_request(replies, sftp.CMD_REMOVE, path) for path in paths]
        while len(replies.by_number) < len(numbers):
            self._read_response()
        return [self._outcome(*replies.by_number[number]) for number in numbers]

    def _outcome(self, kind: int, message: Any) -> Exception | None:
        if kind != sftp.CMD_STATUS:
            return OSError("a removal was answered without a status")
        try:
            self._convert_status(message)
        except (OSError, EOFError, UnicodeError) as error:
            return error
        return None

    def true_path(self, path: bytes) -> bytes:
        """The server's canonical path."""
        kind, message = self._request(sftp.CMD_REALPATH, path)
        if kind != sftp.CMD_NAME or message.get_int() != 1:
            raise paramiko.SFTPError("a path was answered without a name")
        return bytes(message.get_string())

    def file_system(self, path: bytes) -> FileSystem | None:
        """What holds an existing folder; None where the server does not tell (OpenSSH does)."""
        if not self._has_disks:
            return None
        try:
            kind, message = self._request(sftp.CMD_EXTENDED, "statvfs@openssh.com", path)
        except OSError as error:
            if type(error) is OSError and error.errno is None and not self.sock.closed:
                self._has_disks = False
                return None
            raise
        if kind != sftp.CMD_EXTENDED_REPLY:
            return None
        numbers = [message.get_int64() for _ in range(11)]
        identity, flags = numbers[8], numbers[9]
        lasting = identity if identity >= REALLY_UNIQUE else None
        return FileSystem(lasting, bool(flags & READ_ONLY))
