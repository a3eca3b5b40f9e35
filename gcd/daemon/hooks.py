"""Tells others how a cycle ended: a command, or a ping of a monitor in the manner of healthchecks.

It must never hold a cycle up: hooks run in a thread of their own, each within its time.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore

from gcd.config.sections import Hooks
from gcd.logs import mask

logger = logging.getLogger(__name__)

MOST_WAITING = 20
"""Hooks that wait for their turn; what comes on top is left out, and said so."""
STATES = {"done": "ok", "partial": "partial", "failed": "failed"}
"""How hooks call the end of a cycle; others are nobody's news."""


@dataclass(frozen=True, slots=True)
class News:
    """The end of a cycle."""

    store: str
    state: str
    """One of the values of STATES."""
    cycle: int | None
    report: Mapping[str, object]

    def text(self) -> str:
        """The report as JSON."""
        return json.dumps({"store": self.store, "state": self.state, **self.report})


class Messenger:
    """Runs hooks, one after another, beside the cycles."""

    def __init__(self, failed: Callable[[str], None]) -> None:
        """`failed` is called with the kind of a hook that failed."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="gcd-hook")
        self._room = BoundedSemaphore(MOST_WAITING)
        self._failed = failed

    def tell(self, hooks: Hooks, news: News) -> None:
        """Hand the hooks of a configuration their news; returns at once."""
        if hooks.command and news.state in hooks.states:
            self._submit("command", lambda: run(hooks, news))
        if hooks.ping_url:
            self._submit("ping", lambda: ping(hooks, news))

    def _submit(self, kind: str, work: Callable[[], None]) -> None:
        if not self._room.acquire(blocking=False):
            logger.warning("too many hooks wait: a %s is left out", kind)
            self._failed(kind)
            return
        self._pool.submit(work).add_done_callback(lambda done: self._done(kind, done))

    def _done(self, kind: str, done: Future[None]) -> None:
        self._room.release()
        error = None if done.cancelled() else done.exception()
        if error is not None:
            logger.warning("the hook's %s failed: %s", kind, mask(str(error)))
            self._failed(kind)

    def close(self, *, wait: bool) -> None:
        """Finish what is under way; with `wait`, what waits too."""
        self._pool.shutdown(wait=wait, cancel_futures=not wait)


def run(hooks: Hooks, news: News) -> None:
    """Run the command, with the report on its standard input. Raises where it fails."""
    environ = {
        **os.environ,
        "GCD_HOOK_STORE": news.store,
        "GCD_HOOK_STATE": news.state,
        "GCD_HOOK_CYCLE": "" if news.cycle is None else str(news.cycle),
    }
    subprocess.run(
        list(hooks.command),
        input=news.text(),
        text=True,
        env=environ,
        timeout=hooks.timeout.total_seconds(),
        check=True,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def ping(hooks: Hooks, news: News) -> None:
    """Tell the monitor: its URL for what went well, `/fail` below it for what did not."""
    url = urllib.parse.urlsplit(hooks.ping_url)
    path = url.path.rstrip("/") + "/fail" if news.state == "failed" else url.path
    request = urllib.request.Request(
        url._replace(path=path).geturl(),
        data=news.text().encode(),
        headers={"Content-Type": "application/json", "User-Agent": "gcd"},
    )
    with urllib.request.urlopen(request, timeout=hooks.timeout.total_seconds()):
        pass
