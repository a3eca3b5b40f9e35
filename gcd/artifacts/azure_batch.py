"""Reads the reply to a batch of deletions, blob by blob.

It must never ascribe an answer to another blob than that of its number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from typing import NamedTuple
from xml.etree import ElementTree

from gcd.errors import TransientArtifactError

STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?\r?\n")


class Answer(NamedTuple):
    """What the store said of one deletion."""

    status: int
    code: str
    text: str


def answers(content_type: str, body: bytes) -> dict[int | None, Answer]:
    """Answers by the number of the deletion in the batch; None is of the batch as a whole.

    The order of a reply is not that of the batch. Raises TransientArtifactError for what is no reply
    to a batch, or ends too early.
    """
    if not content_type.startswith("multipart/mixed"):
        raise TransientArtifactError("the reply to a batch is none")
    head = b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n"
    message = BytesParser().parsebytes(head + body)
    boundary = (message.get_boundary() or "").encode("latin-1")
    if not message.is_multipart() or b"--" + boundary + b"--" not in body:
        raise TransientArtifactError("the reply to a batch ends too early")
    return dict(map(_numbered, _parts(message)))


def _parts(message: Message) -> Iterator[Message]:
    for part in message.get_payload():
        if isinstance(part, Message):
            yield part


def _numbered(part: Message) -> tuple[int | None, Answer]:
    number = str(part.get("Content-ID", "")).strip()
    payload = part.get_payload(decode=True)
    return int(number) if number.isdecimal() else None, _answer(bytes(payload or b""))


def _answer(raw: bytes) -> Answer:
    found = STATUS.match(raw.lstrip())
    if found is None:
        raise TransientArtifactError("the reply to a batch holds what is no answer")
    headers, _, body = raw.partition(b"\r\n\r\n")
    code = re.search(rb"(?im)^x-ms-error-code:\s*(\S+)", headers)
    text = (found[2] or b"").decode("utf-8", "replace")
    return Answer(int(found[1]), code[1].decode("ascii", "replace") if code else _code(body), text)


def _code(body: bytes) -> str:
    """The code in an error's XML, empty if there is none."""
    try:
        return ElementTree.fromstring(body.strip()).findtext("Code") or ""
    except ElementTree.ParseError:
        return ""
