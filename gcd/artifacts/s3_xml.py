"""What S3's protocol says in XML of listings and deletions, in the words of the SDK's replies.

It must never change a key, nor read what is no listing as an empty one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from botocore.exceptions import ClientError
from botocore.utils import parse_timestamp

NOT_READ_AS_THEY_ARE = {"\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
"""Characters that a reader of XML changes unless they are written as numbers."""
OPERATIONS = {"GET": "ListObjectsV2", "POST": "DeleteObjects"}


def wanted_deletions(objects: Sequence[Mapping[str, str]]) -> bytes:
    """The body of a request that deletes many; what fails is told, what is deleted is not."""
    rows = []
    for each in objects:
        row = f"<Key>{escape(each['Key'], NOT_READ_AS_THEY_ARE)}</Key>"
        if "VersionId" in each:
            row += f"<VersionId>{escape(each['VersionId'])}</VersionId>"
        rows.append(f"<Object>{row}</Object>")
    head = '<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>'
    return f"{head}{''.join(rows)}</Delete>".encode()


def of_listing(body: bytes) -> dict[str, Any]:
    """A page of a listing; empty where the reply is something else. Raises ValueError."""
    root = _parsed(body)
    if _name(root) != "ListBucketResult":
        return {}
    reply: dict[str, Any] = {"Contents": []}
    encoded = False
    for child in root:
        match _name(child):
            case "Contents":
                reply["Contents"].append(_told_of(child))
            case "IsTruncated" if (child.text or "").lower() in ("true", "false"):
                reply["IsTruncated"] = (child.text or "").lower() == "true"
            case "KeyCount" if child.text:
                reply["KeyCount"] = int(child.text)
            case "NextContinuationToken":
                reply["NextContinuationToken"] = child.text
            case "EncodingType":
                encoded = child.text == "url"
    if encoded:
        for each in reply["Contents"]:
            each["Key"] = unquote_plus(each["Key"])
    return reply


def _told_of(contents: ElementTree.Element) -> dict[str, Any]:
    """Key, size and time of an object."""
    texts = {_name(each): each.text or "" for each in contents}
    if "Key" not in texts:
        raise ValueError("the reply lists something without a key")
    when = texts.get("LastModified")
    return {
        "Key": texts["Key"],
        "Size": texts.get("Size"),
        "LastModified": _time(when) if when else None,
    }


def _time(text: str) -> datetime:
    """A time in whatever form the SDK reads. Raises ValueError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = parse_timestamp(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def of_deletion(body: bytes) -> dict[str, Any]:
    """What was not deleted. Raises ValueError where the reply is something else."""
    root = _parsed(body)
    if _name(root) != "DeleteResult":
        raise ValueError("the reply to a deletion is none")
    errors = [child for child in root if _name(child) == "Error"]
    return {"Errors": [{_name(each): each.text or "" for each in error} for error in errors]}


def error_of(status: int, reason: str, body: bytes, method: str) -> ClientError | None:
    """The error that a reply tells, which may come with a status of success; None if it tells none."""
    if status < 300 and b"<Error" not in body[:1000]:
        return None
    code, text = str(status), reason
    try:
        root = _parsed(body)
    except ValueError:
        root = None
    if root is not None and _name(root) == "Error":
        said = {_name(each): each.text or "" for each in root}
        code, text = said.get("Code") or code, said.get("Message", "")
        status = 500 if status < 300 else status
    elif status < 300:
        return None
    reply = {
        "Error": {"Code": code, "Message": text},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(reply, OPERATIONS[method])


def _parsed(body: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise ValueError(f"the reply is no XML: {error}") from error


def _name(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2]
