"""Signals gcd at a chosen moment: `python stopper.py MOMENT ARGUMENTS...` runs gcd up to there.

Where `killer.py` counts events, a moment is named by the statement that it is about, so that it means
the same on every database. By SIGSTOP gcd stands still, transaction open or not, until `resumed`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

PURGE = r"DELETE FROM runs\b"
CONFIRM = r"FROM alembic_gcd_lease\b.*\b(FOR SHARE|LOCK IN SHARE MODE)"
"""The fence of a transaction that writes, where the database has row locks."""
BEGUN = r"INSERT INTO alembic_gcd_cycle\b"


@dataclass(frozen=True)
class Moment:
    """When the signal comes: around the n-th such statement, or around the commit of its transaction.

    The event "unlink" is the n-th removal of a file, whatever the statement.
    """

    when: str = "before"
    event: str = "statement"
    sql: str = PURGE
    number: int = 1
    signal: str = "SIGSTOP"
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Durations of gcd's that are shorter in this process: "gcd.store.lease:TERM" and the like."""
    hangs_after: int | None = None
    """From then on no file is removed for a minute: a disk that does not answer."""
    slow: float = 0
    """Seconds that the removal of each file takes longer."""
    pause: str | None = None
    """Not the process stands still but this thread: it makes this file, and waits until it is gone."""
    ahead: float = 0
    """Seconds that this process takes it to be later than it is."""


# -- for the tests -------------------------------------------------------------------------------


@contextmanager
def started(
    moment: Moment, *arguments: object, uri: str, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """This file as a program; what is left of it is killed at the end of the block."""
    import subprocess

    from tests import nursery
    from tests.program import command, empty_folder, environment

    words = command(*arguments, uri=uri, driver=Path(__file__))
    process = nursery.popen(
        [*words[:2], json.dumps(asdict(moment)), *words[2:]],
        cwd=empty_folder(),
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@contextmanager
def stopped(moment: Moment, *arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """gcd standing still at the moment."""
    with started(moment, *arguments, **options) as process:
        wait_until(lambda: state(process) in "TZ", "it never came to the moment")
        assert process.poll() is None, process.communicate()
        yield process


def state(process: subprocess.Popen[str]) -> str:
    """The state of a process as the kernel has it: T where it is stopped, Z where it has ended."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def resumed(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Let it go on, to its end."""
    process.send_signal(signal.SIGCONT)
    return ended(process)


def ended(
    process: subprocess.Popen[str], within: float | None = None
) -> subprocess.CompletedProcess[str]:
    """What has become of it, once it has ended; TimeoutExpired if it does not within some seconds."""
    import subprocess

    from tests.program import TIMEOUT

    out, err = process.communicate(timeout=within or TIMEOUT)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def killed(moment: Moment, *arguments: object, **options: Any) -> None:
    """gcd up to the moment and not a step further."""
    with stopped(moment, *arguments, **options) as process:
        process.kill()
        process.communicate()


def wait_until(happened: Callable[[], bool], otherwise: str, patience: float = 60) -> None:
    """Wait until something has happened; fail where it does not."""
    until = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < until, otherwise
        time.sleep(0.02)


# -- in the process that is signalled ------------------------------------------------------------


class Watch:
    """Looks for the moment in everything that is sent to the database."""

    def __init__(self, moment: Moment) -> None:
        self.moment, self.lock, self.found, self.removed = moment, threading.Lock(), 0, 0
        self.transaction = threading.local()

    def occurs(self, event: str) -> bool:
        """Count an occurrence of the event; whether it is the chosen one."""
        if event != self.moment.event:
            return False
        with self.lock:
            self.found += 1
            return self.found == self.moment.number

    def statement(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call whose second argument but one is SQL."""

        def watched(dialect: Any, cursor: Any, sql: str, *rest: Any, **options: Any) -> Any:
            is_meant = bool(re.search(self.moment.sql, sql, re.DOTALL))
            self.transaction.is_meant = is_meant or getattr(self.transaction, "is_meant", False)
            is_now = is_meant and self.occurs("statement")
            return self.around(is_now, lambda: call(dialect, cursor, sql, *rest, **options))

        return watched

    def commit(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A commit, of whichever transaction."""

        def watched(*args: Any) -> Any:
            is_meant = getattr(self.transaction, "is_meant", False)
            self.transaction.is_meant = False
            return self.around(is_meant and self.occurs("commit"), lambda: call(*args))

        return watched

    def rollback(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A rollback: what was sent before it counts no longer."""

        def watched(*args: Any) -> Any:
            self.transaction.is_meant = False
            return call(*args)

        return watched

    def removal(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The removal of a file."""

        def watched(*args: Any, **options: Any) -> Any:
            self.removed += 1
            if self.moment.hangs_after is not None and self.removed > self.moment.hangs_after:
                time.sleep(60)
            time.sleep(self.moment.slow)
            return self.around(self.occurs("unlink"), lambda: call(*args, **options))

        return watched

    def around(self, is_now: bool, call: Callable[[], Any]) -> Any:
        """The call, with the signal before or after it if it is time."""
        if is_now and self.moment.when == "before":
            self.strike()
        result = call()
        if is_now and self.moment.when == "after":
            self.strike()
        return result

    def strike(self) -> None:
        """Signal this process, or let this thread wait."""
        if self.moment.pause is not None:
            pause = Path(self.moment.pause)
            pause.touch()
            while pause.exists():
                time.sleep(0.02)
            return
        os.kill(os.getpid(), signal.Signals[self.moment.signal])


def patch(watch: Watch) -> None:
    """Put the watch around what gcd sends and removes, and shorten what the moment shortens."""
    from datetime import timedelta
    from importlib import import_module

    from sqlalchemy.engine.default import DefaultDialect

    from gcd import clock

    now, ahead = clock.utc_now, timedelta(seconds=watch.moment.ahead)
    clock.utc_now = lambda: now() + ahead  # before it is anybody's default
    for name, wrap in (
        ("do_execute", watch.statement),
        ("do_executemany", watch.statement),
        ("do_commit", watch.commit),
        ("do_rollback", watch.rollback),
    ):
        setattr(DefaultDialect, name, wrap(getattr(DefaultDialect, name)))
    original = os.unlink
    os.unlink = watch.removal(original)
    os.supports_dir_fd.add(os.unlink)
    for place, seconds in watch.moment.seconds.items():
        module, _, name = place.partition(":")
        assert hasattr(import_module(module), name), place
        setattr(import_module(module), name, timedelta(seconds=seconds))


def main() -> None:
    """Run gcd with an eye on the moment."""
    patch(Watch(Moment(**json.loads(sys.argv.pop(1)))))
    from gcd.cli import main as gcd_main

    sys.argv[0] = "gcd"
    gcd_main()


if __name__ == "__main__":
    main()
