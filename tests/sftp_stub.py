"""A small SFTP server in this process that asks for a password: unlike OpenSSH, it tells nothing of disks and links.

It must never listen to another machine.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paramiko

USER, PASSWORD = "mlflow", "p@ss:word"


class _Door(paramiko.ServerInterface):
    """Lets in who knows the password."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def check_auth_password(self, username: str, password: str) -> int:
        self.asked.append(password)
        right = (username, password) == (USER, PASSWORD)
        return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED


def _status(call: Any, *arguments: Any) -> Any:
    try:
        call(*arguments)
    except OSError as error:
        return paramiko.SFTPServer.convert_errno(error.errno)
    return paramiko.SFTP_OK


class _Files(paramiko.SFTPServerInterface):
    """Files of this machine; paths are made tidy, links are not followed by that."""

    def __init__(self, server: Any, refuses: Callable[[], bool]) -> None:
        super().__init__(server)
        self.refuses = refuses

    def list_folder(self, path: str) -> Any:
        try:
            return [
                paramiko.SFTPAttributes.from_stat(entry.stat(follow_symlinks=False), entry.name)
                for entry in os.scandir(path)
            ]
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    def lstat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(os.lstat(path))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    def remove(self, path: str) -> Any:
        if self.refuses():
            return paramiko.SFTP_PERMISSION_DENIED
        return _status(os.remove, path)

    def rmdir(self, path: str) -> Any:
        return _status(os.rmdir, path)


class Stub:
    """The server; `asked` are the passwords that it was given."""

    def __init__(self) -> None:
        self.key = paramiko.ECDSAKey.generate()
        self.asked: list[str] = []
        self.refuses = False
        """Whether nothing may be removed."""
        self._transports: list[paramiko.Transport] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def known_hosts(self, folder: Path) -> Path:
        """A file of known hosts that trusts it."""
        path = folder / "known_hosts"
        path.write_text(f"[127.0.0.1]:{self.port} {self.key.get_name()} {self.key.get_base64()}\n")
        return path

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                transport = paramiko.Transport(near)
                transport.set_log_channel("gcd.artifacts.paramiko")
                transport.add_server_key(self.key)
                transport.set_subsystem_handler(
                    "sftp", paramiko.SFTPServer, _Files, lambda: self.refuses
                )
                self._transports.append(transport)
                with suppress(paramiko.SSHException, EOFError):
                    transport.start_server(server=_Door(self.asked))

    def close(self) -> None:
        """End it and what is connected."""
        self._listener.close()
        for transport in self._transports:
            transport.close()


@contextmanager
def stub() -> Iterator[Stub]:
    """A server that is closed at the end."""
    server = Stub()
    try:
        yield server
    finally:
        server.close()
