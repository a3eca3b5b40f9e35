"""The requests that gcd sends to an MLflow server: listings and deletions of folders that it keeps.

It must never send a path that the server would take for another one, nor send a deletion twice of
which it is not known what it did.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote, unquote, urlencode, urlparse, urlunparse

import urllib3
from urllib3.response import BaseHTTPResponse

from gcd.artifacts.pace import Pace
from gcd.artifacts.proxy_errors import (
    FOREIGN,
    Answer,
    Refused,
    no_listing,
    of_answer,
    of_library,
)
from gcd.artifacts.proxy_listing import Entry, entries
from gcd.artifacts.proxy_session import CONNECT_SECONDS, DELETE_SECONDS, Session
from gcd.errors import ArtifactError, TransientArtifactError, UnsafeTarget
from gcd.model import Usage

T = TypeVar("T")
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
INFO = "/api/3.0/mlflow/server-info"
ATTEMPTS = 5
"""How often a request is sent that the server answers with a reason to try again."""
PATIENCE = 30.0
"""The longest that Retry-After is waited for, in seconds."""
CHUNK = 1 << 16
BODY = 1 << 16
"""Bytes that are read of an answer that is no listing."""
FOLDERS = 10_000
"""Folders that are kept of one listing: those of a tree that has more are not all counted."""
UNSERVED = re.compile(r"[\x00-\x1f\x7f?#\ud800-\udfff]")


@dataclass(slots=True)
class Folder:
    """What a folder holds by itself."""

    usage: Usage = field(default_factory=Usage)
    folders: list[str] = field(default_factory=list)
    is_whole: bool = True
    """Whether every folder in it can be asked for by its name."""


class Server:
    """One MLflow server. Threads share it."""

    def __init__(self, name: str, session: Session, pace: Pace) -> None:
        self.name = name
        self.session = session
        self.pace = pace
        self._has_workspaces: bool | None = None

    # -- listings ----------------------------------------------------------------------------------

    def folder(self, path: str) -> Folder:
        """What a folder holds; nothing if it is not there. Raises an ArtifactError."""

        def read() -> Folder:
            found = Folder()
            for entry in self._listing(path):
                _add(found, path, entry)
            return found

        return self._asked(read)

    def is_empty(self, path: str) -> bool:
        """Whether a folder holds nothing, or is not there."""

        def look() -> bool:
            with closing(self._listing(path)) as found:
                return next(found, None) is None

        return self._asked(look)

    def _listing(self, path: str) -> Generator[Entry]:
        query = "?" + urlencode({"path": checked(path)}, quote_via=quote, safe="") if path else ""
        where = f"{self.name}: listing {path!r}"
        with self._request("GET", ARTIFACTS + query, where, self._headers(path)) as reply:
            if reply.status != 200:
                raise of_answer(_answer(reply), where)
            try:
                yield from entries(reply.stream(CHUNK))
            except ValueError as error:
                raise no_listing(where, error) from error

    # -- deletions ---------------------------------------------------------------------------------

    def delete(self, path: str) -> ArtifactError | None:
        """Ask once for a folder to be deleted: what MLflow itself answered against it, None if nothing.

        Only a listing tells what became of it. Raises an ArtifactError where somebody else answered,
        or nobody, and Refused where the server did nothing.
        """
        where = f"{self.name}: deleting {path!r}"
        self.pace.check()
        url = f"{ARTIFACTS}/{quote(checked(path), safe='/')}"
        slow = urllib3.Timeout(connect=CONNECT_SECONDS, read=DELETE_SECONDS)
        try:
            with self._request("DELETE", url, where, self._headers(path), slow) as reply:
                answer = _answer(reply)
            error = None if 200 <= answer.status < 300 else of_answer(answer, where)
            if error is not None and (not answer.code or isinstance(error, Refused)):
                raise error
        except ArtifactError as error:
            self._count(error)
            raise
        self.pace.succeeded()
        return error

    def offers(self, path: str) -> frozenset[str]:
        """The methods that the server knows for a path; empty where it does not say."""
        where = f"{self.name}: {path!r}"
        url = f"{ARTIFACTS}/{quote(checked(path), safe='/')}"
        with self._request("OPTIONS", url, where, self._headers(path)) as reply:
            allowed = reply.headers.get("Allow", "") if reply.status in (200, 204) else ""
        return frozenset(filter(None, re.split(r"[\s,]+", allowed.upper())))

    # -- requests ----------------------------------------------------------------------------------

    @contextmanager
    def _request(
        self,
        method: str,
        url: str,
        where: str,
        headers: Mapping[str, str],
        timeout: urllib3.Timeout | None = None,
    ) -> Iterator[BaseHTTPResponse]:
        """One request; a reply that is not read to its end takes its connection with it."""
        try:
            reply = self.session.pool.urlopen(
                method,
                self.session.base + url,
                headers={**self.session.headers, **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=timeout or self.session.pool.timeout,
            )
            with closing(_Reply(reply)):
                yield reply
        except FOREIGN as error:
            raise of_library(error, where) from error

    def _asked(self, ask: Callable[[], T]) -> T:
        """A request that may be sent twice, tried again where that may help."""
        attempt = 0
        while True:
            self.pace.check()
            try:
                found = ask()
            except UnsafeTarget:
                raise
            except ArtifactError as error:
                self._count(error)
                attempt += 1
                is_passing = isinstance(error, TransientArtifactError)
                # A hint means that something is to be mended: trying again at once mends nothing.
                if not is_passing or attempt >= (2 if error.hint else ATTEMPTS):
                    raise
                self.wait(error, attempt)
            else:
                self.pace.succeeded()
                return found

    def wait(self, error: ArtifactError, attempt: int) -> None:
        """Wait before trying again, as long as the server asks for; raise where that is too long."""
        seconds = error.seconds if isinstance(error, Refused) else None
        if seconds is None:
            self.pace.pause(attempt)
        elif seconds > PATIENCE:
            raise error
        else:
            time.sleep(seconds)

    def _count(self, error: ArtifactError) -> None:
        if isinstance(error, TransientArtifactError):
            self.pace.failed(error.message)
        else:
            self.pace.succeeded()  # it answered

    def _headers(self, path: str) -> dict[str, str]:
        """The workspace that a path belongs to, where the server has workspaces."""
        first, _, rest = path.partition("/")
        workspace = rest.partition("/")[0]
        if first != "workspaces" or not workspace or not self.has_workspaces:
            return {}
        return {"X-MLFLOW-WORKSPACE": workspace}

    @property
    def has_workspaces(self) -> bool:
        """Whether the server keeps workspaces apart; asked once."""
        if self._has_workspaces is None:
            where = f"{self.name}: its settings"
            with self._request("GET", INFO, where, {}) as reply:
                answer = _answer(reply)
            if answer.status not in (200, 404):
                raise of_answer(answer, where)
            self._has_workspaces = answer.status == 200 and _is_on(answer, "workspaces_enabled")
        return self._has_workspaces


class _Reply:
    """Closes a reply: its connection is kept only where all of it was read."""

    def __init__(self, reply: BaseHTTPResponse) -> None:
        self._reply = reply

    def close(self) -> None:
        if not self._reply.closed:
            self._reply.close()
        self._reply.release_conn()


def _answer(reply: BaseHTTPResponse) -> Answer:
    text = reply.read(BODY).decode("utf-8", "replace")
    return Answer(
        reply.status, text, reply.headers.get("Retry-After"), reply.headers.get("Location")
    )


def _is_on(answer: Answer, name: str) -> bool:
    try:
        found = json.loads(answer.text)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get(name) is True


def _add(folder: Folder, path: str, entry: Entry) -> None:
    """Add what a listing told of one entry."""
    if not entry.is_folder:
        folder.usage += Usage(1, entry.size)
    elif len(folder.folders) < FOLDERS and is_served(f"{path}{entry.name}/"):
        folder.folders.append(entry.name)
    else:
        folder.is_whole = False


def is_served(path: str) -> bool:
    """Whether the server takes a path, which ends in "/", for the path that it is (tried).

    It unquotes it until it stops changing, puts it through a URL parser and joins it with a folder.
    """
    bare = path.removesuffix("/")
    names = bare.split("/")
    if any(name in ("", ".", "..") for name in names) or UNSERVED.search(path):
        return False
    try:
        return unquote(bare) == bare and urlunparse(urlparse(bare)) == bare
    except ValueError:
        return False


def checked(path: str) -> str:
    """A path as it is sent: without the "/" at its end. Raises UnsafeTarget."""
    if not path.endswith("/") or not is_served(path):
        raise UnsafeTarget(f"MLflow's server takes {path!r} for another path")
    return path.removesuffix("/")
