"""Deletes artifact trees on SFTP servers.

It must never go through a link, nor log in to a host whose key nobody knows.
"""

from __future__ import annotations

import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import paramiko

from gcd.artifacts.base import Remark
from gcd.artifacts.folder_store import FolderArtifactStore
from gcd.artifacts.logins import address_of
from gcd.artifacts.remote_files import Disk, Files, Item, Lost, Sort
from gcd.artifacts.sftp_errors import FOREIGN, is_answer, lost, refused
from gcd.artifacts.sftp_login import Login, Session, login_to, open_session, trusts
from gcd.errors import ArtifactError, BackendError, PermanentArtifactError
from gcd.model import Place


class SftpArtifactStore(FolderArtifactStore):
    """Scheme sftp: hosts, users and paths are read as MLflow reads them."""

    def connect(self, scheme: str, authority: str) -> Files:
        """A new connection to the host that the authority names."""
        login = self._login(scheme, authority)
        return SftpFiles(login, open_session(login))

    def _login(self, scheme: str, authority: str) -> Login:
        address = address_of(scheme, authority)
        passwords = self.logins(scheme).passwords(address)
        try:
            return login_to(address, passwords, self.options.environment)
        except BackendError as error:
            raise PermanentArtifactError(error.message, hint=error.hint) from error

    def inspect(self, root: Place) -> Iterator[Remark]:
        """Who logs in where, whose host key is trusted, and what the server tells of its disks."""
        try:
            login = self._login(root.scheme, root.authority)
            yield Remark(f"logs in as {login.where}, whose key is in {trusts(login)}")
            disk = self.on(root, lambda files: files.disk("/" + root.path.rstrip("/")))
        except (ArtifactError, FileNotFoundError):
            return  # the probe has told why
        if disk.name is None:
            yield Remark(
                "the server does not tell its file systems apart: a disk that is not mounted there"
                " looks like an empty folder"
            )


class SftpFiles(Files):
    """One connection to one server. Names that are not UTF-8 are carried by surrogates."""

    def __init__(self, login: Login, session: Session) -> None:
        self.where = f"sftp://{login.where}"
        self._session = session
        self._client = session.client

    @property
    def identity(self) -> str:
        """The fingerprint of its key."""
        return self._session.fingerprint

    def look(self, path: str) -> Item | None:
        """What `lstat` says."""
        try:
            with self._asking(path):
                return _item(path.rpartition("/")[2], self._client.lstat(_raw(path)))
        except FileNotFoundError:
            return None

    def pages(self, path: str) -> Iterator[list[Item]]:
        """As the server sends them."""
        with self._asking(path):
            pages = self._client.pages(_raw(path))
            while (page := next(pages, None)) is not None:
                yield [self._listed(path, name, attributes) for name, attributes in page]

    def _listed(self, path: str, name: bytes, attributes: paramiko.SFTPAttributes) -> Item:
        text = name.decode("utf-8", "surrogateescape")
        if b"/" in name or not name:
            raise PermanentArtifactError(f"{self.where}: {path} lists {text!r}, which is no name")
        if attributes.st_mode is None:
            return self.look(f"{path.rstrip('/')}/{text}") or Item(text, Sort.FILE)
        return _item(text, attributes)

    def remove(self, paths: Sequence[str]) -> list[ArtifactError | None]:
        """All asked for at once."""
        with self._asking(paths[0]):
            replies = self._client.remove_all([_raw(path) for path in paths])
        return [self._told(*each) for each in zip(paths, replies, strict=True)]

    def _told(self, path: str, error: Exception | None) -> ArtifactError | None:
        if error is None or isinstance(error, FileNotFoundError):
            return None
        told = refused(error, self.where, path)
        if not isinstance(error, PermissionError) and is_answer(error) and self._is_read_only(path):
            return refused(OSError("read-only"), self.where, path)
        return told

    def _is_read_only(self, path: str) -> bool:
        return self.disk(path.rpartition("/")[0] or "/").is_read_only

    def remove_folder(self, path: str) -> bool:
        """`rmdir`, which no server does to a folder that holds anything."""
        try:
            with self._asking(path):
                self._client.rmdir(_raw(path))
        except (PermanentArtifactError, Lost):
            raise
        except ArtifactError as error:
            if error.__cause__ is not None and is_answer(error.__cause__):
                return False  # "Failure": version 3 of the protocol has no word for "not empty"
            raise
        return True

    def read(self, path: str, most: int) -> bytes:
        """As much as is asked for."""
        with self._asking(path), self._client.open(_raw(path), "rb") as file:
            return bytes(file.read(most))

    def put(self, path: str, data: bytes, *, replaces: bool) -> bool:
        """Written beside it and moved there: version 3 of the protocol moves nothing onto a file."""
        beside = f"{path}.{uuid.uuid4().hex[:12]}"
        try:
            with self._asking(path):
                with self._client.open(_raw(beside), "wx") as file:
                    file.write(data)
                move = self._client.posix_rename if replaces else self._client.rename
                move(_raw(beside), _raw(path))
        except Lost:
            raise
        except (ArtifactError, FileNotFoundError):
            self.remove([beside])
            if replaces or self.look(path) is None:
                raise
            return False
        return True

    def true_path(self, path: str) -> str:
        """As the server says; of what is not there, that of the nearest folder above."""
        above, below = path, ""
        while True:
            try:
                with self._asking(above):
                    true = self._client.true_path(_raw(above))
                return (true.decode("utf-8", "surrogateescape").rstrip("/") + below) or "/"
            except FileNotFoundError:
                if above == "/":
                    raise
                above, _, name = above.rpartition("/")
                above, below = above or "/", f"/{name}{below}"

    def disk(self, path: str) -> Disk:
        """As OpenSSH tells it."""
        with self._asking(path):
            found = self._client.file_system(_raw(path))
        if found is None:
            return Disk(None)
        return Disk(None if found.id is None else f"{found.id:x}", found.is_read_only)

    @property
    def is_alive(self) -> bool:
        """As far as its transport knows."""
        transport, channel = self._session.ssh.get_transport(), self._client.get_channel()
        is_closed = transport is None or channel is None or channel.closed
        return not is_closed and transport.is_active()

    def close(self) -> None:
        """End it."""
        self._session.close()

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        """Let FileNotFoundError pass, and gcd's own; the rest is translated."""
        try:
            yield
        except FileNotFoundError:
            raise
        except FOREIGN as error:
            if is_answer(error) and self.is_alive:  # "Socket is closed" looks like an answer
                raise refused(error, self.where, path) from error
            raise lost(error, self.where) from error


def _raw(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _item(name: str, attributes: paramiko.SFTPAttributes) -> Item:
    mode, sort = attributes.st_mode or 0, Sort.FILE
    if stat.S_ISDIR(mode):
        sort = Sort.FOLDER
    elif stat.S_ISLNK(mode):
        sort = Sort.LINK
    return Item(name, sort, attributes.st_size or 0, attributes.st_mtime)
