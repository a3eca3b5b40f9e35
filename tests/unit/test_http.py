"""The pages: what a monitor is answered, and that nothing but them is."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from gcd.daemon.http import Pages, Server, parse_listen
from gcd.errors import ConfigError


class Answer(NamedTuple):
    status: int
    content: str
    body: bytes
    length: int


class Site:
    """A server on a free port, and what its pages have to say."""

    def __init__(self, listen: str = "127.0.0.1:0") -> None:
        self.numbers = b"gcd_x 1\n"
        self.wrong: list[str] = []
        self.unready: list[str] = []
        self.server = Server(
            listen, Pages(lambda: self.numbers, lambda: self.wrong, lambda: self.unready)
        )
        self.host = parse_listen(listen)[0]

    def ask(self, path: str, method: str = "GET") -> Answer:
        connection = http.client.HTTPConnection(self.host, self.server.port, timeout=10)
        try:
            connection.request(method, path)
            found = connection.getresponse()
            content = found.getheader("Content-Type", "")
            length = int(found.getheader("Content-Length", "-1"))
            return Answer(found.status, content, found.read(), length)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    """Closing a server takes a while; one is enough for most."""
    found = Site()
    yield found
    found.server.close()


@pytest.fixture
def site(shared: Site) -> Site:
    shared.numbers, shared.wrong, shared.unready = b"gcd_x 1\n", [], []
    return shared


def test_metrics_are_in_prometheus_text_format(site: Site) -> None:
    answer = site.ask("/metrics")
    assert answer == (200, "text/plain; version=0.0.4; charset=utf-8", b"gcd_x 1\n", 8)
    site.numbers = b"gcd_x 2\n"
    assert site.ask("/metrics?name[]=x").body == b"gcd_x 2\n"


def test_metrics_without_their_library_say_what_to_install(site: Site) -> None:
    site.numbers = b""
    answer = site.ask("/metrics")
    assert answer.status == 501
    assert b"pip install 'gcd[metrics]'" in answer.body


def test_checks_are_answered_each_by_its_own(site: Site) -> None:
    assert site.ask("/healthz")[::2] == (200, b"ok\n")
    assert site.ask("/readyz?verbose")[::2] == (200, b"ok\n")
    site.unready = ["gcd is stopping", "the last cycle of main failed: fuse"]
    assert site.ask("/healthz").status == 200
    assert site.ask("/readyz")[::2] == (
        503, b"gcd is stopping\nthe last cycle of main failed: fuse\n",
    )  # fmt: skip
    site.wrong, site.unready = ["the cycle of main hangs"], []
    assert site.ask("/healthz")[::2] == (503, b"the cycle of main hangs\n")
    assert site.ask("/readyz").status == 200


@pytest.mark.parametrize(
    "path", ["/", "/metrics/", "/healthz/x", "/etc/passwd", "/../metrics", "*"]
)
def test_nothing_else_is_there(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert answer[::2] == (404, b"/metrics /healthz /readyz\n")


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/x"])
def test_head_is_get_without_a_body(site: Site, path: str) -> None:
    get, head = site.ask(path), site.ask(path, "HEAD")
    assert head == (*get[:2], b"", get.length)
    assert get.length == len(get.body) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(site: Site, method: str) -> None:
    assert site.ask("/healthz", method).status == 501


def test_a_page_that_fails_is_an_error_and_a_record(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    del site.numbers
    answer = site.ask("/metrics")
    assert answer[::2] == (500, b"error\n")
    assert "/metrics cannot be answered" in caplog.text
    assert "AttributeError" in caplog.text


def test_a_slow_client_holds_up_nobody(site: Site) -> None:
    with (
        socket.create_connection(("127.0.0.1", site.server.port)) as silent,
        socket.create_connection(("127.0.0.1", site.server.port)) as slow,
    ):
        slow.sendall(b"GET /heal")
        began = time.monotonic()
        assert all(site.ask("/healthz").status == 200 for _ in range(5))
        assert time.monotonic() - began < 5
        slow.sendall(b"thz HTTP/1.0\r\n\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.0 200 ")
        silent.close()


def threads() -> int:
    return sum(each.name == "gcd-http" for each in threading.enumerate())


def test_closing_does_not_wait_for_a_slow_client() -> None:
    before = threads()
    site = Site()
    assert threads() == before + 1
    with socket.create_connection(("127.0.0.1", site.server.port)):
        began = time.monotonic()
        site.server.close()
        assert time.monotonic() - began < 5
    assert threads() == before
    with pytest.raises(ConnectionRefusedError):
        site.ask("/healthz")


def test_a_client_that_goes_away_is_nobodys_error(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", site.server.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(b"GET /metrics HTTP/1.0\r\n")
    assert site.ask("/healthz").status == 200
    assert capfd.readouterr() == ("", "")


def test_ipv6_is_listened_on_where_it_is_there() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    site = Site("[::1]:0")
    try:
        assert site.ask("/healthz").status == 200
    finally:
        site.server.close()


def test_a_port_in_use_is_refused_with_its_key(site: Site) -> None:
    listen = f"127.0.0.1:{site.server.port}"
    error = refused(listen)
    assert error.exit_code == 10
    [(key, problem)] = error.problems
    assert key == "daemon.listen"
    assert f"cannot listen on {listen}: Address already in use" in problem
    assert "another port" in (error.hint or "")


@pytest.mark.parametrize("listen", ["[.]:9469", "a..b:9469", f"{'x' * 70}:9469", "192.0.2.1:9469"])
def test_a_host_that_is_none_here_is_refused_with_its_key(listen: str) -> None:
    assert refused(listen).problems[0][0] == "daemon.listen"


def refused(listen: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Server(listen, Pages(bytes, list, list))
    return caught.value


def test_nobody_asks_the_dns_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_up(name: str = "") -> str:
        raise AssertionError(name)

    monkeypatch.setattr(socket, "getfqdn", looked_up)
    Site().server.close()


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:9469", ("127.0.0.1", 9469)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:9469", ("::1", 9469)),
    ],
)
def test_host_and_port_are_read(listen: str, expected: tuple[str, int]) -> None:
    assert parse_listen(listen) == expected


def test_pages_are_asked_only_when_they_are_shown() -> None:
    asked: list[str] = []

    def noted(name: str) -> Callable[[], list[str]]:
        return lambda: asked.append(name) or []  # type: ignore[func-returns-value]

    pages = Pages(lambda: b"x", noted("health"), noted("ready"))
    pages.answer("/metrics")
    pages.answer("/readyz")
    assert asked == ["ready"]
