"""A small store that speaks Google Cloud Storage's JSON API and fails as it is told to.

It must never rewrite a key: what is put is what is listed.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from gcd.artifacts.gcs import GCSArtifactStore
from tests.gcs_server import new_store
from tests.s3_stub import Quiet

PAGE = 7
"""Objects in a page of a listing, however many are asked for: most trees have several."""
PART = re.compile(r"^(DELETE) http://[^/]+(/\S+) HTTP/1\.1", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """What is done instead of an answer, or to it."""

    how: str
    """refuse, reset (before), broken (done, then reset), half, html, empty, json, endless, astray, deny (keys with `part`),
    poison (a request with such a key), omit (every second key is neither deleted nor told), lie (told, not deleted)."""
    status: int = 0
    reason: str = ""
    part: str = ""
    text: str = "by the stub"


@dataclass
class Generation:
    """One generation of an object."""

    number: int
    size: int
    is_live: bool = True
    data: bytes = b""


@dataclass
class Stub:
    """The store: generations by bucket and key, `faults` by operation, taken one by one; `seen` of requests."""

    objects: dict[str, dict[str, list[Generation]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """Of every bucket."""
    about: dict[str, Any] = field(default_factory=dict)
    """What is said of any object that is asked for."""
    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and text by which a key is not deleted."""
    denied: set[str] = field(default_factory=set)
    """Permissions that nobody has."""
    is_versioned: bool = False
    faults: dict[str, deque[Fault | None]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    seen: list[tuple[str, int]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    """What the requests brought as credentials."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1_700_000_000_000_000))
    url: str = ""

    def put(self, bucket: str, key: str, data: bytes = b"xy") -> int:
        """A new generation of an object."""
        with self.lock:
            found = self.objects.setdefault(bucket, {}).setdefault(key, [])
            self._archive(found)
            made = Generation(next(self.numbers), len(data), data=data)
            found.append(made)
            return made.number

    def _archive(self, found: list[Generation]) -> None:
        for each in found:
            each.is_live = False
        if not self.is_versioned:
            found.clear()

    def read(self, bucket: str, key: str) -> Reply:
        """The data of the live generation."""
        live = [each for each in self.objects[bucket].get(key, []) if each.is_live]
        if not live:
            return error(404, "notFound")
        return Reply(200, live[0].data.decode(), "application/octet-stream")

    def upload(self, bucket: str, query: dict[str, str], body: str) -> Reply:
        """An upload of two parts: the name, and the data."""
        parts = [each.partition("\r\n\r\n")[2] for each in body.split("\r\n--")]
        key, data = json.loads(parts[0])["name"], parts[1].encode()
        with self.lock:
            is_there = any(each.is_live for each in self.objects[bucket].get(key, []))
            if query.get("ifGenerationMatch") == "0" and is_there:
                return error(412, "conditionNotMet")
            number = self.put(bucket, key, data)
        return Reply(200, json.dumps({"name": key, "generation": str(number)}))

    def keys(self, bucket: str) -> set[str]:
        """The keys of what is live."""
        return {
            key
            for key, found in self.objects.get(bucket, {}).items()
            if any(each.is_live for each in found)
        }

    def generations(self, bucket: str, prefix: str = "") -> int:
        """How many there are, live and old."""
        found = self.objects[bucket].items()
        return sum(len(each) for key, each in found if key.startswith(prefix))

    def delete(self, bucket: str, key: str, query: dict[str, str]) -> Reply:
        """Delete as the store does: a generation for good, or the live one under a condition."""
        with self.lock:
            if key in self.held:
                return error(403, *self.held[key])
            found = self.objects[bucket].get(key, [])
            live = next((each for each in found if each.is_live), None)
            if "generation" in query:
                which = [each for each in found if str(each.number) == query["generation"]]
                if not which:
                    return error(404, "notFound")
                found.remove(which[0])
            elif live is None:
                return error(404, "notFound")
            elif query.get("ifGenerationMatch", str(live.number)) != str(live.number):
                return error(412, "conditionNotMet")
            else:
                self._archive(found)
            return Reply(204, "")

    def fault(self, operation: str) -> Fault | None:
        """The next fault of an operation."""
        with self.lock:
            queue = self.faults.get(operation)
            return queue.popleft() if queue else self.always.get(operation)

    def count(self, operation: str) -> int:
        """How many requests of a kind came."""
        return sum(name == operation for name, _ in self.seen)

    def store(self, **options: Any) -> GCSArtifactStore:
        """The store under test, at this one."""
        return new_store(self.url, **options)


@dataclass(frozen=True)
class Reply:
    """An answer to a request."""

    status: int
    body: str
    kind: str = "application/json; charset=UTF-8"


def error(status: int, reason: str, text: str = "by the stub") -> Reply:
    """An error as the store words it."""
    detail = {"message": text, "domain": "global", "reason": reason}
    told = {"error": {"code": status, "message": text, "errors": [detail]}}
    return Reply(status, json.dumps(told))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    stub: ClassVar[Stub]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_DELETE(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path, query = split(self.path)
        operation = operation_of(self.command, path)
        self.stub.tokens.add(self.headers.get("Authorization"))
        fault = self.stub.fault(operation)
        if fault and fault.how in ("refuse", "html", "empty", "json", "reset"):
            self.stub.seen.append((operation, 0))
            if fault.how == "reset":
                return self.reset()
            return self.send(instead(fault))
        reply = self.work(operation, path, query, body, fault)
        if fault and fault.how == "broken":
            return self.reset()
        return self.send(reply, half=fault is not None and fault.how == "half")

    def work(
        self, operation: str, path: list[str], query: dict[str, str], body: str, fault: Fault | None
    ) -> Reply:
        """The reply of the store itself."""
        count = 1
        try:
            if operation == "batch":
                parts = PART.findall(body)
                count = len(parts)
                return batched(self.stub, [split(url) for _, url in parts], fault)
            if operation == "token":
                told = {"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"}
                return Reply(200, json.dumps(told))
            if path[1] not in self.stub.objects:
                return error(404, "notFound", "The specified bucket does not exist.")
            if operation == "object" and query.get("alt") == "media":
                return self.stub.read(path[1], path[3])
            if operation == "upload":
                return self.stub.upload(path[1], query, body)
            if operation == "list":
                return listing(self.stub, path[1], query, fault)
            if operation == "delete":
                return deleted(self.stub, path[1], path[3], query, fault)
            if operation == "permissions":
                wanted = parse_qs(urlsplit(self.path).query)["permissions"]
                granted = [each for each in wanted if each not in self.stub.denied]
                return Reply(200, json.dumps({"permissions": granted}))
            about = self.stub.about if operation == "object" else self.stub.settings
            return Reply(200, json.dumps({"name": path[-1], **about}))
        finally:
            self.stub.seen.append((operation, count))

    def send(self, reply: Reply, *, half: bool = False) -> None:
        data = reply.body.encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        self.wfile.flush()
        self.close_connection = self.close_connection or half

    def reset(self) -> None:
        """Cut the connection without a word."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def split(url: str) -> tuple[list[str], dict[str, str]]:
    """The steps of a path below the API's, each as it is meant, and the query."""
    parts = urlsplit(url)
    path = parts.path.removeprefix("/upload").removeprefix("/download")
    path = path.removeprefix("/storage/v1/")
    query = parse_qs(parts.query, keep_blank_values=True)
    return [unquote(each) for each in path.split("/")], {k: v[0] for k, v in query.items()}


def operation_of(command: str, path: list[str]) -> str:
    """What a request asks for."""
    if command == "POST" and path[2:] == ["o"]:
        return "upload"
    if command == "POST":
        return "token" if path[-1] == "token" else "batch"
    if command == "DELETE":
        return "delete"
    if path[2:] == ["iam", "testPermissions"]:
        return "permissions"
    return {2: "bucket", 3: "list"}.get(len(path), "object")


def instead(fault: Fault) -> Reply:
    """What comes in place of an answer."""
    if fault.how == "html":
        body = "<html><body>Welcome to the proxy</body></html>"
        return Reply(fault.status or 200, body, "text/html")
    if fault.how == "json":
        return Reply(200, fault.text)
    if fault.how == "empty":
        return Reply(fault.status or 200, "")
    return error(fault.status, fault.reason, fault.text)


def listing(stub: Stub, bucket: str, query: dict[str, str], fault: Fault | None) -> Reply:
    """A page of a listing."""
    how = fault.how if fault else ""
    found = sorted(
        (key, each.number, each.size)
        for key, generations in list(stub.objects[bucket].items())
        if key.startswith(query.get("prefix", ""))
        for each in list(generations)
        if each.is_live or query.get("versions", "").lower() == "true"
    )
    after = json.loads(query.get("pageToken") or "[]")
    found = [each for each in found if [*each] > after or how == "endless"]
    page = found[: min(PAGE, int(query.get("maxResults") or PAGE))]
    told: dict[str, Any] = {"kind": "storage#objects"}
    if len(page) < len(found) or how == "endless":
        told["nextPageToken"] = "[]" if how == "endless" else json.dumps(page[-1])
    if page:
        told["items"] = [
            {
                "name": "root/1/live/artifacts/f" if how == "astray" else key,
                "generation": str(number),
                "size": str(size),
                "timeCreated": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}.125Z",
            }
            for key, number, size in page
        ]
    return Reply(200, json.dumps(told))


def deleted(stub: Stub, bucket: str, key: str, query: dict[str, str], fault: Fault | None) -> Reply:
    """The reply to the deletion of one object."""
    if fault and fault.how == "deny" and fault.part in key:
        return error(fault.status, fault.reason, fault.text)
    if fault and fault.how == "lie":
        return Reply(204, "")
    return stub.delete(bucket, key, query)


def batched(
    stub: Stub, requests: list[tuple[list[str], dict[str, str]]], fault: Fault | None
) -> Reply:
    """The reply to a batch: a part for each request, in their order."""
    if fault and fault.how == "poison" and any(fault.part in path[3] for path, _ in requests):
        return error(fault.status, fault.reason, fault.text)
    parts = []
    for number, (path, query) in enumerate(requests):
        if fault and fault.how == "omit" and number % 2:
            continue
        reply = deleted(stub, path[1], path[3], query, fault)
        head = f"HTTP/1.1 {reply.status} Some Words\r\nContent-Type: {reply.kind}\r\n"
        parts.append(
            f"--batch_x\r\nContent-Type: application/http\r\n\r\n{head}\r\n{reply.body}\r\n"
        )
    return Reply(200, "".join(parts) + "--batch_x--", 'multipart/mixed; boundary="batch_x"')


@contextmanager
def stub_server() -> Iterator[Stub]:
    """A stub at a free port of the loop-back."""
    stub = Stub()
    server = Quiet(("127.0.0.1", 0), type("Own", (Handler,), {"stub": stub}))
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
