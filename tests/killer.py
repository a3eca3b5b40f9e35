"""Kills gcd at a chosen event: `python killer.py PLAN ARGUMENTS...` runs gcd and dies on the spot.

PLAN is `before:commit:3` (the third commit does not happen), `after:unlink:1`, or `count:FILE`,
which kills nothing and writes how often each event happened. Events are database commits, SQL
statements, and the removal of files and folders; SIGKILL leaves gcd no chance to tidy up.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVENTS = ("commit", "statement", "unlink", "rmdir")


@dataclass(frozen=True)
class Point:
    """Where to kill."""

    when: str
    event: str
    number: int

    def __str__(self) -> str:
        return f"{self.when}:{self.event}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Point:
        """From its text."""
        when, event, number = text.split(":")
        if when not in ("before", "after") or event not in EVENTS:
            raise SystemExit(f"no such point: {text}")
        return cls(when, event, int(number))


# -- for the tests -------------------------------------------------------------------------------


def points(
    counts: dict[str, int],
    event: str,
    *,
    most: int | None = None,
    whens: Sequence[str] = ("before", "after"),
) -> list[Point]:
    """Every occurrence of the event, before and after; `most` of them, evenly spread."""
    found = [Point(w, event, n) for n in range(1, counts.get(event, 0) + 1) for w in whens]
    if most is None or len(found) <= most:
        return found
    return [found[i * (len(found) - 1) // (most - 1)] for i in range(most)]


def count_events(folder: Path, *arguments: object, uri: str, **options: Any) -> dict[str, int]:
    """Let gcd run to its end and tell how often each event happened."""
    path = folder / "events.json"
    done = run_under(f"count:{path}", *arguments, uri=uri, **options)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(path.read_text()))


def kill_at(point: Point, *arguments: object, uri: str, **options: Any) -> bool:
    """Run gcd up to the point; False if it came to its end without reaching it."""
    done = run_under(str(point), *arguments, uri=uri, **options)
    assert done.returncode in (0, -signal.SIGKILL), f"{done.returncode}\n{done.stderr[-3000:]}"
    return bool(done.returncode)


def run_under(plan: str, *arguments: object, uri: str, **options: Any) -> Any:
    """Run this file as a program."""
    from tests import nursery
    from tests.program import TIMEOUT, command, empty_folder, environment

    words = command(*arguments, uri=uri, driver=Path(__file__))
    return nursery.run(
        [*words[:2], plan, *words[2:]],
        cwd=empty_folder(),
        env=environment(options.get("env")),
        timeout=TIMEOUT,
    )


# -- in the process that dies --------------------------------------------------------------------


class Watch:
    """Counts events, and kills the process at one of them."""

    def __init__(self, point: Point | None) -> None:
        self.point, self.counts, self.lock = point, Counter[str](), threading.Lock()

    def around(self, event: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, with death before or after its chosen occurrence."""

        @functools.wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                self.counts[event] += 1
                number = self.counts[event]
            self.strike("before", event, number)
            result = call(*args, **kwargs)
            self.strike("after", event, number)
            return result

        return watched

    def strike(self, when: str, event: str, number: int) -> None:
        """Die here, if here it is."""
        if self.point == Point(when, event, number):
            os.kill(os.getpid(), signal.SIGKILL)


def patch(watch: Watch) -> None:
    """Put the watch around everything that changes something."""
    from sqlalchemy.engine.default import DefaultDialect

    for name, event in (
        ("do_commit", "commit"),
        ("do_execute", "statement"),
        ("do_executemany", "statement"),
    ):
        setattr(DefaultDialect, name, watch.around(event, getattr(DefaultDialect, name)))
    for name, event in (("unlink", "unlink"), ("remove", "unlink"), ("rmdir", "rmdir")):
        original = getattr(os, name)
        setattr(os, name, watch.around(event, original))
        for supports in (os.supports_dir_fd, os.supports_follow_symlinks):
            if original in supports:
                supports.add(getattr(os, name))


def main() -> None:
    """Run gcd under a plan."""
    plan, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    watch = Watch(None if plan.startswith("count:") else Point.parse(plan))
    if watch.point is None:
        path = Path(plan.removeprefix("count:"))
        atexit.register(lambda: path.write_text(json.dumps(watch.counts)))
    patch(watch)
    from gcd.cli import main as gcd_main

    sys.argv[0] = "gcd"
    gcd_main()


if __name__ == "__main__":
    main()
