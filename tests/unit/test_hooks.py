"""Hooks: who is told of which cycles, and that neither they nor their secrets are in the way."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gcd.config.sections import Hooks
from gcd.daemon.hooks import MOST_WAITING, STATES, Messenger, News
from gcd.daemon.metrics import HOOKS

SECRET = "hunter2"
REPORT = {"cycle": 7, "rows": 12}
LONG = timedelta(seconds=30)


def news(state: str = "ok", cycle: int | None = 7) -> News:
    return News("main", state, cycle, REPORT)


class Told:
    """A messenger, and the kinds of hooks of which it said that they failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.messenger = Messenger(self.failed.append)

    def tell(self, *each: News, **hooks: Any) -> None:
        """Tell, and wait until all is said."""
        for one in each:
            self.messenger.tell(Hooks(**{"timeout": LONG, **hooks}), one)
        self.messenger.close(wait=True)


@pytest.fixture
def told() -> Iterator[Told]:
    found = Told()
    yield found
    found.messenger.close(wait=True)


# -- a command -----------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """Makes a command of some lines of Python, in which `out` is a file to write to."""

    def make(*lines: str) -> tuple[str, ...]:
        script = tmp_path / "hook.py"
        text = [f"out = open({str(tmp_path / 'out')!r}, 'a')", "import json, os, sys, time", *lines]
        script.write_text("\n".join(text))
        return (sys.executable, "-S", "-E", str(script), "a word")

    return make


def written(tmp_path: Path) -> str:
    path = tmp_path / "out"
    return path.read_text() if path.exists() else ""


def test_a_command_gets_its_words_the_report_and_an_environment(
    told: Told,
    command: Callable[..., tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEAM", "ml")
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "1")
    words = command(
        "print('noise')",
        "json.dump([sys.argv[1:], json.load(sys.stdin), dict(os.environ)], out)",
    )
    told.tell(news("failed"), command=words, states=("failed",))
    arguments, report, environ = json.loads(written(tmp_path))
    assert arguments == ["a word"]
    assert report == {"store": "main", "state": "failed", "cycle": 7, "rows": 12}
    assert {name: text for name, text in environ.items() if name.startswith("GCD_HOOK")} == {
        "GCD_HOOK_STORE": "main",
        "GCD_HOOK_STATE": "failed",
        "GCD_HOOK_CYCLE": "7",
    }
    assert environ["TEAM"] == "ml"
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & environ.keys()
    assert told.failed == []


def test_a_cycle_without_a_number_has_none_in_the_environment(
    told: Told, command: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    words = command("out.write(repr(os.environ['GCD_HOOK_CYCLE']))")
    told.tell(news("failed", None), command=words, states=("failed",))
    assert written(tmp_path) == "''"


def test_a_command_runs_after_cycles_that_ended_in_its_states(
    told: Told, command: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    words = command("print(os.environ['GCD_HOOK_STATE'], file=out)")
    told.tell(*map(news, STATES.values()), command=words)
    assert written(tmp_path).split() == ["partial", "failed"]
    again = Told()
    again.tell(*map(news, STATES.values()), command=words, states=("ok",))
    assert written(tmp_path).split() == ["partial", "failed", "ok"]


def test_a_command_need_not_read_its_input(
    told: Told, command: Callable[..., tuple[str, ...]]
) -> None:
    big = News("main", "failed", 1, {"error": "x" * 10**6})
    told.tell(big, command=command(), states=("failed",))
    assert told.failed == []


def test_a_command_that_fails_is_counted_and_told_without_its_words(
    told: Told, command: Callable[..., tuple[str, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    told.tell(news("failed"), command=(*command("sys.exit(3)"), "--token", SECRET))
    assert told.failed == ["command"]
    assert "the hook's command failed: exit status 3" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(("word", "why"), [("/no/such/command", "No such file"), ("/", "denied")])
def test_a_command_that_cannot_run_is_counted_and_told(
    told: Told, caplog: pytest.LogCaptureFixture, word: str, why: str
) -> None:
    told.tell(news("failed"), command=(word, SECRET))
    assert told.failed == ["command"]
    assert why in caplog.text
    assert SECRET not in caplog.text


def test_a_command_that_takes_too_long_is_killed_with_what_it_started(
    told: Told,
    command: Callable[..., tuple[str, ...]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = command(
        "child = os.fork()",
        "print(os.getpid(), file=out, flush=True)",
        "time.sleep(60)",
    )
    began = time.monotonic()
    told.tell(news("failed"), command=words, timeout=timedelta(seconds=2))
    assert time.monotonic() - began < 20
    assert told.failed == ["command"]
    assert "it took too long" in caplog.text
    pids = [int(word) for word in written(tmp_path).split()]
    assert len(pids) == 2
    try:
        assert within(10, lambda: not any(map(is_running, pids)))
    finally:
        for pid in filter(is_running, pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # killed; who has to take note of it may be slow


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)
    return is_so()


# -- a ping --------------------------------------------------------------------------------------


class Monitor:
    """A monitor in the manner of healthchecks."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict[str, str], Any]] = []
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()
        monitor = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                monitor.posts.append((self.path, dict(self.headers), json.loads(body)))
                monitor.answers.wait(60)
                with suppress(OSError):  # who asked has gone
                    self.send_response(monitor.status)
                    self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Not here."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.answers.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    found = Monitor()
    yield found
    found.close()


@pytest.mark.parametrize(
    ("path", "pinged", "failed"),
    [
        ("/ping/id", "/ping/id", "/ping/id/fail"),
        ("/ping/id/", "/ping/id/", "/ping/id/fail"),
        ("/ping/id?a=b", "/ping/id?a=b", "/ping/id/fail?a=b"),
        ("", "/", "/fail"),
    ],
)
def test_a_monitor_is_pinged_after_each_cycle(
    told: Told, monitor: Monitor, path: str, pinged: str, failed: str
) -> None:
    told.tell(*map(news, STATES.values()), ping_url=f"http://{monitor.host}{path}")
    assert [each[0] for each in monitor.posts] == [pinged, pinged, failed]
    states = [body["state"] for _, _, body in monitor.posts]
    assert states == ["ok", "partial", "failed"]
    assert all(body["rows"] == 12 and body["store"] == "main" for _, _, body in monitor.posts)
    assert monitor.posts[0][1]["Content-Type"] == "application/json"
    assert "Authorization" not in monitor.posts[0][1]
    assert told.failed == []


def test_a_login_in_the_url_is_a_login(told: Told, monitor: Monitor) -> None:
    told.tell(news(), ping_url=f"http://me:{SECRET}%40x@{monitor.host}/ping")
    [(path, headers, _)] = monitor.posts
    assert path == "/ping"
    kind, _, login = headers["Authorization"].partition(" ")
    assert (kind, base64.b64decode(login)) == ("Basic", f"me:{SECRET}@x".encode())
    assert headers["Host"] == monitor.host


@pytest.mark.parametrize("status", [404, 500])
def test_a_monitor_that_refuses_is_counted_and_told(
    told: Told, monitor: Monitor, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    monitor.status = status
    told.tell(news(), ping_url=f"http://{monitor.host}/{SECRET}")
    assert told.failed == ["ping"]
    assert f"the hook's ping failed: HTTP status {status}" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:{SECRET}@127.0.0.1:1/{SECRET}?token={SECRET}",
        f"http://127.0.0.1:{SECRET}/",
        f"http://127.0.0.1:1/a b/{SECRET}",
        f"nonsense://{SECRET}/",
    ],
)
def test_a_secret_of_the_url_is_in_no_record(
    told: Told, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    with caplog.at_level(logging.DEBUG):
        told.messenger.tell(
            Hooks.model_construct(None, command=(), ping_url=url, timeout=LONG), news()
        )
        told.messenger.close(wait=True)
    assert told.failed == ["ping"]
    assert "the hook's ping failed" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in repr(Hooks(ping_url="https://x/" + SECRET))


def test_a_monitor_that_does_not_answer_is_given_up(
    told: Told, monitor: Monitor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.answers.clear()
    began = time.monotonic()
    told.tell(news(), ping_url=f"http://{monitor.host}/", timeout=timedelta(seconds=0.3))
    assert time.monotonic() - began < 10
    assert told.failed == ["ping"]
    assert "it took too long" in caplog.text


# -- beside the cycles ---------------------------------------------------------------------------


def test_both_are_told_and_one_does_not_miss_the_others_failure(
    told: Told, monitor: Monitor, command: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    words = command("out.write('told')", "sys.exit(1)")
    told.tell(news("failed"), command=words, ping_url=f"http://{monitor.host}/")
    assert written(tmp_path) == "told"
    assert len(monitor.posts) == 1
    assert told.failed == ["command"]


def test_without_hooks_nobody_is_told(told: Told) -> None:
    told.tell(*map(news, STATES.values()))
    assert told.failed == []
    assert set(STATES.values()) == {"ok", "partial", "failed"}
    assert set(HOOKS) == {"command", "ping"}


def test_telling_never_waits_and_what_is_too_much_is_counted(
    told: Told, monitor: Monitor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.answers.clear()
    hooks = Hooks(ping_url=f"http://{monitor.host}/", timeout=LONG)
    began = time.monotonic()
    for _ in range(MOST_WAITING + 3):
        told.messenger.tell(hooks, news())
    assert time.monotonic() - began < 5
    assert told.failed == ["ping"] * 3
    assert "too many hooks wait: a ping is left out" in caplog.text
    monitor.answers.set()
    assert within(10, lambda: len(monitor.posts) == MOST_WAITING)
    told.tell(news(), ping_url=f"http://{monitor.host}/")  # there is room again
    assert len(monitor.posts) == MOST_WAITING + 1
    assert told.failed == ["ping"] * 3


def test_closing_in_a_hurry_leaves_out_what_waits(monitor: Monitor) -> None:
    told = Told()
    monitor.answers.clear()
    for _ in range(5):
        told.messenger.tell(Hooks(ping_url=f"http://{monitor.host}/", timeout=LONG), news())
    assert within(10, lambda: len(monitor.posts) == 1)
    began = time.monotonic()
    told.messenger.close(wait=False)
    assert time.monotonic() - began < 5
    monitor.answers.set()
    told.messenger.close(wait=True)
    assert len(monitor.posts) == 1
    assert told.failed == []
