"""The host's clock, read here and nowhere else.

It must never decide what is old: ages are judged by the database's time, which comes from `store/`.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path


def utc_now() -> datetime:
    """The host's time, aware, in UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds on a clock that is never set back, for measuring how long something took.

    On Linux it stands still while the machine is suspended.
    """
    return time.monotonic()


def boottime() -> float:
    """Seconds on a clock that is never set back and goes on while the machine is suspended.

    Time-outs that others rely on are measured by it: the lease's term runs out in the database too.
    """
    # macOS has no CLOCK_BOOTTIME; its monotonic clock counts the time asleep.
    number = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(number)


def uptime() -> float:
    """Seconds that this host has been running, time asleep included, to be compared with later ones.

    Read from the kernel where it tells: a library that shifts the clocks of a process is no reason
    to believe in a jump, nor to overlook one. A container's own file (lxcfs) starts again with it.
    """
    try:
        if os.stat("/proc/uptime").st_dev == os.stat("/proc").st_dev:
            return float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        pass
    return boottime()


def boot_id() -> str:
    """The kernel's id of this boot; "-" where there is none, and then nobody is on the same boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or "-"
    except OSError:
        return "-"
