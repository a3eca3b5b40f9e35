"""Reads the listing of one folder as an MLflow server sends it, entry by entry.

It must never hold a whole listing in memory, nor take anything else for an empty one.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

LONGEST = 1 << 20
"""Characters of one entry: what is longer is no listing."""


class Entry(NamedTuple):
    """What a folder holds: the name of a file with its size, or of a folder."""

    name: str
    is_folder: bool
    size: int


def entries(chunks: Iterable[bytes]) -> Iterator[Entry]:
    """The entries of a reply, as its bytes come in. Raises ValueError where it is no listing.

    One that is empty has ended: an entry is told before what follows it was looked at.
    """
    text = _Text(chunks)
    text.expect("{")
    if not text.takes("}"):
        while True:
            name = text.value()
            text.expect(":")
            if name == "files":
                yield from _files(text)
            else:
                text.value()
            if not text.takes(","):
                break
        text.expect("}")
    text.expect("")


def _files(text: _Text) -> Iterator[Entry]:
    text.expect("[")
    if text.takes("]"):
        return
    while True:
        yield _entry(text.value())
        if not text.takes(","):
            break
    text.expect("]")


def _entry(found: Any) -> Entry:
    if not isinstance(found, dict) or not isinstance(found.get("path"), str):
        raise ValueError("an entry has no path")
    if "/" in found["path"]:  # MLflow sends names: these are somebody else's, or of somewhere else
        raise ValueError(f"an entry is {found['path'][:100]!r}, which is no name")
    is_folder = found.get("is_dir", False)
    size = found.get("file_size", 0)
    if not isinstance(is_folder, bool) or not isinstance(size, int | str):
        raise ValueError("an entry is neither a file nor a folder")
    return Entry(found["path"], is_folder, int(size))


class _Text:
    """JSON that comes in pieces."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text, self._at, self._is_whole = "", 0, False

    def _more(self) -> bool:
        """Read on, forgetting what was taken; False at the end."""
        if self._is_whole:
            return False
        if len(self._text) - self._at > LONGEST:
            raise ValueError("an entry has no end")
        chunk = next(self._chunks, None)
        self._is_whole = chunk is None
        self._text = self._text[self._at :] + self._decoder.decode(chunk or b"", chunk is None)
        self._at = 0
        return True

    def _next(self) -> str:
        """The next character that means something, empty at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def takes(self, mark: str) -> bool:
        """Take a mark if it is next."""
        found = self._next() == mark
        self._at += found
        return found

    def expect(self, mark: str) -> None:
        """Take what must be next, "" for the end."""
        found = self._next()
        if found != mark:
            raise ValueError(f"{found or 'its end'!r} where {mark or 'its end'!r} should be")
        self._at += len(mark)

    def value(self) -> Any:
        """Take a whole value."""
        self._next()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except ValueError:
                if self._more():
                    continue
                raise
            if end < len(self._text) or not self._more():
                self._at = end
                return value
