"""Writes log records to stderr, as text or as JSON lines, and masks credentials in any text.

It must never write a password, and never fail or stop a cycle because a record cannot be written.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

Write = Callable[[logging.LogRecord, str, str], str]
"""Puts a record, its event and its exception (empty if none), both masked, into lines."""

MASK = "***"
FIELDS = ("cycle", "store", "entity")
"""What a call may pass in `extra` to be a field of its own in a JSON line."""
PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
"""Syslog's priorities, which journald reads from the start of a line (sd-daemon(3))."""

# A password in a URI may hold anything that its user forgot to encode, so it ends at the last "@"
# of the word; another URI after a separator is no part of it. One slash or three are a common slip.
_START = r"(?::/+|\b(?:postgres|postgresql|mysql|mariadb|mssql|oracle)(?:\+\w+)?:)[^\s:/]*:"
_NEXT_URI = r"[\s,;|\"'(\[<{=]+[A-Za-z][A-Za-z0-9+.-]{0,30}://"
_IN_WORD = rf"(?:(?!{_NEXT_URI})\S)*@"
_WITH_SPACES = r"[^\r\n@]*@(?:\S*@)?"
_PORT = r"[0-9]+(?:[/?#\s,;:.)'\"\]}>]|$)"
_TO_THE_END = rf"(?:(?!{_NEXT_URI})[^\r\n])*@(?=\S*\s*\Z)"
_URI_ALONE = re.compile(
    rf"(\A\s*(?!https?:)[A-Za-z][A-Za-z0-9+.-]*{_START})(?:{_TO_THE_END}|{_IN_WORD}|{_WITH_SPACES})"
)
_URI_IN_TEXT = re.compile(rf"({_START})(?:{_IN_WORD}|(?!{_PORT}){_WITH_SPACES})")

# Query parameters, connection strings of libpq, ODBC and Azure, and the repr of a mapping.
_KEY = (
    r"(?:password|passwd|passphrase|credentials?|signature|token|secret(?:[-_]?access)?(?:[-_]?key)?"
    r"|(?:api|access|account|shared[-_]?access|private)[-_]?key(?:[-_]?id)?"
    r"|(?:(?<![a-z])|(?<=%[0-9a-f]{2}))(?:sig|pwd))"
)
_VALUE = r"(?:\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|\{[^}\n]*\})?[^\s&]*"
_PARAMETER = re.compile(
    rf"({_KEY}(?:[ \t]*=[ \t]*|%3D|[\"'][ \t]*:[ \t]*))({_VALUE})", re.IGNORECASE
)
_CLOSING = "\"'>)],;:}."


def mask(text: str) -> str:
    """The text with every password, token and signature in it replaced by `***`.

    Where it cannot be known how far a secret reaches, more than the secret is hidden rather than
    less. Masking a masked text changes nothing.
    """
    if "@" in text:  # looking for one takes time that grows with the square of a long text
        text = _URI_ALONE.sub(rf"\1{MASK}@", text)
        text = _URI_IN_TEXT.sub(rf"\1{MASK}@", text)
    return _PARAMETER.sub(_masked_parameter, text)


def _masked_parameter(found: re.Match[str]) -> str:
    key, value = found.groups()
    core = value.rstrip(_CLOSING)
    return key + (MASK if core else "") + value[len(core) :]


def configure(level: str, format: str, *, journald: bool = False) -> None:
    """Send gcd's records from `level` up, and warnings of other libraries, to stderr.

    `level` is debug, info, warning or error. `format` is text, json, or auto: text on a terminal,
    JSON lines elsewhere. With `journald` each line starts with its priority, as journald wants it.
    A second call replaces the first.
    """
    is_text = format == "text" or (format == "auto" and _is_terminal())
    handler = StderrHandler()
    handler.setFormatter(LineFormatter(_as_text if is_text else _as_json, journald=journald))
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, StderrHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Below a warning, SQLAlchemy tells statements and their parameters.
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    logging.getLogger("gcd").setLevel(level.upper())


def as_error(text: str) -> str:
    """Text that is no record, as journald wants an error: each line with its priority."""
    return _prioritised(text, logging.ERROR)


def _prioritised(lines: str, level: int) -> str:
    prefix = f"<{PRIORITIES.get(level, 6)}>"
    return "\n".join(prefix + line for line in lines.splitlines())


class StderrHandler(logging.Handler):
    """Writes to whatever `sys.stderr` is at that moment: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a reader that has gone, or a full disk, is nobody's error here."""
        with suppress(OSError, ValueError, AttributeError):  # None or closed, after `gcd 2>&-`
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


class LineFormatter(logging.Formatter):
    """Formats a record with everything in it masked: message, arguments, extras, exception."""

    def __init__(self, write: Write, *, journald: bool) -> None:
        super().__init__()
        self._write = write
        self._journald = journald

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, or lines; the record itself stays as it is, for other handlers."""
        error = mask(self.formatException(record.exc_info)) if record.exc_info else ""
        visible = "\n".join(map(_visible, error.splitlines()))
        lines = self._write(record, _event(record), visible)
        return _prioritised(lines, record.levelno) if self._journald else lines


def _event(record: logging.LogRecord) -> str:
    """The message on one line; a call that contradicts its own format is told as it stands."""
    text = str(record.msg)
    try:
        text = text % _masked_arguments(record) if record.args else text
    except Exception:  # logging's own report of it would show the arguments unmasked
        text = f"{text} {record.args!r}"
    return _visible(mask(text))


def _masked_arguments(record: logging.LogRecord) -> object:
    if isinstance(record.args, Mapping):
        return {key: _masked(value) for key, value in record.args.items()}
    return tuple(map(_masked, record.args or ()))


def _masked(value: object) -> object:
    return mask(value) if isinstance(value, str) else value


def _visible(text: str) -> str:
    """Control characters as escapes: a run's name must not move the cursor or forge a line."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _as_text(record: logging.LogRecord, event: str, error: str) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    line = f"{at:%Y-%m-%d %H:%M:%S} {record.levelname.lower()}: {event}"
    return f"{line}\n{error}" if error else line


def _as_json(record: logging.LogRecord, event: str, error: str) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    line: dict[str, object] = {
        "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event,
    }
    for name in FIELDS:
        value = getattr(record, name, None)
        if value is not None:
            line[name] = value if isinstance(value, int) else mask(str(value))
    if error:
        line["error"] = error
    return json.dumps(line)


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # None or closed
        return False
