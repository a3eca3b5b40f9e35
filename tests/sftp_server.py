"""OpenSSH's server on the loop-back, with keys of its own, serving the whole file system to who runs the tests.

It must never listen to another machine, nor read the keys of who runs it.
"""

from __future__ import annotations

import getpass
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from gcd.artifacts.base import Options
from gcd.artifacts.sftp import SftpArtifactStore
from tests.object_servers import free_port

SETTINGS = """
ListenAddress 127.0.0.1
Port {port}
HostKey {home}/host
PidFile none
AuthorizedKeysFile {home}/.ssh/authorized_keys
StrictModes no
PasswordAuthentication yes
KbdInteractiveAuthentication no
UsePAM no
PermitRootLogin yes
MaxStartups 64
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""


@dataclass
class SftpServer:
    """A server, and a home folder with what a client needs to log in."""

    home: Path
    port: int
    process: subprocess.Popen[bytes]
    stores: list[SftpArtifactStore] = field(default_factory=list)

    @property
    def authority(self) -> str:
        """User, host and port, as a URI has them."""
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a store needs to reach it."""
        ssh = self.home / ".ssh"
        return {"SFTP_KEY_FILE": f"{ssh}/id", "SFTP_KNOWN_HOSTS": f"{ssh}/known_hosts"}

    def store(
        self, environment: Mapping[str, str] | None = None, **options: Any
    ) -> SftpArtifactStore:
        """The store under test; the server ends its connections."""
        own = self.environment if environment is None else environment
        self.stores.append(SftpArtifactStore(Options(environment=dict(own), **options)))
        return self.stores[-1]

    def close_stores(self) -> None:
        """End every connection."""
        while self.stores:
            self.stores.pop().close()

    def sessions(self) -> list[int]:
        """The processes that serve one connection each: children of the server."""
        pids = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                after = status.read_text().rpartition(")")[2].split()
                if int(after[1]) == self.process.pid:
                    pids.append(int(status.parent.name))
        return pids

    def drop(self) -> None:
        """End every connection as a crash would."""
        for pid in self.sessions():
            with suppress(ProcessLookupError):
                os.kill(pid, 9)


def find_sshd() -> str | None:
    """The program, which is seldom on the path."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def sshd() -> Iterator[SftpServer]:
    """A server that answers; the test is skipped without one, or fails where servers are required."""
    program = find_sshd()
    if program is None:
        text = "no sshd here: `apt-get install openssh-server` brings it"
        if os.environ.get("GCD_TEST_REQUIRE_SERVERS") == "1":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    with TemporaryDirectory(prefix="gcd-test-sshd-") as name:
        home, port = Path(name), free_port()
        (home / ".ssh").mkdir(mode=0o700)
        _make_keys(home, port)
        (home / "sshd_config").write_text(SETTINGS.format(port=port, home=home))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        words = [program, "-D", "-e", "-f", f"{home}/sshd_config"]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        server = SftpServer(home, port, process)
        try:
            _wait(server)
            yield server
        finally:
            server.close_stores()
            server.drop()
            process.terminate()
            process.wait(10)


def _make_keys(home: Path, port: int) -> None:
    """An RSA key for the user: MLflow's client reads no other from ~/.ssh/config."""
    for name, kind in (("host", "ed25519"), ("other", "ed25519"), (".ssh/id", "rsa")):
        words = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-m", "PEM", "-f", f"{home}/{name}"]
        subprocess.run(words, check=True)
    ssh = home / ".ssh"
    (ssh / "authorized_keys").write_text((ssh / "id.pub").read_text())
    key = " ".join((home / "host.pub").read_text().split()[:2])
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n127.0.0.1 {key}\n")
    (ssh / "config").write_text(
        f"Host artifacts\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"Host *\n  IdentityFile {ssh}/id\n"
    )


def _wait(server: SftpServer) -> None:
    for _ in range(200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return
        if server.process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not serve: {(server.home / 'log').read_text()[-2000:]}")


class Cut:
    """A way to a server that can be cut in the middle: a port that passes bytes on."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.left: int | None = None
        """Bytes from the client that still pass, None for all."""
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self.target == 0:
                near.close()
                return
            thread = threading.Thread(target=self._serve, args=(near,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, near: socket.socket) -> None:
        """Pass on what comes from either side, until one ends or it is cut."""
        with near, socket.create_connection(("127.0.0.1", self.target)) as far, suppress(OSError):
            while self.target:
                for source in select.select([near, far], [], [], 0.1)[0]:
                    data = source.recv(65536)
                    self.passed += len(data) if source is near else 0
                    if not data or (self.left is not None and self.passed > self.left):
                        return
                    (far if source is near else near).sendall(data)

    def close(self) -> None:
        """Accept nobody any more."""
        self.target = 0  # this wakes them
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self._threads:
            thread.join()
        self._listener.close()
