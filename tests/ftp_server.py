"""pyftpdlib's server on the loop-back, in this process.

It must never listen to another machine.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

with warnings.catch_warnings(action="ignore"):  # its own, of modules that Python will drop
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import FTPServer

USER, PASSWORD = "mlflow", "p%40ss w0rd"
"""As a URI has them; MLflow decodes the password alone."""


class Served:
    """A server of one folder; `handler` is its own, for a test to change."""

    def __init__(self, folder: Path, rights: str) -> None:
        authorizer = DummyAuthorizer()
        authorizer.add_user(USER, "p@ss w0rd", str(folder), perm=rights)

        class Handler(FTPHandler):  # type: ignore[misc]
            permit_foreign_addresses = False
            use_sendfile = False

        self.handler: Any = Handler
        Handler.authorizer = authorizer
        self.authorizer = authorizer
        self._server = FTPServer(("127.0.0.1", 0), Handler, ioloop=IOLoop())
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._is_over = False
        self._thread.start()

    def _serve(self) -> None:
        while not self._is_over:
            self._server.serve_forever(timeout=0.02, blocking=False)
        self._server.close_all()

    @property
    def uri(self) -> str:
        """With the password."""
        return f"ftp://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    @property
    def authority(self) -> str:
        """Without."""
        return f"{USER}@127.0.0.1:{self.port}"

    def close(self) -> None:
        """End it and every connection."""
        self._is_over = True
        self._thread.join()


@contextmanager
def ftp_server(folder: Path, rights: str = "elradfmwMT") -> Iterator[Served]:
    """A server that is closed at the end."""
    logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)
    server = Served(folder, rights)
    try:
        yield server
    finally:
        server.close()
