"""Tells systemd how the daemon is doing, over its notification socket (sd_notify(3)).

It must never fail or block the daemon: without systemd, or with a socket that is gone, it says nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

LONGEST_STATUS = 200


@dataclass(frozen=True, slots=True)
class Notifier:
    """The daemon's line to whoever supervises it."""

    address: str | None = None
    """A path, or a name in the abstract namespace that begins with "@"; None: nobody listens."""
    watchdog: timedelta | None = None
    """How often `alive` has to be called, at least; None if nobody waits for it."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Notifier:
        """What the supervisor left in the environment for this process, and for no child of it."""
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        is_mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        micros = environ.get("WATCHDOG_USEC", "")
        watchdog = (
            timedelta(microseconds=int(micros))
            if is_mine and micros.isdecimal() and int(micros)
            else None
        )
        return cls(address if address[:1] in ("/", "@") else None, watchdog)

    def ready(self) -> None:
        """Started, or done with reloading."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends it."""
        self._send(
            f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def stopping(self) -> None:
        """On the way out."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Not hung; to be called more often than every `watchdog`."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        line = " ".join(text.split())
        self._send(f"STATUS={line[:LONGEST_STATUS]}")

    def _send(self, state: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line,
        ):
            line.settimeout(1)
            line.sendto(state.encode(), address)
