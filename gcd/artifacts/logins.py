"""Hosts, users and passwords that recorded URIs name, for servers that one logs in to.

It must never show a password, nor give it to another host or user than it was recorded for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from threading import Lock
from typing import NamedTuple
from urllib.parse import urlsplit

from gcd.errors import UnsafeTarget

HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")
USER = re.compile(r"[\w.@+\\][\w.@+\\-]*")
"""A name that a shell or a program would take for something else is no user and no host: both
may end in the command of a ProxyCommand, and whoever makes an experiment chooses them."""
PASSWORDS = 5
"""Passwords kept for a login: URIs of before a change are still in the database."""


class Address(NamedTuple):
    """Whom to ask, as MLflow reads it from a URI."""

    host: str
    port: int | None
    user: str | None


def address_of(scheme: str, authority: str) -> Address:
    """The address in an authority. Raises UnsafeTarget where it is none."""
    return _parsed(scheme, authority)[0]


def _parsed(scheme: str, authority: str) -> tuple[Address, str | None]:
    try:
        parts = urlsplit(f"{scheme}://{authority}/")
        address = Address(parts.hostname or "localhost", parts.port, parts.username or None)
    except ValueError:
        # Not what it says: where a password holds a "/", that is a part of it.
        raise UnsafeTarget(f"a {scheme}: URI names no host that can be asked") from None
    if not HOST.fullmatch(address.host):
        raise UnsafeTarget(f"{address.host!r} cannot be the name of a host")
    if address.user and not USER.fullmatch(address.user):
        raise UnsafeTarget(f"{address.user!r} cannot be the name of a user")
    return address, parts.password


class Logins:
    """Passwords, in memory alone. Threads share it."""

    def __init__(self, scheme: str, uris: Iterable[str] = ()) -> None:
        self._scheme = scheme
        self._passwords: dict[Address, list[str]] = {}
        self._lock = Lock()
        for uri in uris:
            self.learn(uri)

    def learn(self, uri: str) -> bool:
        """Take the password of a URI, if it has one; whether it was new. The latest comes first."""
        scheme, _, rest = uri.partition("://")
        authority = rest.partition("/")[0]
        if scheme.lower() != self._scheme or ":" not in authority.rpartition("@")[0]:
            return False
        try:
            address, password = _parsed(self._scheme, authority)
        except UnsafeTarget:
            return False
        with self._lock:
            known = self._passwords.setdefault(address, [])
            if not password or password in known:
                return False
            self._passwords[address] = [password, *known][:PASSWORDS]
            return True

    def passwords(self, address: Address) -> list[str]:
        """The passwords recorded for an address, the latest first."""
        with self._lock:
            return list(self._passwords.get(address, ()))

    def __repr__(self) -> str:
        return f"<logins of {len(self._passwords)} addresses>"
