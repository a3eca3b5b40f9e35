"""A small store that speaks Azure's Blob protocol over HTTP and fails as it is told to.

It must never rewrite a name: what is put is what is listed. It checks no signature.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests import s3_stub
from tests.s3_stub import Fault, Quiet

HEAD = '<?xml version="1.0" encoding="utf-8"?>'
ACCOUNT, KEY = "acct", "c2VjcmV0LWtleQ=="
PAGE = 7
"""Blobs in a page of a listing, however many are asked for: most trees have several."""
STATUS = {
    "ServerBusy": 503,
    "TooManyRequests": 429,
    "InternalError": 500,
    "AuthorizationPermissionMismatch": 403,
    "AuthenticationFailed": 403,
    "AuthorizationFailure": 403,
    "ContainerNotFound": 404,
    "BlobNotFound": 404,
    "LeaseIdMissing": 412,
    "BlobImmutableDueToPolicy": 409,
    "ConditionNotMet": 412,
    "OperationNotAllowedOnRootBlob": 403,
    "BlobApiNotYetSupportedForHierarchicalNamespaceAccounts": 409,
    "NotImplemented": 501,
}


@dataclass
class Blob:
    """What is stored under a name."""

    data: bytes = b""
    is_folder: bool = False
    is_leased: bool = False
    held_until: datetime | None = None
    has_legal_hold: bool = False
    version: str = ""


@dataclass
class Stub:
    """The account: `blobs` of each container, `faults` by operation, taken one by one; `seen` of requests."""

    blobs: dict[str, dict[str, Blob]] = field(default_factory=dict)
    old: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    """Old versions, by container, name and version."""
    faults: dict[str, deque[Fault | None]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    seen: list[tuple[str, int]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    has_folders: bool = False
    is_versioned: bool = False
    days_kept: int = 0
    refused: set[str] = field(default_factory=set)
    """What a listing may not include."""
    url: str = ""
    serial: int = 0

    def put(self, container: str, key: str, data: bytes = b"x", **about: Any) -> Blob:
        """Store a blob; where folders are real, those that it lies in too."""
        with self.lock:
            blobs = self.blobs[container]
            if self.has_folders:
                for at in (m.start() for m in re.finditer("/", key)):
                    blobs.setdefault(key[:at], Blob(is_folder=True))
            if self.is_versioned and key in blobs:
                self.old[container, key, blobs[key].version] = blobs[key].data
            self.serial += 1
            blobs[key] = Blob(data, version=f"v{self.serial:06}", **about)
            return blobs[key]

    def keys(self, container: str) -> set[str]:
        """The names of blobs, not of folders."""
        with self.lock:
            return {key for key, blob in self.blobs[container].items() if not blob.is_folder}

    def folders(self, container: str) -> set[str]:
        """The names of folders."""
        with self.lock:
            return {key for key, blob in self.blobs[container].items() if blob.is_folder}

    def fault(self, operation: str) -> Fault | None:
        """The next fault of an operation."""
        with self.lock:
            queue = self.faults.get(operation)
            return queue.popleft() if queue else self.always.get(operation)

    def count(self, operation: str) -> int:
        """How many requests of a kind came."""
        return sum(name == operation for name, _ in self.seen)

    @property
    def connection_string(self) -> str:
        """What MLflow and gcd need to reach it."""
        return f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.url}/{ACCOUNT};"

    def remove(self, container: str, key: str, query: dict[str, str], match: str | None) -> None:
        """Delete a blob, or say why not."""
        with self.lock:
            if container not in self.blobs:
                raise error("ContainerNotFound")
            blob, version = self.blobs[container].get(key), query.get("versionid")
            if version and (blob is None or blob.version != version):
                if self.old.pop((container, key, version), None) is None:
                    raise error("BlobNotFound")
                return
            if blob is None:
                raise error("BlobNotFound")
            if version:
                raise error("OperationNotAllowedOnRootBlob")
            if match not in (None, f'"{blob.version}"'):
                raise error("ConditionNotMet")
            if blob.is_leased:
                raise error("LeaseIdMissing")
            if blob.held_until or blob.has_legal_hold:
                raise error("BlobImmutableDueToPolicy")
            if blob.is_folder and self.has_folders:
                self.remove_folder(self.blobs[container], key, query)
                return
            if self.is_versioned:
                self.old[container, key, blob.version] = blob.data
            del self.blobs[container][key]

    @staticmethod
    def remove_folder(blobs: dict[str, Blob], key: str, query: dict[str, str]) -> None:
        """Delete a folder as the endpoint for data lakes does; that for blobs cannot."""
        if "recursive" not in query:
            raise error("OperationNotSupportedOnDirectory", 400)
        inside = [name for name in blobs if name.startswith(key + "/")]
        if inside and query["recursive"] == "false":
            raise error("DirectoryNotEmpty", 409)
        for name in (key, *inside):
            del blobs[name]


class Reply(s3_stub.Reply):
    """An answer that ends a request."""

    def __init__(self, status: int, body: str = "", **headers: str) -> None:
        super().__init__(status, body)
        self.headers = {"Content-Type": "application/xml", **headers}


def error(code: str, status: int | None = None) -> Reply:
    """An error as Azure words it."""
    text = f"{HEAD}<Error><Code>{code}</Code><Message>{code} by the stub\nRequestId:1</Message></Error>"
    return Reply(status or STATUS.get(code, 400), text, **{"x-ms-error-code": code})


class Handler(s3_stub.Handler):
    """One connection."""

    stub: ClassVar[Stub]  # type: ignore[assignment]

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        account, _, path = parts.path[1:].partition("/")
        container, _, key = path.partition("/")
        assert account == ACCOUNT, self.path
        operation = operation_of(self.command, query)
        fault = self.stub.fault(operation)
        self.stub.seen.append((operation, body.count(b"DELETE /") or 1))
        if fault and fault.how == "refuse":
            return self.reply(error(fault.code))
        if fault and fault.how == "reset":
            return self.reset()
        try:
            self.work(operation, container, unquote(key), query, body, fault)
        except Reply as reply:
            if fault and fault.how == "broken":
                return self.reset()
            self.reply(reply, half=fault is not None and fault.how == "half")
        return None

    def work(  # type: ignore[override]
        self,
        operation: str,
        container: str,
        key: str,
        query: dict[str, str],
        body: bytes,
        fault: Fault | None,
    ) -> None:
        stub = self.stub
        if operation == "account":
            hns = str(stub.has_folders).lower()
            raise Reply(200, **{"x-ms-is-hns-enabled": hns, "x-ms-sku-name": "Standard_LRS"})
        if operation == "service":
            raise Reply(200, service(stub.days_kept))
        if container not in stub.blobs:
            raise error("ContainerNotFound")
        match operation:
            case "list":
                raise listing(stub, container, query, fault)
            case "batch":
                raise batch(stub, body, fault)
            case "delete":
                if fault and fault.how == "deny" and fault.part in key:
                    raise error(fault.code)
                stub.remove(container, key, query, self.headers.get("If-Match"))
                raise Reply(202)
            case "container":
                raise Reply(200, **{"x-ms-has-immutability-policy": "true"})
            case "properties":
                raise properties(stub.blobs[container].get(key))
            case "read":
                raise read(stub.blobs[container].get(key), self.headers.get("x-ms-range", ""))
            case "write":
                with stub.lock:
                    if key in stub.blobs[container] and self.headers.get("If-None-Match") == "*":
                        raise error("BlobAlreadyExists", 409)
                    stub.put(container, key, body)
                now = format_datetime(datetime.now(UTC), usegmt=True)
                raise Reply(201, **{"ETag": '"1"', "Last-Modified": now})
            case _:
                raise error("UnsupportedHttpVerb", 405)

    def reply(self, reply: s3_stub.Reply, *, half: bool = False) -> None:
        data = reply.body.encode("utf-8", "surrogatepass")
        self.send_response(reply.status)
        headers = {"x-ms-version": "2021-12-02", **getattr(reply, "headers", {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if half else data)
        self.wfile.flush()
        self.close_connection = self.close_connection or half


def operation_of(command: str, query: dict[str, str]) -> str:
    """What a request asks for."""
    kind = (query.get("restype"), query.get("comp"))
    names = {
        ("container", "list"): "list",
        ("container", "batch"): "batch",
        ("account", "properties"): "account",
        ("service", "properties"): "service",
        ("container", None): "container",
    }
    if kind in names:
        return names[kind]
    names_alone = {"DELETE": "delete", "HEAD": "properties", "GET": "read", "PUT": "write"}
    return names_alone.get(command, "other") if kind == (None, None) else "other"


def service(days: int) -> str:
    """The properties of the service for blobs."""
    policy = f"<Enabled>{str(bool(days)).lower()}</Enabled>" + (f"<Days>{days}</Days>" * bool(days))
    return f"{HEAD}<StorageServiceProperties><DeleteRetentionPolicy>{policy}</DeleteRetentionPolicy></StorageServiceProperties>"


def properties(blob: Blob | None) -> Reply:
    """The properties of a blob, as headers."""
    if blob is None:
        return error("BlobNotFound")
    now = format_datetime(datetime.now(UTC), usegmt=True)
    headers = {"ETag": f'"{blob.version}"', "Last-Modified": now, "x-ms-blob-type": "BlockBlob"}
    if blob.is_folder:
        headers["x-ms-meta-hdi_isfolder"] = "true"
    if blob.held_until:
        until = format_datetime(blob.held_until.astimezone(UTC), usegmt=True)
        headers |= {"x-ms-immutability-policy-until-date": until}
        headers |= {"x-ms-immutability-policy-mode": "unlocked"}
    if blob.has_legal_hold:
        headers["x-ms-legal-hold"] = "true"
    return Reply(200, **headers)


def read(blob: Blob | None, wanted: str) -> Reply:
    """The beginning of a blob, as far as it is asked for."""
    if blob is None:
        return error("BlobNotFound")
    size = int(wanted.rpartition("-")[2]) + 1
    data, whole = blob.data[:size], len(blob.data)
    if not whole:
        return error("InvalidRange", 416)
    about = properties(blob).headers
    about["Content-Range"] = f"bytes 0-{len(data) - 1}/{whole}"
    return Reply(206, data.decode(), **about)


def listing(stub: Stub, container: str, query: dict[str, str], fault: Fault | None) -> Reply:
    """A page of a listing."""
    how = fault.how if fault else ""
    if how == "garbage":
        page = "<html><body>Welcome to the proxy</body></html>"
        return Reply(200, page, **{"Content-Type": "text/html"})
    if how == "nothing_tells":
        return Reply(200, f"{HEAD}<EnumerationResults><Blobs /></EnumerationResults>")
    prefix, include = query.get("prefix", ""), query.get("include", "").split(",")
    if stub.refused & set(include):
        return error("InvalidQueryParameterValue", 400)
    with stub.lock:
        rows = [(k, b.version, b.data, b) for k, b in stub.blobs[container].items()]
        if "versions" in include:
            rows += [(k, v, data, None) for (c, k, v), data in stub.old.items() if c == container]  # type: ignore[misc]
    found = sorted((r for r in rows if r[0].startswith(prefix)), key=lambda row: row[:2])
    after = int(query.get("marker") or 0)
    size = min(PAGE, int(query.get("maxresults") or PAGE))
    page = found[after : after + size] if how != "endless" else found[:size]
    is_cut = after + size < len(found)
    more = "1" if how == "endless" else str(after + size) if is_cut else ""
    text = "".join(row(*each, include, stub) for each in page)
    return Reply(
        200,
        f'{HEAD}<EnumerationResults ServiceEndpoint="{stub.url}/{ACCOUNT}" ContainerName="{container}">'
        f"<Blobs>{text}</Blobs><NextMarker>{more}</NextMarker></EnumerationResults>",
    )


def row(
    key: str, version: str, data: bytes, blob: Blob | None, include: list[str], stub: Stub
) -> str:
    """One blob, or one of its versions."""
    now = format_datetime(datetime.now(UTC), usegmt=True)
    text = f"<Blob><Name>{said(key)}</Name>"
    if "versions" in include and stub.is_versioned:
        text += f"<VersionId>{version}</VersionId>"
        text += "<IsCurrentVersion>true</IsCurrentVersion>" if blob else ""
    text += f"<Properties><Last-Modified>{now}</Last-Modified><Etag>{version}</Etag>"
    text += (
        f"<Content-Length>{len(data)}</Content-Length><BlobType>BlockBlob</BlobType></Properties>"
    )
    if blob and blob.is_folder and "metadata" in include:
        text += "<Metadata><hdi_isfolder>true</hdi_isfolder></Metadata>"
    return text + "</Blob>"


def said(key: str) -> str:
    """A name in XML."""
    return escape(key, {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})


def batch(stub: Stub, body: bytes, fault: Fault | None) -> Reply:
    """The reply to a batch of deletions."""
    how = fault.how if fault else ""
    asked = re.findall(
        r"Content-ID: (\d+)\r\n(?:.*\r\n)*?\r\nDELETE (\S+) HTTP/1.1\r\n", body.decode()
    )
    if fault and how == "poison" and any(fault.part in unquote(url) for _, url in asked):
        return error(fault.code)
    if how == "garbage":
        return Reply(202, "<html>proxy</html>", **{"Content-Type": "text/html"})
    told = []
    for number, url in asked:
        if how == "omit" and int(number) % 2:
            continue
        answer = one(stub, url, fault)
        if how != "silent":
            told.append((number, answer))
    if how == "shuffle":
        told.reverse()
    text = "".join(
        f"--reply\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
        f"HTTP/1.1 {a.status} {a.body[:0] or 'said'}\r\n"
        + "".join(f"{k}: {v}\r\n" for k, v in a.headers.items() if k.startswith("x-ms"))
        + f"\r\n{a.body}\r\n"
        for number, a in told
    )
    kind = {"Content-Type": "multipart/mixed; boundary=reply"}
    return Reply(202, f"{text}--reply--\r\n", **kind)


def one(stub: Stub, url: str, fault: Fault | None) -> Reply:
    """The answer to one deletion of a batch."""
    parts = urlsplit(url)
    query = {k: v[0] for k, v in parse_qs(parts.query).items()}
    _, container, key = parts.path[1:].split("/", 2)
    if fault and fault.how in ("deny", "shuffle") and fault.part in unquote(key):
        return error(fault.code)
    if fault and fault.how == "lie":
        return Reply(202)
    try:
        stub.remove(container, unquote(key), query, None)
    except Reply as refusal:
        return refusal
    return Reply(202)


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
