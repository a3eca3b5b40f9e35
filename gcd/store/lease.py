"""The lease: the right to be the only collector of a store, fenced by the database itself.

It must never let two collectors commit a purge at once, and never trust the host's clock for it.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from gcd import clock
from gcd.durations import from_millis
from gcd.errors import GcdError, LeaseHeld, StoreReplaced
from gcd.planning.clocks import MOST_JUMP
from gcd.store.connection import reading, writing
from gcd.store.read import now_ms
from gcd.store.tables import lease as leases

NAME = "collector"
TERM = timedelta(seconds=60)
"""How long a lease lives unless it is renewed: a holder on another host is succeeded after that."""
RENEWAL = timedelta(seconds=15)
MARGIN = timedelta(seconds=15)
"""A holder that could not renew for TERM less this stops touching artifacts, which no fence guards."""
POLL = 1.0
PATIENCE = timedelta(days=1)
"""How long a collector that let another one go first waits for its turn."""


def whoami() -> str:
    """This process, so that it can be told from every other one: host, boot, namespace, pid, start."""
    return (
        f"{socket.gethostname()[:60]} pid {os.getpid()} "
        f"[{clock.boot_id()} {pid_namespace()} {started_at(os.getpid()) or 0}]"
    )


def pid_namespace() -> str:
    """The namespace that process ids are numbered in: containers share a boot but not this."""
    try:
        return re.sub(r"\D", "", os.readlink("/proc/self/ns/pid")) or "-"
    except OSError:
        return "-"


def started_at(pid: int) -> int | None:
    """When a process started, in ticks since boot; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_dead(holder: str | None) -> bool:
    """Whether the holder was a process of this host and boot that is there no more."""
    pattern = r"(.*) pid (\d+) \[(\S+) (\S+) (\d+)\]"
    found = re.fullmatch(pattern, holder or "")
    if found is None:
        return False
    host, pid, boot, namespace, start = found.groups()
    is_here = (host, boot, namespace) == (
        socket.gethostname()[:60],
        clock.boot_id(),
        pid_namespace(),
    )
    if not is_here or "-" in (boot, namespace) or is_hidden(int(pid)):
        return False
    return started_at(int(pid)) != int(start)


def is_hidden(pid: int) -> bool:
    """Whether the process is there and /proc does not show it: another user's, with `hidepid`."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return not os.path.exists(f"/proc/{pid}")


@dataclass
class Lease:
    """The proof that this process is the only collector; every writing call takes it.

    Renewed by a thread of its own until released. The fence is in `confirm`, not in that thread.
    """

    engine: Engine
    holder: str
    epoch: int
    renewed_at: float
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def confirm(self, conn: Connection) -> None:
        """Share-lock the lease's row in a write transaction; LeaseHeld if it is another's.

        StoreReplaced where the row is from before this lease was taken: epochs only ever grow.

        Whoever takes the lease over has to lock the row first, hence waits for this transaction.
        """
        query = sa.select(leases).where(leases.c.name == NAME).with_for_update(read=True)
        row = conn.execute(query).first()
        if row is None or row.epoch < self.epoch:
            raise StoreReplaced(
                "the database was restored from a backup while gcd worked; this cycle stops",
                hint="nothing more was deleted; run gcd again: it plans by what is there now",
            )
        if row.epoch != self.epoch or row.holder != self.holder:
            raise LeaseHeld(
                "another collector took the lease over; this one stops, nothing was purged twice",
                hint=f"it is held by {row.holder}" if row is not None and row.holder else None,
            )

    def is_fresh(self) -> bool:
        """Whether it was renewed recently enough to touch artifacts; time asleep counts."""
        return clock.boottime() - self.renewed_at < (TERM - MARGIN).total_seconds()

    def renew(self) -> None:
        """Extend the lease; LeaseHeld if it was taken over."""
        started = clock.boottime()
        with writing(self.engine) as conn:
            changed = conn.execute(
                leases.update()
                .where(leases.c.name == NAME, leases.c.epoch == self.epoch)
                .where(leases.c.holder == self.holder)
                .values(expires_ms=now_ms(conn) + milliseconds(TERM))
            )
        if changed.rowcount != 1:
            raise LeaseHeld("another collector took the lease over")
        self.renewed_at = started

    def start(self) -> None:
        """Keep it renewed in the background."""
        self._thread = threading.Thread(target=self._keep, name="gcd-lease", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._stop.wait(RENEWAL.total_seconds()):
            try:
                self.renew()
            except LeaseHeld:
                self.renewed_at = -TERM.total_seconds()
                return
            except GcdError:
                continue  # the next beat tries again; without one `is_fresh` turns False by itself

    def offer(self, stop: threading.Event) -> None:
        """Let whoever waits for the lease collect first.

        To be called between batches, while nothing is swept. It returns when the lease is held again,
        under a new epoch. Raises LeaseHeld after PATIENCE, and when `stop` is set meanwhile.
        """
        with reading(self.engine) as conn:
            wanted = conn.scalar(sa.select(leases.c.wanted_ms).where(leases.c.name == NAME))
        if wanted is None:
            return
        self.release()
        stop.wait(2 * POLL)  # whoever polls for it comes first
        acquire(self.engine, wait=PATIENCE, stop=stop).hand_to(self)

    def hand_to(self, other: Lease) -> None:
        """Let another object of this process go on with the lease."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        other.epoch, other.renewed_at = self.epoch, self.renewed_at
        other._stop = threading.Event()
        other.start()

    def release(self) -> None:
        """Give it up, so that another collector need not wait for its end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with writing(self.engine) as conn:
            conn.execute(
                leases.update()
                .where(leases.c.name == NAME, leases.c.epoch == self.epoch)
                .where(leases.c.holder == self.holder)
                .values(expires_ms=0, holder=None)
            )


def milliseconds(duration: timedelta) -> int:
    """A duration in the database's unit."""
    return int(duration.total_seconds() * 1000)


def acquire(
    engine: Engine, *, wait: timedelta | None = None, stop: threading.Event | None = None
) -> Lease:
    """Take the lease, waiting for its holder if asked to, until `stop` is set.

    Raises LeaseHeld with who holds it and since when.
    """
    holder, stop = whoami(), stop or threading.Event()
    started = clock.boottime()
    while True:
        before = clock.boottime()
        try:
            epoch = take(engine, holder, wants=wait is not None)
        except LeaseHeld:
            is_late = wait is None or clock.boottime() - started > wait.total_seconds()
            if is_late or stop.wait(POLL):
                raise
            continue
        held = Lease(engine, holder, epoch, renewed_at=before)
        held.start()
        return held


def take(engine: Engine, holder: str, *, wants: bool) -> int:
    """One attempt: lock the row, look at it, take it over if it is free; its new epoch."""
    with writing(engine) as conn:
        row = conn.execute(sa.select(leases).where(leases.c.name == NAME).with_for_update()).first()
        at = now_ms(conn)
        if row is None or is_free(row, at):
            epoch = (row.epoch if row is not None else 0) + 1
            put(conn, row, holder, epoch, at)
            return epoch
        if wants:
            conn.execute(leases.update().where(leases.c.name == NAME).values(wanted_ms=at))
        held = row
    raise held_error(held)


def is_free(row: Row[*tuple[Any, ...]], at_ms: int) -> bool:
    """Whether nobody holds the lease, or one who is known to be dead."""
    return row.holder is None or is_over(row.expires_ms, at_ms) or is_dead(row.holder)


def is_over(expires_ms: int, at_ms: int) -> bool:
    """Whether a lease has ended, or was written by a clock that was ahead.

    A holder that lives renews such a one within seconds; if it comes too late, the fence stops it.
    """
    return not at_ms < expires_ms <= at_ms + milliseconds(MOST_JUMP + TERM)


def put(
    conn: Connection, row: Row[*tuple[Any, ...]] | None, holder: str, epoch: int, at: int
) -> None:
    """Write the new holder."""
    values = {
        "holder": holder,
        "epoch": epoch,
        "acquired_ms": at,
        "expires_ms": at + milliseconds(TERM),
        "wanted_ms": None,
    }
    if row is None:
        conn.execute(leases.insert().values(name=NAME, **values))
    else:
        conn.execute(leases.update().where(leases.c.name == NAME).values(values))


def held_error(row: Row[*tuple[Any, ...]] | None) -> LeaseHeld:
    """Who holds it, in words."""
    since = from_millis(row.acquired_ms) if row is not None and row.acquired_ms else None
    name = str(row.holder).split(" [")[0] if row is not None else "somebody"
    return LeaseHeld(
        f"another collector is at work: {name}"
        + (f", since {since:%Y-%m-%d %H:%M:%S} UTC" if since else ""),
        hint="`gcd gc --wait 10m` waits for it; a dead one is succeeded after a minute at most",
    )


def holder_of(engine: Engine) -> str | None:
    """Who holds the lease now, None if nobody does, or one who is known to be dead."""
    with reading(engine) as conn:
        row = conn.execute(sa.select(leases).where(leases.c.name == NAME)).first()
        if row is None or is_free(row, now_ms(conn)):
            return None
        return str(row.holder).split(" [")[0]
