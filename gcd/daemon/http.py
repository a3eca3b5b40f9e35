"""Answers /metrics, /healthz and /readyz over HTTP.

It must never change anything, nor say anything that a stranger may not know.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

from gcd.errors import ConfigError

logger = logging.getLogger(__name__)

CONTENT = "text/plain; charset=utf-8"
METRICS_CONTENT = "text/plain; version=0.0.4; charset=utf-8"
PATIENCE = 10
"""Seconds that a client may take to say what it wants."""

Check = Callable[[], Sequence[str]]
"""What is wrong, one sentence each; nothing where all is well."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What is answered."""

    metrics: Callable[[], bytes]
    health: Check
    readiness: Check

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/metrics":
            text = self.metrics()
            if text:
                return HTTPStatus.OK, METRICS_CONTENT, text
            missing = b"prometheus_client is not installed: pip install 'gcd[metrics]'\n"
            return HTTPStatus.NOT_IMPLEMENTED, CONTENT, missing
        checks: Mapping[str, Check] = {"/healthz": self.health, "/readyz": self.readiness}
        check = checks.get(path)
        if check is None:
            return HTTPStatus.NOT_FOUND, CONTENT, b"/metrics /healthz /readyz\n"
        wrong = check()
        status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
        return status, CONTENT, ("\n".join(wrong or ["ok"]) + "\n").encode()


class Server:
    """The HTTP server, in threads of its own."""

    def __init__(self, listen: str, pages: Pages) -> None:
        """Listen; raises ConfigError where that is impossible."""
        host, port = parse_listen(listen)

        class Handler(BaseHTTPRequestHandler):
            """One request."""

            timeout = PATIENCE
            server_version, sys_version = "gcd", ""

            def do_GET(self) -> None:
                """Answer with a body."""
                self._answer(with_body=True)

            def do_HEAD(self) -> None:
                """Answer without one."""
                self._answer(with_body=False)

            def _answer(self, *, with_body: bool) -> None:
                try:
                    status, content, body = pages.answer(self.path.partition("?")[0])
                except Exception:  # who asks must get an answer, and the log the reason
                    logger.exception("%s cannot be answered", self.path)
                    status, content, body = HTTPStatus.INTERNAL_SERVER_ERROR, CONTENT, b"error\n"
                self.send_response(status)
                self.send_header("Content-Type", content)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Requests are not worth a record."""

        try:
            self._server = _server_class(host)((host, port), Handler)
        except OSError as error:
            problem = f"cannot listen on {listen}: {error.strerror or error}"
            raise ConfigError(
                f"daemon.listen: {problem}",
                problems=[("daemon.listen", problem)],
                hint='choose another port, or "" for no HTTP',
            ) from error
        self.listen = listen
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="gcd-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    """A server whose threads end with the process, and whose clients' errors are their own."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind, without asking the DNS for the host's full name: it may be long in answering."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nobody's error."""


class _Server6(_Server):
    """The same for IPv6."""

    import socket

    address_family = socket.AF_INET6


def _server_class(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9469" or "[::1]:9469"; the configuration has checked the form."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)
