"""A small MLflow server, as far as it keeps artifacts, that fails as it is told to.

It must never rewrite a path: what is put is what is listed.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
INFO = "/api/3.0/mlflow/server-info"
HTML = "<!doctype html><html><title>Sign in</title><h1>Welcome to the portal</h1></html>"


@dataclass(frozen=True)
class Fault:
    """What is done instead of an answer, or to it."""

    how: str
    """answer, reset (before), broken (done, then reset), half, lie (told, not done), part (told, half of
    it done), slow."""
    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def said(status: int, code: str, message: str = "no") -> Fault:
    """An error as MLflow words it."""
    return Fault("answer", status, json.dumps({"error_code": code, "message": message}))


def page(status: int, body: str = HTML, **headers: str) -> Fault:
    """An answer of somebody in between."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault("answer", status, body, named)


@dataclass
class Stub:
    """The server: `keys`, `faults` by method, taken one by one, `always` after those; `seen` requests."""

    keys: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, deque[Fault | None]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    offered: str = "PUT, DELETE, HEAD, OPTIONS, GET"
    has_workspaces: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""
    connections: int = 0

    @property
    def authority(self) -> str:
        """Host and port."""
        return self.url.removeprefix("http://")

    def fault(self, method: str) -> Fault | None:
        """The next fault of a method."""
        with self.lock:
            queue = self.faults.get(method)
            return queue.popleft() if queue else self.always.get(method)

    def paths(self, method: str) -> list[str]:
        """The paths that were asked for by a method."""
        return [path for name, path in self.seen if name == method]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    stub: ClassVar[Stub]

    def setup(self) -> None:
        super().setup()
        self.stub.connections += 1

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == INFO:
            return self.send(200, json.dumps({"workspaces_enabled": self.stub.has_workspaces}))
        query = parse_qs(parts.query, keep_blank_values=True)
        path = query.get("path", [""])[0]
        return self.answer("GET", path, parts.path == ARTIFACTS)

    def do_DELETE(self) -> None:
        path = urlsplit(self.path).path
        self.answer(
            "DELETE", unquote(path.removeprefix(ARTIFACTS + "/")), path.startswith(ARTIFACTS + "/")
        )

    def do_OPTIONS(self) -> None:
        self.send(204, "", Allow=self.stub.offered)

    def answer(self, method: str, path: str, is_known: bool) -> None:
        self.stub.seen.append((method, path))
        self.stub.headers.append({name.lower(): value for name, value in self.headers.items()})
        fault = self.stub.fault(method)
        if fault and fault.how == "slow":
            time.sleep(1)
        if fault and fault.how == "reset":
            return self.reset()
        if fault and fault.how == "answer":
            return self.send(fault.status, fault.body, **fault.headers)
        if not is_known:
            return self.send(404, HTML)
        body = self.listing(path) if method == "GET" else self.delete(path, fault)
        if fault and fault.how == "broken":
            return self.reset()
        return self.send(200, body, half=fault is not None and fault.how == "half")

    def listing(self, path: str) -> str:
        prefix = path + "/" if path else ""
        with self.stub.lock:
            below = {
                k.removeprefix(prefix): v for k, v in self.stub.keys.items() if k.startswith(prefix)
            }
        found: dict[str, dict[str, Any]] = {}
        for key, data in below.items():
            name, slash, _ = key.partition("/")
            entry = {"path": name, "is_dir": bool(slash)}
            found[name] = entry if slash else {**entry, "file_size": len(data)}
        return json.dumps({"files": list(found.values())}, indent=2) if found else "{}"

    def delete(self, path: str, fault: Fault | None) -> str:
        with self.stub.lock:
            doomed = [k for k in self.stub.keys if k == path or k.startswith(path + "/")]
            if fault and fault.how == "lie":
                doomed = []
            if fault and fault.how == "part":
                doomed = doomed[: len(doomed) // 2]
            for key in doomed:
                del self.stub.keys[key]
        return "{}"

    def send(self, status: int, body: str, *, half: bool = False, **headers: str) -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
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


class Quiet(ThreadingHTTPServer):
    """A server that takes connections which clients cut as they come."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing."""


@contextmanager
def proxy_stub() -> Iterator[Stub]:
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
