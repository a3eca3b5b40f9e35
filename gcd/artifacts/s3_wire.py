"""Sends the two requests that a deletion mostly consists of past most of the SDK, which spends 2 ms on each.

It must never send what it did not see the SDK send first: address, signature and headers are the SDK's.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import weakref
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import local
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.utils import get_environ_proxies
from urllib3.util import wait_for_read

from gcd.artifacts.s3_xml import error_of, of_deletion, of_listing, wanted_deletions

SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/([^/]+)/s3/aws4_request, SignedHeaders=([^,]+), "
)
SAME_FOR_ALL = frozenset({"x-amz-expected-bucket-owner", "x-amz-request-payer"})
"""Headers that are sent with every request as they are."""
OF_EACH = frozenset({"host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"})
ELSEWHERE = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "Redirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    }
)
"""Codes by which a store says that the bucket is somewhere else: the SDK knows what to do then."""
LESSONS = 3
"""How often it is learned anew where the bucket is."""
PARAMETERS = {
    "Prefix": "prefix",
    "MaxKeys": "max-keys",
    "ContinuationToken": "continuation-token",
    "StartAfter": "start-after",
}
CONNECT_SECONDS, READ_SECONDS = 5, 60


@dataclass(frozen=True, slots=True)
class Pattern:
    """How the SDK asks for a listing of the bucket."""

    scheme: str
    host: str
    path: str
    region: str
    access_key: str
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """A reply."""

    status: int
    reason: str
    body: bytes


class Wire:
    """Listings and deletions of one bucket, over connections of its own. Threads share it.

    `call` answers None until a listing by the SDK was seen and answered, and wherever something is unusual: a
    proxy, a signature of another kind, a bucket that is elsewhere. Then the SDK is to be asked.
    """

    def __init__(self, client: Any, credentials: Any, trust: Callable[[], ssl.SSLContext]) -> None:
        self._credentials = credentials
        self._trust = trust
        self._context: ssl.SSLContext | None = None
        self._pattern: Pattern | None = None
        self._lessons = 0 if credentials is None or client.meta.config.client_cert else LESSONS
        self._seen = local()
        self._idle: deque[HTTPConnection] = deque()
        weakref.finalize(self, _close, self._idle)
        client.meta.events.register("before-send.s3.ListObjectsV2", self._learn)

    def call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """The reply as the SDK words it, None where the SDK is to be asked. Raises as the SDK does."""
        pattern = self._pattern
        if pattern is None:
            return None
        try:
            match operation:
                case "list_objects_v2":
                    return of_listing(self._listed(pattern, parameters))
                case "delete_objects":
                    return of_deletion(self._deleted(pattern, parameters["Delete"]["Objects"]))
        except _Elsewhere:
            self._pattern = None
            self._lessons -= 1
        except ssl.SSLCertVerificationError:
            self._pattern, self._lessons = None, 0
        return None

    def close(self) -> None:
        """End the connections that are idle."""
        _close(self._idle)

    # -- learning ----------------------------------------------------------------------------------

    def _learn(self, request: Any, **_: Any) -> None:
        """Look at a request of the SDK's on its way; after a redirect the last one counts."""
        self._seen.pattern = self._pattern_of(request) if self._lessons > 0 else None

    def confirm(self) -> None:
        """What the SDK asked in this thread was answered well: so is it asked from now on."""
        pattern, self._seen.pattern = getattr(self._seen, "pattern", None), None
        if pattern is not None and self._lessons > 0:
            self._pattern = pattern

    def _pattern_of(self, request: Any) -> Pattern | None:
        """How it is asked, None where that is of no usual kind."""
        headers = {name.lower(): _text(value) for name, value in request.headers.items()}
        signed = SIGNED.match(headers.get("authorization", ""))
        parts = urlsplit(request.url)
        if signed is None or parts.scheme not in ("http", "https"):
            return None
        key, region, names = signed.groups()
        usual = set(names.split(";")) <= SAME_FOR_ALL | OF_EACH
        same_key = key == self._credentials.get_frozen_credentials().access_key
        if not (usual and same_key) or get_environ_proxies(request.url).get(parts.scheme):
            return None
        kept = {n: v for n, v in headers.items() if n in SAME_FOR_ALL or n == "user-agent"}
        return Pattern(parts.scheme, parts.netloc, parts.path, region, key, kept)

    # -- asking ------------------------------------------------------------------------------------

    def _listed(self, pattern: Pattern, parameters: Mapping[str, Any]) -> bytes:
        query = {"list-type": "2", "encoding-type": "url"}
        query |= {PARAMETERS[n]: str(v) for n, v in parameters.items() if v is not None}
        return self._ask(pattern, "GET", query, b"", {})

    def _deleted(self, pattern: Pattern, objects: list[dict[str, str]]) -> bytes:
        body = wanted_deletions(objects)
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        more = {"content-md5": b64encode(digest).decode(), "content-type": "application/xml"}
        return self._ask(pattern, "POST", {"delete": ""}, body, more)

    def _ask(
        self,
        pattern: Pattern,
        method: str,
        query: Mapping[str, str],
        body: bytes,
        more: Mapping[str, str],
    ) -> bytes:
        """The body of a reply that is no error. Raises what the SDK raises, or _Elsewhere."""
        text = "&".join(f"{name}={quote(query[name], safe='-_.~')}" for name in sorted(query))
        target = f"{pattern.path}?{text}"
        request = AWSRequest(
            method,
            f"{pattern.scheme}://{pattern.host}{target}",
            data=body,
            headers={**pattern.headers, **more},
        )
        frozen = self._credentials.get_frozen_credentials()
        S3SigV4Auth(frozen, "s3", pattern.region).add_auth(request)
        try:
            answer = self._exchange(pattern, method, target, body, dict(request.headers))
        except HTTPException as error:  # no OSError, as everything else is that breaks off
            raise OSError(f"{type(error).__name__}: {error}") from error
        if refusal := error_of(answer.status, answer.reason, answer.body, method):
            code = refusal.response["Error"]["Code"]
            if 300 <= answer.status < 400 or code in ELSEWHERE:
                raise _Elsewhere
            raise refusal
        return answer.body

    def _exchange(
        self, pattern: Pattern, method: str, target: str, body: bytes, headers: Mapping[str, str]
    ) -> Answer:
        """One request and its whole reply, over a connection that is idle or new."""
        connection = self._connection(pattern)
        try:
            connection.request(method, target, body or None, headers)
            _acknowledge_at_once(connection.sock)
            response = connection.getresponse()
            _acknowledge_at_once(connection.sock)
            answer = Answer(response.status, response.reason, response.read())
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    def _connection(self, pattern: Pattern) -> HTTPConnection:
        """A connection that the store has not closed."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            is_same = (connection.host, connection.port) == _address(pattern)
            if connection.sock is not None and is_same and not wait_for_read(connection.sock, 0):
                return connection
            connection.close()
        host, port = _address(pattern)
        if pattern.scheme == "https":
            self._context = self._context or self._trust()
            connection = HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=self._context)
        else:
            connection = HTTPConnection(host, port, timeout=CONNECT_SECONDS)
        connection.connect()
        connection.sock.settimeout(READ_SECONDS)
        return connection


class _Elsewhere(Exception):
    """The bucket is not where it was asked for."""


def _close(connections: deque[HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _address(pattern: Pattern) -> tuple[str, int]:
    parts = urlsplit(f"{pattern.scheme}://{pattern.host}")
    return parts.hostname or "", parts.port or (443 if pattern.scheme == "https" else 80)


def _acknowledge_at_once(sock: Any) -> None:
    """Some stores send the head of a reply and wait for its receipt, which Linux delays by 40 ms."""
    if sock is not None and hasattr(socket, "TCP_QUICKACK"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
