"""Stops gcd at chosen instants: `python pauser.py PLAN ARGUMENTS...` runs gcd and halts it there.

An instant is a statement, a commit, or the removal of a file or folder, counted from the beginning of
the cycle on. Where `killer.py` ends gcd, it stands still here by SIGSTOP, all threads of it, whatever
transaction is open, until SIGCONT; then it goes on to the next instant.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

BEGUN = re.compile(r"INSERT INTO alembic_gcd_cycle\b")
ENTITY = re.compile(r"(?:m-|tr-)?[0-9a-f]{32}")


@dataclass(frozen=True)
class Plan:
    """The instants to stop at, and where to say so; none: they are only counted."""

    path: str
    instants: tuple[int, ...] = ()


@dataclass(frozen=True)
class Instant:
    """Where gcd stands: before this event."""

    number: int
    event: str
    words: tuple[str, ...]
    """The ids that the event is about; an experiment's as "experiment N"."""


# -- for the tests -------------------------------------------------------------------------------


class Paused:
    """A gcd that stops now and then."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.process, self.path = process, path
        self.met: list[Instant] = []

    def instants(self) -> Iterator[Instant]:
        """Each instant, with gcd standing still; it goes on when the next one is asked for."""
        from tests.stopper import state, wait_until

        while True:
            wait_until(lambda: state(self.process) in "TZ", "gcd neither stops nor ends", 120)
            if state(self.process) == "Z":
                return
            lines = self.path.read_text().splitlines()
            found = json.loads(lines[-1])
            self.met.append(Instant(found["number"], found["event"], tuple(found["words"])))
            yield self.met[-1]
            self.process.send_signal(signal.SIGCONT)
            number = len(lines)
            wait_until(
                lambda number=number: (
                    state(self.process) not in "T"
                    or len(self.path.read_text().splitlines()) > number
                ),
                "gcd does not go on",
            )

    def ended(self) -> subprocess.CompletedProcess[str]:
        """What has become of it."""
        from tests.stopper import ended

        return ended(self.process)


@contextmanager
def paused(plan: Plan, *arguments: object, uri: str, env: dict[str, str]) -> Iterator[Paused]:
    """This file as a program; what is left of it is killed at the end of the block."""
    import subprocess

    from tests import nursery
    from tests.program import command, empty_folder, environment

    words = command(*arguments, uri=uri, driver=Path(__file__))
    Path(plan.path).write_text("")
    process = nursery.popen(
        [*words[:2], json.dumps(asdict(plan)), *words[2:]],
        cwd=empty_folder(),
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Paused(process, Path(plan.path))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def count_instants(path: Path, *arguments: object, uri: str, env: dict[str, str]) -> int:
    """How many instants a whole cycle has."""
    with paused(Plan(str(path)), *arguments, uri=uri, env=env) as gc:
        done = gc.ended()
    assert done.returncode == 0, done.stderr
    return int(path.read_text())


# -- in the process that stops -------------------------------------------------------------------


class Watch:
    """Counts instants from the beginning of the cycle on, and stops at some of them."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.lock = plan, threading.Lock()
        self.count, self.has_begun = 0, False
        self.latest = threading.local()
        """What the transaction of each thread is about: commits and removals say nothing themselves."""

    def statement(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call whose second argument but one is SQL, with its parameters after it."""

        def watched(dialect: Any, cursor: Any, sql: str, parameters: Any, *rest: Any) -> Any:
            self.has_begun = self.has_begun or bool(BEGUN.search(sql))
            words = ENTITY.findall(repr(parameters))
            if "FROM experiments" in sql and " IN " in sql:
                words += [f"experiment {n}" for n in re.findall(r"\d+", repr(parameters))]
            if words:
                self.latest.words = words
            self.meet(sql.split("\n")[0][:80])
            return call(dialect, cursor, sql, parameters, *rest)

        return watched

    def other(self, event: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """A commit, or the removal of a file."""

        def watched(*args: Any, **options: Any) -> Any:
            self.meet(event)
            return call(*args, **options)

        return watched

    def meet(self, event: str) -> None:
        """Count an instant, and stand still here if it is one of the plan's."""
        if not self.has_begun:
            return
        with self.lock:
            self.count += 1
            number = self.count
        if number not in self.plan.instants:
            return
        words = getattr(self.latest, "words", [])
        line = json.dumps({"number": number, "event": event, "words": words})
        with self.lock, open(self.plan.path, "a") as file:
            file.write(line + "\n")
        os.kill(os.getpid(), signal.SIGSTOP)


def patch(watch: Watch) -> None:
    """Put the watch around everything that reads or changes something."""
    from sqlalchemy.engine.default import DefaultDialect

    for name in ("do_execute", "do_executemany"):
        setattr(DefaultDialect, name, watch.statement(getattr(DefaultDialect, name)))
    DefaultDialect.do_commit = watch.other("commit", DefaultDialect.do_commit)  # type: ignore[method-assign]
    for name in ("unlink", "rmdir"):
        original = getattr(os, name)
        setattr(os, name, watch.other(name, original))
        for supports in (os.supports_dir_fd, os.supports_follow_symlinks):
            if original in supports:
                supports.add(getattr(os, name))


def main() -> None:
    """Run gcd under a plan."""
    content = json.loads(sys.argv.pop(1))
    watch = Watch(Plan(content["path"], tuple(content["instants"])))
    if not watch.plan.instants:
        atexit.register(lambda: Path(watch.plan.path).write_text(str(watch.count)))
    patch(watch)
    from gcd.cli import main as gcd_main

    sys.argv[0] = "gcd"
    gcd_main()


if __name__ == "__main__":
    main()
