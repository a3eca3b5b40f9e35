"""What systemd is told: the protocol of sd_notify(3), to a manager that the test plays."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from gcd.daemon.notify import LONGEST_STATUS, Notifier


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if address.startswith("@") else address)
        manager.settimeout(5)
        yield manager


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the manager listens."""
    return str(tmp_path / "notify") if request.param == "path" else f"@gcd-test-{uuid.uuid4()}"


@pytest.fixture
def manager(address: str) -> Iterator[socket.socket]:
    with listening(address) as found:
        yield found


def told(manager: socket.socket) -> str:
    return manager.recv(65536).decode()


def test_the_manager_is_told_of_each_step(manager: socket.socket, address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready()
    assert told(manager) == "READY=1"
    notifier.stopping()
    assert told(manager) == "STOPPING=1"
    notifier.alive()
    assert told(manager) == "WATCHDOG=1"


def test_a_reload_says_when_it_began(manager: socket.socket, address: str) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier(address).reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    first, second = told(manager).splitlines()
    assert first == "RELOADING=1"
    name, _, micros = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(micros) <= after


def test_a_status_is_one_line(manager: socket.socket, address: str) -> None:
    notifier = Notifier(address)
    notifier.status("main  at work;\nREADY=1\r\n lab ø")
    assert told(manager) == "STATUS=main at work; READY=1 lab ø"
    notifier.status("x" * 10_000)
    assert told(manager) == "STATUS=" + "x" * LONGEST_STATUS
    notifier.status("")
    assert told(manager) == "STATUS="


def test_a_manager_that_has_gone_is_nobodys_error(address: str) -> None:
    notifier = Notifier(address)
    notifier.ready()
    with listening(address) as manager:
        notifier.ready()
        assert told(manager) == "READY=1"
    notifier.stopping()


def test_a_manager_that_does_not_read_blocks_nobody_for_long(
    manager: socket.socket, address: str
) -> None:
    notifier = Notifier(address)
    manager.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        notifier.alive()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_socket_nothing_is_said(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = Notifier.from_environment(environ)
    monkeypatch.setattr(socket, "socket", None)
    assert notifier == Notifier(None, None)
    for tell in (notifier.ready, notifier.reloading, notifier.stopping, notifier.alive):
        tell()
    notifier.status("x")


def test_the_address_is_looked_for_in_the_process_own_environment(
    manager: socket.socket, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    notifier = Notifier.from_environment()
    notifier.alive()
    assert told(manager) == "WATCHDOG=1"
    assert notifier.watchdog == timedelta(seconds=3)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, timedelta(seconds=30)),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, timedelta(seconds=30)),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_by_the_process_that_it_waits_for(
    environ: dict[str, str], expected: timedelta | None
) -> None:
    found = Notifier.from_environment(environ | {"NOTIFY_SOCKET": "/run/x"})
    assert found == Notifier("/run/x", expected)
