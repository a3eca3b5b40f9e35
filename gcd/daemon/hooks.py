"""Tells others how a cycle ended: a command, or a ping of a monitor in the manner of healthchecks.

It must never hold a cycle up: hooks run in a thread of their own, each within its time.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import BoundedSemaphore

from gcd.config.sections import Hooks

logger = logging.getLogger(__name__)

MOST_WAITING = 20
"""Hooks that wait for their turn; what comes on top is left out, and said so."""
SUPERVISORS = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})
"""What systemd tells the daemon, and not what the daemon starts."""
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
        return json.dumps({**self.report, "store": self.store, "state": self.state})


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
            logger.warning("the hook's %s failed: %s", kind, why(error))
            self._failed(kind)

    def close(self, *, wait: bool) -> None:
        """Finish what is under way; with `wait`, what waits too."""
        self._pool.shutdown(wait=wait, cancel_futures=not wait)


def run(hooks: Hooks, news: News) -> None:
    """Run the command, with the report on its standard input. Raises where it fails."""
    inherited = {name: text for name, text in os.environ.items() if name not in SUPERVISORS}
    environ = {
        **inherited,
        "GCD_HOOK_STORE": news.store,
        "GCD_HOOK_STATE": news.state,
        "GCD_HOOK_CYCLE": "" if news.cycle is None else str(news.cycle),
    }
    command, seconds = list(hooks.command), hooks.timeout.total_seconds()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environ,
        start_new_session=True,
    ) as process:
        try:
            process.communicate(news.text(), timeout=seconds)
        except BaseException:
            with suppress(ProcessLookupError):  # what it has started must not outlive it
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def ping(hooks: Hooks, news: News) -> None:
    """Tell the monitor: its URL for what went well, `/fail` below it for what did not."""
    url = urllib.parse.urlsplit(hooks.ping_url)
    path = url.path.rstrip("/") + "/fail" if news.state == "failed" else url.path
    user, at, host = url.netloc.rpartition("@")
    request = urllib.request.Request(
        url._replace(netloc=host, path=path, fragment="").geturl(),
        data=news.text().encode(),
        headers={"Content-Type": "application/json", "User-Agent": "gcd"},
    )
    if at:
        login = base64.b64encode(urllib.parse.unquote_to_bytes(user)).decode()
        request.add_unredirected_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(request, timeout=hooks.timeout.total_seconds()):
        pass


def why(error: BaseException) -> str:
    """Why a hook failed, without its words or its URL: there may be secrets in them."""
    match error:
        case subprocess.CalledProcessError():
            return f"exit status {error.returncode}"
        case urllib.error.HTTPError():
            return f"HTTP status {error.code}"
        case subprocess.TimeoutExpired() | TimeoutError():
            return "it took too long"
        case urllib.error.URLError(reason=BaseException() as reason):
            return why(reason)
        case OSError(strerror=str() as text):
            return text
    return type(error).__name__
