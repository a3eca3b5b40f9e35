"""Translates what database drivers raise into gcd's own errors, each with the hint that mends it.

It must never pass on a statement, its parameters or a password.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import sqlalchemy as sa

from gcd.errors import GcdError, PrivilegeMissing, StoreRefused, StoreUnreachable
from gcd.logs import mask

T = TypeVar("T")
Make = Callable[[str], GcdError]


class StillReferenced(StoreRefused):
    """A row refers to what was deleted; the transaction is to be rolled back."""


_unreachable = partial(
    StoreUnreachable, hint="nothing was changed by this; try again when the database answers"
)
_full = partial(
    StoreUnreachable, hint="the database's disk is full: free space there, then try again"
)
_busy = partial(StoreUnreachable, hint="another client holds locks; try again later")
_login = partial(StoreRefused, hint="check user, password and the server's access rules")
_absent = partial(StoreRefused, hint="check the database's name; gcd never creates a store")
_foreign = partial(StoreRefused, hint="give the database that MLflow uses as its backend store")
_mismatch = partial(
    StoreRefused, hint="SQLite deletes nothing that such a foreign key refers to: drop it"
)
_grant = partial(PrivilegeMissing, hint="`gcd doctor` names the missing GRANT")
_frozen = partial(
    PrivilegeMissing,
    hint="gcd needs to write: give it the primary server, or the file and its folder writable",
)

POSTGRESQL: tuple[tuple[str, Make], ...] = (
    ("28", _login),
    ("3D000", _absent),
    ("42501", _grant),
    ("25006", _frozen),
    ("53100", _full),
    ("55P03", _busy),
    ("40", _busy),
    ("08", _unreachable),
    ("53", _unreachable),
    ("57", _unreachable),
    ("25P03", _unreachable),
)
MYSQL: dict[int, Make] = {
    **dict.fromkeys((1045, 1698, 1524), _login),
    1049: _absent,
    **dict.fromkeys((1044, 1142, 1143, 1227, 1370), _grant),
    **dict.fromkeys((1290, 1792, 1836), _frozen),
    **dict.fromkeys((1021, 1114, 3675), _full),
    **dict.fromkeys((1205, 1213), _busy),
    **dict.fromkeys((1040, 1053, 1203, 1927, 2002, 2003, 2005, 2006, 2013, 2055), _unreachable),
}
MESSAGES: tuple[tuple[str, Make], ...] = (
    (r"password authentication failed|no pg_hba\.conf entry|role .* does not exist", _login),
    (r"database .* does not exist", _absent),
    (r"file is not a database|malformed", _foreign),
    (r"foreign key mismatch", _mismatch),
    (r"readonly database|read-only", _frozen),
    (r"disk is full|disk I/O error", _full),
    (r"database is locked|database table is locked", _busy),
    (r"unable to open database file", _frozen),
    (
        r"could not connect|connection refused|timed? ?out|terminat|closed|translate host",
        _unreachable,
    ),
    (r"not known|lost connection|server has gone|No route|unreachable", _unreachable),
)
RETRIED = ("40001", "40P01", "55P03")
BEING_CHANGED = 1684
"""MariaDB's number for a table that its catalogue leaves out, as it is being made or changed."""
ATTEMPTS = 6


@contextmanager
def translated() -> Iterator[None]:
    """Turn SQLAlchemy's and the drivers' errors into GcdError, the cause kept."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise translate(error) from error
    except sa.exc.TimeoutError as error:
        raise _unreachable("no database connection became free in time") from error


def translate(error: sa.exc.DBAPIError) -> GcdError:
    """The gcd error for what a driver raised."""
    text = sentence(error)
    for make in filter(None, (by_code(error), by_message(text))):
        return make(f"the database says: {text}")
    if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
        return _unreachable(f"the database says: {text}")
    return StoreRefused(
        f"the database refused a statement: {text}",
        hint="`gcd doctor` looks at the schema and the privileges",
    )


def by_code(error: sa.exc.DBAPIError) -> Make | None:
    """By SQLSTATE (PostgreSQL) or error number (MySQL, MariaDB)."""
    # PyMySQL tells a SQLSTATE too, and it says less than the number.
    if number := error_number(error):
        return MYSQL.get(number)
    state = sqlstate(error)
    return next((make for prefix, make in POSTGRESQL if state and state.startswith(prefix)), None)


def by_message(text: str) -> Make | None:
    """By the words, for drivers that leave the code out when they cannot connect."""
    return next((make for words, make in MESSAGES if re.search(words, text, re.IGNORECASE)), None)


def sqlstate(error: sa.exc.DBAPIError) -> str:
    """PostgreSQL's SQLSTATE, "" where there is none."""
    origin = error.orig
    return getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None) or ""


def error_number(error: sa.exc.DBAPIError) -> int:
    """MySQL's error number, 0 where there is none."""
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0


def is_conflict(error: sa.exc.DBAPIError) -> bool:
    """Whether a deadlock, a serialisation failure or a lock time-out rolled the transaction back."""
    is_locked = "database is locked" in str(error.orig)
    return sqlstate(error) in RETRIED or error_number(error) in (1205, 1213) or is_locked


def steadily(read: Callable[[], T]) -> T:
    """What is read of the server's catalogue, again while MariaDB refuses.

    It does where another client makes or changes a table at that moment, as another first collector.
    """
    for attempt in range(ATTEMPTS):
        try:
            return read()
        except sa.exc.DBAPIError as error:
            if error_number(error) != BEING_CHANGED or attempt == ATTEMPTS - 1:
                raise
            threading.Event().wait(0.1 * 2**attempt)
    raise AssertionError("unreachable")


def is_foreign_key(error: BaseException | None) -> bool:
    """Whether the database refused because rows of another table still refer to what would go."""
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    is_named = sqlstate(error) == "23503" or error_number(error) in (1217, 1451, 1216, 1452)
    return is_named or "FOREIGN KEY constraint failed" in str(error.orig)


def sentence(error: sa.exc.DBAPIError) -> str:
    """The driver's words on one line, without statement, parameters or secrets."""
    origin = error.orig
    arguments: tuple[object, ...] = getattr(origin, "args", ())
    words = arguments[1] if error_number(error) and len(arguments) > 1 else str(origin)
    lines = [line.strip() for line in str(words).splitlines() if line.strip()]
    return mask(re.sub(r"\s+", " ", " ".join(lines[:2])))[:300]
