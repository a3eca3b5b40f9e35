"""Deletes artifact trees on FTP servers, with the standard library's client, as MLflow writes them.

It must never believe that a folder is one before the server's listing for people says that it is no link.
"""

from __future__ import annotations

import ftplib
import io
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from urllib.parse import unquote

from gcd.artifacts.folder_store import FolderArtifactStore
from gcd.artifacts.logins import address_of
from gcd.artifacts.remote_files import Files, Item, Lost, Sort
from gcd.artifacts.walk import shown
from gcd.errors import ArtifactError, PermanentArtifactError, TransientArtifactError

SECONDS = 60
LISTED = 10_000
"""Names taken from one listing, so that a wide folder costs no more memory than a narrow one."""
LONGEST = 65_536
"""Characters of a line of a listing."""
FOREIGN = (ftplib.Error, OSError, EOFError, ValueError)
FACTS = re.compile(r"((?:[^ =;]+=[^;]*;)+) (.+)", re.DOTALL)
UNIX_LINE = re.compile(r"([-dlbcpsD])[-rwxsStTlL]{9}[.+@]?\s")
LINKS = ("os.unix=slink", "os.unix=symlink")
WITHOUT_MLST = "MLST (RFC 3659) is needed to list files exactly"
CHARACTERS = 200


class FtpArtifactStore(FolderArtifactStore):
    """Scheme ftp: host, user, password and path are read as MLflow reads them."""

    def connect(self, scheme: str, authority: str) -> Files:
        """A new connection, with the password that a URI had."""
        address = address_of(scheme, authority)
        port = address.port or ftplib.FTP_PORT
        user = f"{address.user}@" if address.user else ""
        where = f"ftp://{user}{address.host}:{port}"
        passwords = [unquote(each) for each in self.logins(scheme).passwords(address)] or [""]
        refused: Exception | None = None
        for password in passwords:
            try:
                return FtpFiles(where, _opened(address.host, port, address.user or "", password))
            except ftplib.error_perm as error:
                refused = refused or error
            except FOREIGN as error:
                said = str(error)[:CHARACTERS] or type(error).__name__
                hint = "is the host right, and does it answer?"
                raise Lost(f"{where}: {said}", hint=hint) from error
        hint = "give user and password in the URI, as MLflow has them"
        raise Lost(f"{where}: the login was refused: {refused}", hint=hint) from refused


def _opened(host: str, port: int, user: str, password: str) -> ftplib.FTP:
    # Latin-1 gives every byte of a name back as it came; names are UTF-8, or whatever they are.
    ftp = ftplib.FTP(timeout=SECONDS, encoding="latin-1")
    try:
        ftp.connect(host, port)
        ftp.login(user, password)
    except BaseException:
        ftp.close()
        raise
    return ftp


class FtpFiles(Files):
    """One connection to one server that knows MLST."""

    is_real = False

    def __init__(self, where: str, ftp: ftplib.FTP) -> None:
        self.where = where
        self._ftp = ftp

    def look(self, path: str) -> Item | None:
        """What MLST says. "550" is many things: what is not there is not in the listing above."""
        if path == "/":
            return Item("", Sort.FOLDER)
        above, _, name = path.rpartition("/")
        try:
            with self._asking(path):
                reply = self._ftp.sendcmd("MLST " + self._wire(path))
        except PermanentArtifactError as error:
            if not _is_missing(error.__cause__):
                raise
            if any(item.name == name for item in self._listed(above or "/")):
                raise
            return None
        for line in reply.splitlines()[1:]:
            if line.startswith(" ") and (facts := _facts(line[1:])):
                return _item(name, facts[0])
        raise PermanentArtifactError(f"{self.where}: {WITHOUT_MLST}")

    def pages(self, path: str) -> Iterator[list[Item]]:
        """One page; folders only where the listing for people has them as such, too."""
        try:
            page = list(self._listed(path, LISTED))
        except PermanentArtifactError as error:
            if _is_missing(error.__cause__) and self.look(path) is None:
                raise FileNotFoundError(path) from error
            raise
        folders = {item.name for item in page if item.sort is Sort.FOLDER}
        links = self._links(path, folders) if folders else set()
        yield [i._replace(sort=Sort.LINK) if i.name in links else i for i in page]

    def _listed(self, path: str, limit: int | None = None) -> Iterator[Item]:
        """What MLSD says."""
        with self._asking(path):
            for number, line in enumerate(self._lines("MLSD " + self._wire(path))):
                if number == limit:
                    return
                found = _facts(line)
                if found is None or "/" in found[1]:
                    raise PermanentArtifactError(
                        f"{self.where}: {shown(path)}: the listing cannot be understood"
                    )
                facts, name = found
                if facts.get("type", "").lower() not in ("cdir", "pdir") and name not in (
                    ".",
                    "..",
                ):
                    yield _item(_text(name), facts)

    def _links(self, path: str, folders: set[str]) -> set[str]:
        """Which of these folders are links: MLSD follows them on some servers (pyftpdlib does).

        Raises PermanentArtifactError where the server does not say.
        """
        proved, links = set(), set()
        with self._asking(path):
            self._ftp.cwd(self._wire(path))
            for line in map(_text, self._lines("LIST")):
                kind = UNIX_LINE.match(line)
                if kind and kind[1] == "d":
                    # The line of "x .b" says nothing of ".b", which the listing may hide.
                    named = [name for name in folders if line.endswith(" " + name)]
                    proved |= {max(named, key=len)} if named else set()
                elif kind and kind[1] == "l":
                    links |= {name for name in folders if f" {name} -> " in line}
        if unknown := folders - proved - links:
            raise PermanentArtifactError(
                f"{self.where}: {shown(path)}/{shown(min(unknown))}: the server does not say whether"
                " it is a folder or a link to one",
                hint="gcd needs a listing in Unix's form, hidden names included",
            )
        return links

    def _lines(self, command: str) -> Iterator[str]:
        """The lines of a transfer; whoever asks for no more ends it."""
        is_whole = False
        self._ftp.voidcmd("TYPE A")
        with self._ftp.transfercmd(command) as data:
            try:
                with data.makefile("r", encoding="latin-1", newline="\r\n") as lines:
                    while line := lines.readline(LONGEST):
                        if len(line) == LONGEST:
                            raise ftplib.error_proto("a line of the listing has no end")
                        yield line.removesuffix("\r\n")
                is_whole = True
            finally:
                data.close()
                with suppress(*(() if is_whole else (ftplib.Error,))):
                    self._ftp.voidresp()

    def remove(self, paths: Sequence[str]) -> list[ArtifactError | None]:
        """DELE, one by one: it takes links as links, and no folders."""
        return [self._removed(path) for path in paths]

    def _removed(self, path: str) -> ArtifactError | None:
        try:
            with self._asking(path):
                self._ftp.delete(self._wire(path))
        except Lost:
            raise
        except PermanentArtifactError as error:
            is_gone = _is_missing(error.__cause__) and self.look(path) is None
            return None if is_gone else error
        except ArtifactError as error:
            return error
        return None

    def remove_folder(self, path: str) -> bool:
        """RMD, which no server does to a folder that holds anything."""
        try:
            with self._asking(path):
                self._ftp.rmd(self._wire(path))
        except PermanentArtifactError as error:
            if _is_missing(error.__cause__) and any(page for page in self.pages(path)):
                return False
            raise
        return True

    def read(self, path: str, most: int) -> bytes:
        """By RETR, ended early where the file is longer."""
        with self._asking(path):
            self._ftp.voidcmd("TYPE I")
            found = bytearray()
            with self._ftp.transfercmd("RETR " + self._wire(path)) as data:
                while len(found) < most and (part := data.recv(most - len(found))):
                    found += part
                data.close()
            with suppress(*(ftplib.Error,) if len(found) == most else ()):
                self._ftp.voidresp()
        return bytes(found)

    def put(self, path: str, data: bytes, *, replaces: bool) -> bool:
        """Written beside it and moved there. No command of FTP's refuses to replace a file."""
        beside = f"{path}.{uuid.uuid4().hex[:12]}"
        if not replaces and self.look(path) is not None:
            return False
        try:
            with self._asking(path):
                self._ftp.storbinary("STOR " + self._wire(beside), io.BytesIO(data))
                self._ftp.rename(self._wire(beside), self._wire(path))
        except Lost:
            raise
        except ArtifactError:
            self._removed(beside)
            raise
        return True

    def close(self) -> None:
        """End it without a word."""
        self._ftp.close()

    def _wire(self, path: str) -> str:
        """A path as it is sent. Raises PermanentArtifactError for what the protocol cannot carry."""
        raw = path.encode("utf-8", "surrogateescape")
        if b"\r" in raw or b"\n" in raw or b"\xff" in raw:
            raise PermanentArtifactError(f"{self.where}: {shown(path)}: FTP cannot name it")
        return raw.decode("latin-1")

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        try:
            yield
        except ftplib.error_perm as error:
            if str(error)[:3] in ("500", "501", "502", "504"):
                raise PermanentArtifactError(f"{self.where}: {WITHOUT_MLST}: {error}") from error
            if str(error)[:3] == "530":
                raise Lost(f"{self.where}: {_said(error)}") from error
            hint = "let the user that gcd logs in as write the folder that holds it"
            text = f"{self.where}: {shown(path)}: {_said(error)}"
            raise PermanentArtifactError(text, hint=hint) from error
        except (ftplib.error_temp, ftplib.error_reply) as error:
            if str(error).startswith("421"):
                raise Lost(f"{self.where}: {_said(error)}") from error
            raise TransientArtifactError(f"{self.where}: {shown(path)}: {_said(error)}") from error
        except FOREIGN as error:
            text = f"{self.where}: the connection broke off: {_said(error)}"
            raise Lost(text, hint="is the server up?") from error


def _said(error: Exception) -> str:
    return str(error)[:CHARACTERS] or type(error).__name__


def _is_missing(error: BaseException | None) -> bool:
    """Whether a reply may mean that nothing is there. It may mean something else."""
    return isinstance(error, ftplib.error_perm) and str(error).startswith("550")


def _text(wire: str) -> str:
    return wire.encode("latin-1").decode("utf-8", "surrogateescape")


def _facts(line: str) -> tuple[dict[str, str], str] | None:
    """The facts, and the name as it came, of a line of MLST or MLSD."""
    found = FACTS.fullmatch(line)
    if found is None:
        return None
    pairs = (fact.partition("=") for fact in found[1].rstrip(";").split(";"))
    facts = {key.lower(): value for key, _, value in pairs}
    return (facts, found[2]) if "type" in facts else None


def _item(name: str, facts: dict[str, str]) -> Item:
    kind, sort = facts["type"].lower(), Sort.FILE
    if kind in ("dir", "cdir", "pdir"):
        sort = Sort.FOLDER
    elif kind.startswith(LINKS):
        sort = Sort.LINK
    size = facts.get("size", "")
    return Item(name, sort, int(size) if size.isdecimal() else 0, _moment(facts.get("modify", "")))


def _moment(text: str) -> float | None:
    """A time as RFC 3659 has it."""
    with suppress(ValueError):
        return datetime.strptime(text[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
    return None
