"""Deletes artifact trees on file systems that fsspec speaks to: Hadoop's, as MLflow's users have it.

It must never use fsspec's recursive removal, which takes names for patterns, nor a path that the
library would read as another one.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper, HadoopFileSystem

from gcd.artifacts.base import Remark
from gcd.artifacts.folder_store import FolderArtifactStore
from gcd.artifacts.logins import address_of
from gcd.artifacts.remote_files import Files, Item, Lost, Sort
from gcd.artifacts.walk import shown
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError
from gcd.model import Place

TICKET, USER, SETTINGS = (
    "MLFLOW_KERBEROS_TICKET_CACHE",
    "MLFLOW_KERBEROS_USER",
    "MLFLOW_PYARROW_EXTRA_CONF",
)
"""MLflow's variables for Hadoop."""
PLAIN = {"skip_instance_cache": True, "use_listings_cache": False}
"""What every file system is made with: nothing that was seen before counts."""
ROOT = re.compile(r"[a-z][a-z0-9+.-]*://[^/]*(?=/)")
"""What libhdfs puts before a path."""
CHARACTERS = 200


class FsspecArtifactStore(FolderArtifactStore):
    """Schemes hdfs and viewfs. Who serves others overrides `file_system`, and knows its `rmdir`."""

    def connect(self, scheme: str, authority: str) -> Files:
        """A file system of its own."""
        where = f"{scheme}://{authority}"
        try:
            found = self.file_system(scheme, authority)
        except ImportError as error:
            raise PermanentArtifactError(f"{where}: {error}", hint="install it") from error
        except (OSError, ValueError) as error:
            hint = "libhdfs needs JAVA_HOME, HADOOP_HOME and CLASSPATH, and a ticket where Kerberos is on"
            raise Lost(f"{where}: {_said(error)}", hint=hint) from error
        return FsspecFiles(where, found)

    def file_system(self, scheme: str, authority: str) -> Any:
        """Hadoop's, by the variables that MLflow has for it."""
        environment = self.options.environment
        address = address_of(scheme, authority)
        return HadoopFileSystem(
            host=f"{scheme}://{address.host}" if authority else "default",
            port=address.port or 0,
            user=environment.get(USER) or None,
            kerb_ticket=environment.get(TICKET) or None,
            extra_conf=_settings(environment),
            **PLAIN,
        )

    def inspect(self, root: Place) -> Iterator[Remark]:
        """As whom, where that is said; and what is not removed there."""
        environment = self.options.environment
        if user := environment.get(USER):
            yield Remark(f"as {user}")
        if ticket := environment.get(TICKET):
            yield Remark(f"with the ticket in {ticket}")
        with suppress(ArtifactError):
            if not self.on(root, lambda files: files.removes_only_empty):
                yield Remark("empty folders of experiments that are gone stay there")


def _settings(environment: Mapping[str, str]) -> dict[str, str] | None:
    """`key=value,key=value`, as MLflow reads it. Raises ValueError."""
    text = environment.get(SETTINGS)
    if not text:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"{SETTINGS} is not of the form key=value,key=value")
    return {key: value for key, _, value in pairs}


class FsspecFiles(Files):
    """One file system object. Names go to it literally, and come back the same or not at all."""

    def __init__(self, where: str, fs: fsspec.AbstractFileSystem) -> None:
        self.where = where
        self._fs = fs
        # pyarrow knows only `delete_dir`, which takes what is in a folder with it.
        self.removes_only_empty = not isinstance(fs, ArrowFSWrapper)

    def look(self, path: str) -> Item | None:
        """What `info` says."""
        if path == "/":
            return Item("", Sort.FOLDER)
        try:
            with self._asking(path):
                return _item(path.rpartition("/")[2], self._fs.info(self._literal(path)))
        except FileNotFoundError:
            return None

    def pages(self, path: str) -> Iterator[list[Item]]:
        """One page: fsspec has no other."""
        with self._asking(path):
            literal = self._literal(path)
            self._fs.invalidate_cache(literal)
            entries = self._fs.ls(literal, detail=True)
        yield [_item(self._name_of(entry["name"], path), entry) for entry in entries]

    def _name_of(self, listed: str, folder: str) -> str:
        """The name of an entry. Raises PermanentArtifactError if it is not one of the folder's."""
        above, slash, name = ROOT.sub("", listed, count=1).rpartition("/")
        is_below = slash and above.strip("/") == folder.strip("/")
        if not is_below or name in ("", ".", ".."):
            raise PermanentArtifactError(
                f"{self.where}: {shown(folder)} lists {shown(listed)}, which is not in it"
            )
        return name

    def remove(self, paths: Sequence[str]) -> list[ArtifactError | None]:
        """One by one."""
        return [self._removed(path) for path in paths]

    def _removed(self, path: str) -> ArtifactError | None:
        try:
            with self._asking(path):
                self._fs.rm_file(self._literal(path))
        except FileNotFoundError:
            return None
        except ArtifactError as error:
            return error
        return None

    def remove_folder(self, path: str) -> bool:
        """`rmdir` of what lists empty immediately before."""
        if any(page for page in self.pages(path)):
            return False
        try:
            with self._asking(path):
                self._fs.rmdir(self._literal(path))
        except TransientArtifactError as error:
            if getattr(error.__cause__, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    def read(self, path: str, most: int) -> bytes:
        """As much as is asked for."""
        with self._asking(path), self._fs.open(self._literal(path), "rb") as file:
            return bytes(file.read(most))

    def put(self, path: str, data: bytes, *, replaces: bool) -> bool:
        """Written in its place: a move takes names for patterns in some file systems."""
        if not replaces and self.look(path) is not None:
            return False
        with self._asking(path), self._fs.open(self._literal(path), "wb") as file:
            file.write(data)
        return True

    def _literal(self, path: str) -> str:
        """The path, if the library reads it as it is written. Raises PermanentArtifactError."""
        if (read := self._fs._strip_protocol(path)) != path:
            text = f"{self.where}: {shown(path)}: fsspec would read another name, {shown(read)}"
            raise PermanentArtifactError(text)
        return path

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        what = f"{self.where}: {shown(path)}"
        try:
            yield
        except FileNotFoundError:
            raise
        except PermissionError as error:
            hint = "let the user that gcd runs as write and search the folder that holds it"
            raise PermanentArtifactError(f"{what}: permission denied", hint=hint) from error
        except NotImplementedError as error:
            raise PermanentArtifactError(f"{what}: the file system does not offer it") from error
        except OSError as error:
            raise TransientArtifactError(f"{what}: {_said(error)}") from error
        except ValueError as error:
            raise PermanentArtifactError(f"{what}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return str(error).partition("\n")[0][:CHARACTERS] or type(error).__name__


def _item(name: str, info: Mapping[str, Any]) -> Item:
    changed = info.get("mtime", info.get("created"))
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    if info.get("islink") or info["type"] == "link":
        return Item(name, Sort.LINK)
    sort = Sort.FOLDER if info["type"] == "directory" else Sort.FILE
    return Item(name, sort, info.get("size") or 0, changed)
