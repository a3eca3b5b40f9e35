"""A small store that speaks S3's protocol over HTTP and fails as it is told to.

It must never rewrite a key: what is put is what is listed.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
PAGE = 7
"""Keys in a page of a listing, however many are asked for: most trees have several."""
STATUS = {
    "PermanentRedirect": 301,
    "SlowDown": 503,
    "TooManyRequests": 429,
    "InternalError": 500,
    "AccessDenied": 403,
}


@dataclass(frozen=True)
class Fault:
    """What is done instead of an answer, or to it."""

    how: str
    """refuse, reset (before), broken (done, then reset), half, garbage, nothing_tells, endless, count,
    backwards (the order of keys), deaf (to where to start), skip (keys with `part`, when told where to start),
    deny (keys with `part`), poison (a request with such a key), omit (every second key is neither deleted nor told), lie (told, not deleted),
    silent (deleted, not told)."""
    code: str = ""
    part: str = ""


@dataclass
class Stub:
    """The store: `keys` of each bucket, `faults` by operation, taken one by one; `seen` of requests."""

    keys: dict[str, dict[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    faults: dict[str, deque[Fault | None]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    seen: list[tuple[str, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    owners: set[str | None] = field(default_factory=set)
    """Whose the bucket must be, as the requests say."""
    through_sdk: set[str] = field(default_factory=set)
    """The operations that the SDK itself asked for."""
    keys_in_use: set[str] = field(default_factory=set)
    """The access keys that requests were signed with."""
    url: str = ""

    def fault(self, operation: str) -> Fault | None:
        """The next fault of an operation."""
        with self.lock:
            queue = self.faults.get(operation)
            return queue.popleft() if queue else self.always.get(operation)

    def count(self, operation: str) -> int:
        """How many requests of a kind came."""
        return sum(name == operation for name, _ in self.seen)


class Reply(Exception):
    """An answer that ends a request."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(status)
        self.status, self.body = status, body


def error(code: str, status: int | None = None) -> Reply:
    """An error as S3 words it."""
    text = f"<Error><Code>{code}</Code><Message>{code} by the stub</Message></Error>"
    return Reply(status or STATUS.get(code, 400), HEAD + text)


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

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        bucket, _, key = parts.path[1:].partition("/")
        operation = operation_of(self.command, query)
        self.stub.owners.add(self.headers.get("x-amz-expected-bucket-owner"))
        signature = self.headers.get("Authorization", "")
        self.stub.keys_in_use.add(signature.partition("Credential=")[2].partition("/")[0])
        if self.headers.get("amz-sdk-invocation-id"):
            self.stub.through_sdk.add(operation)
        fault = self.stub.fault(operation)
        if fault and fault.how == "refuse":
            self.stub.seen.append((operation, 0))
            return self.send(error(fault.code))
        if fault and fault.how == "reset":
            return self.reset()
        try:
            keys = self.stub.keys.get(bucket)
            if keys is None:
                raise error("NoSuchBucket", 404)
            self.work(operation, bucket, unquote(key), query, body, fault)
        except Reply as reply:
            if fault and fault.how == "broken":
                return self.reset()
            self.send(reply, half=fault is not None and fault.how == "half")
        return None

    def work(
        self,
        operation: str,
        bucket: str,
        key: str,
        query: dict[str, str],
        body: bytes,
        fault: Fault | None,
    ) -> None:
        keys, count = self.stub.keys[bucket], 1
        try:
            match operation:
                case "list":
                    raise listing(keys, query, fault)
                case "delete":
                    names = [
                        each.text or ""
                        for each in ElementTree.fromstring(body).iter()
                        if local(each) == "Key"
                    ]
                    count = len(names)
                    raise deleted(keys, names, fault)
                case "delete_one":
                    keys.pop(key, None)
                    raise Reply(204, "")
                case "uploads":
                    raise Reply(200, uploads(self.stub.uploads.get(bucket, []), query))
                case "abort":
                    left = [
                        u for u in self.stub.uploads.get(bucket, []) if u[1] != query["uploadId"]
                    ]
                    self.stub.uploads[bucket] = left
                    raise Reply(204, "")
                case "get":
                    if key not in keys:
                        raise error("NoSuchKey", 404)
                    raise Reply(200, keys[key].decode())
                case "put":
                    with self.stub.lock:
                        if key in keys and self.headers.get("If-None-Match") == "*":
                            raise error("PreconditionFailed", 412)
                        keys[key] = unchunked(body) if b"\r\n" in body else body
                    raise Reply(200, "")
                case "versioning":
                    raise Reply(200, HEAD + "<VersioningConfiguration/>")
                case _:
                    raise error("NotImplemented", 501)
        finally:
            self.stub.seen.append((operation, count))

    def send(self, reply: Reply, *, half: bool = False) -> None:
        data = reply.body.encode("utf-8", "surrogatepass")
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/xml")
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


def unchunked(body: bytes) -> bytes:
    """What the SDK sent in one chunk, with a checksum behind it."""
    size, _, rest = body.partition(b"\r\n")
    return rest[: int(size, 16)]


def local(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2]


def operation_of(command: str, query: dict[str, str]) -> str:
    """What a request asks for."""
    if command == "POST":
        return "delete" if "delete" in query else "other"
    if command == "DELETE":
        return "abort" if "uploadId" in query else "delete_one"
    named = [
        n for n in ("uploads", "versioning", "versions", "lifecycle", "object-lock") if n in query
    ]
    if command == "PUT" or not query.keys() - {"x-id"}:
        return command.lower()
    return named[0] if named else "list" if "list-type" in query else "other"


def listing(keys: dict[str, bytes], query: dict[str, str], fault: Fault | None) -> Reply:
    """A page of a listing."""
    how = fault.how if fault else ""
    if how == "garbage":
        return Reply(200, "<html><body>Welcome to the proxy</body></html>")
    if how == "nothing_tells":
        return Reply(200, "not even XML")
    prefix = query.get("prefix", "")
    found = sorted(key for key in dict(keys) if key.startswith(prefix))
    after = unquote(query.get("continuation-token", "")) or query.get("start-after", "")
    if how == "deaf":
        after = unquote(query.get("continuation-token", ""))
    found = [key for key in found if key > after or how == "endless"]
    if fault and how == "skip" and "start-after" in query:
        found = [key for key in found if fault.part not in key]
    if how == "backwards":
        found = found[: min(PAGE, int(query.get("max-keys") or PAGE))][::-1]
    page = found[: min(PAGE, int(query.get("max-keys") or PAGE))]
    is_cut = len(page) < len(found) or how == "endless"
    more = f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>"
    if is_cut:
        token = "again" if how == "endless" else quote(page[-1])
        more += f"<NextContinuationToken>{token}</NextContinuationToken>"
    now = datetime.now(UTC)
    rows = "".join(
        f"<Contents><Key>{quote(key, safe='/')}</Key><LastModified>{now:%Y-%m-%dT%H:%M:%S}.000Z"
        f"</LastModified><Size>{len(keys.get(key, b''))}</Size></Contents>"
        for key in page
    )
    count = len(page) + (3 if how == "count" else 0)
    return Reply(
        200,
        f"{HEAD}<ListBucketResult><EncodingType>url</EncodingType><Prefix>{quote(prefix)}</Prefix>"
        f"<KeyCount>{count}</KeyCount>{more}{rows}</ListBucketResult>",
    )


def deleted(keys: dict[str, bytes], names: list[str], fault: Fault | None) -> Reply:
    """The reply to a deletion of many."""
    how = fault.how if fault else ""
    if fault and how == "poison" and any(fault.part in name for name in names):
        raise error(fault.code)
    told = []
    for number, name in enumerate(names):
        if fault and how == "deny" and fault.part in name:
            told.append(
                f"<Error><Key>{escape(name)}</Key><Code>{fault.code}</Code><Message>no</Message></Error>"
            )
            continue
        if how == "omit" and number % 2:
            continue
        if how != "lie":
            keys.pop(name, None)
        if how != "silent":
            told.append(f"<Deleted><Key>{escape(name)}</Key></Deleted>")
    return Reply(200, f"{HEAD}<DeleteResult>{''.join(told)}</DeleteResult>")


def uploads(begun: list[tuple[str, str]], query: dict[str, str]) -> str:
    """The uploads below a prefix."""
    rows = "".join(
        f"<Upload><Key>{quote(key, safe='/')}</Key><UploadId>{upload}</UploadId></Upload>"
        for key, upload in begun
        if key.startswith(query.get("prefix", ""))
    )
    return (
        f"{HEAD}<ListMultipartUploadsResult><EncodingType>url</EncodingType>"
        f"<IsTruncated>false</IsTruncated>{rows}</ListMultipartUploadsResult>"
    )


class Quiet(ThreadingHTTPServer):
    """A server that takes connections which clients cut as they come."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing."""


@contextmanager
def stub_server(certificate: Path | None = None) -> Iterator[Stub]:
    """A stub at a free port of the loop-back; over TLS with a file of a certificate and its key."""
    stub = Stub()
    server = Quiet(("127.0.0.1", 0), type("Own", (Handler,), {"stub": stub}))
    scheme = "http"
    if certificate is not None:
        scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    stub.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
