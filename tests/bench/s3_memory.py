"""A store in memory that speaks as much of S3's protocol as a deletion needs, as fast as Python can.

It must never be taken for a store: it believes everybody, and keeps no more of an object than its key.

    python tests/bench/s3_memory.py PORT
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from bisect import bisect_left, bisect_right
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape, unescape

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
KEY = re.compile(r"<Key>(.*?)</Key>", re.DOTALL)
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
EXPECT = re.compile(rb"(?i)\r\nexpect: *100")
ROW = (
    "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;0&quot;</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class Memory:
    """Keys in order, and which of them are there."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.ordered: list[str] = []

    def fill(self, keys: list[str]) -> None:
        """Put many keys at once."""
        self.there.update(keys)
        self.ordered = sorted(self.there)

    def page(self, query: dict[str, str]) -> str:
        """A page of a listing."""
        prefix = query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most = int(query.get("max-keys") or 1000)
        at = max(bisect_left(self.ordered, prefix), bisect_right(self.ordered, after))
        found: list[str] = []
        while at < len(self.ordered) and len(found) <= most:
            key = self.ordered[at]
            if not key.startswith(prefix):
                break
            if key in self.there:
                found.append(key)
            at += 1
        page, is_cut = found[:most], len(found) > most
        encode = quote if query.get("encoding-type") == "url" else escape
        kind = "<EncodingType>url</EncodingType>" if "encoding-type" in query else ""
        more = f"<IsTruncated>{str(is_cut).lower()}</IsTruncated>"
        if is_cut:
            more += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        rows = "".join(ROW.format(encode(key)) for key in page)
        counted = f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{most}</MaxKeys>"
        return f"<ListBucketResult {NAMESPACE}>{kind}{counted}{more}{rows}</ListBucketResult>"

    def delete(self, body: str) -> str:
        """The reply to a deletion of many."""
        keys = KEY.findall(body)
        self.there.difference_update(map(unescape, keys))
        told = ""
        if "<Quiet>true" not in body:
            told = "".join([f"<Deleted><Key>{key}</Key></Deleted>" for key in keys])
        return f"<DeleteResult {NAMESPACE}>{told}</DeleteResult>"


BUCKETS: dict[str, Memory] = {}


def answer(method: str, path: str, body: bytes) -> str:
    """The body of a reply."""
    parts = urlsplit(path)
    query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
    memory = BUCKETS.setdefault(parts.path.strip("/").split("/")[0], Memory())
    if method == "PUT" and "fill" in query:
        memory.fill(json.loads(body))
    elif method == "PUT":
        pass  # a bucket is there when it is named
    elif method == "POST":
        return memory.delete(body.decode())
    elif "uploads" in query:
        told = "<IsTruncated>false</IsTruncated>"
        return f"<ListMultipartUploadsResult {NAMESPACE}>{told}</ListMultipartUploadsResult>"
    elif "versioning" in query:
        return f"<VersioningConfiguration {NAMESPACE}/>"
    elif "list-type" in query:
        return memory.page(query)
    return ""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(head)
            if EXPECT.search(head):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(int(length[1])) if length else b""
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            text = answer(method, path, body)
            data = (HEAD + text).encode() if text else b""
            kind = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"
            writer.write(kind % len(data) + (b"" if method == "HEAD" else data))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    """Serve until ended."""
    async with await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 24) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
