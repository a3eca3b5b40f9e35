"""Refuses every connection that leaves this machine, in the tests and in the processes they start.

It is found through PYTHONPATH as `sitecustomize`; an audit hook sees sockets of every kind that
Python opens, and cannot be taken off again by what is tested.
"""

from __future__ import annotations

import os
import sys
from typing import Any

CONNECTING = ("socket.connect", "socket.sendto", "socket.sendmsg")


class OutsideWorld(RuntimeError):
    """Something tried to reach another machine."""


def refuse_other_machines(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: raise OutsideWorld where a socket is about to leave the loop-back."""
    if event not in CONNECTING:
        return
    address = arguments[1]
    if isinstance(address, tuple) and not is_loopback(str(address[0])):
        raise OutsideWorld(f"{event} to {address!r}: tests talk to this machine only")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine, by its address; other names than localhost are not."""
    return host.startswith("127.") or host in (
        "",
        "::1",
        "0.0.0.0",
        "localhost",
        "::ffff:127.0.0.1",
    )


def install() -> None:
    """Refuse from here on."""
    sys.addaudithook(refuse_other_machines)


class Hiding:
    """A finder of modules that does not find some: as if they were not installed."""

    def __init__(self, finder: Any, names: frozenset[str]) -> None:
        self.finder, self.names = finder, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """What the finder finds, unless it is hidden."""
        if name.partition(".")[0] in self.names:
            return None
        return self.finder.find_spec(name, path, target)


def hide(names: str) -> None:
    """Hide the modules of a comma-separated list."""
    hidden = frozenset(names.split(","))
    sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]


if __name__ == "sitecustomize":
    install()
    if os.environ.get("TEST_HIDE_MODULES"):
        hide(os.environ["TEST_HIDE_MODULES"])
