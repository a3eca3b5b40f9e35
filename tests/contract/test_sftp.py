"""The store for SFTP keeps the contract on OpenSSH's server, and never leaves the tree it was given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcd.model import Place
from gcd.testing import ODD_KEYS, ArtifactStoreContract
from tests.sftp_server import SftpServer, sshd

TREE = "1/run1/artifacts/"


@pytest.fixture(scope="session")
def ssh() -> Iterator[SftpServer]:
    """One server for all."""
    with sshd() as server:
        yield server


class _OnServer(ArtifactStoreContract):
    unsupported = frozenset(ODD_KEYS)
    folder: Path

    @pytest.fixture(autouse=True)
    def _fresh(self, ssh: SftpServer, tmp_path: Path) -> Iterator[None]:
        self.ssh, self.folder = ssh, tmp_path / "ml flow"
        self.folder.mkdir()
        self.store = ssh.store()
        self.root = self.place(self.folder)
        yield
        ssh.close_stores()

    def place(self, path: Path) -> Place:
        return Place("sftp", self.ssh.authority, str(path).lstrip("/") + "/")

    def absent_root(self) -> Place:
        return self.place(self.folder / "absent")

    def put(self, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def keys(self) -> set[str]:
        return {
            os.path.relpath(os.path.join(where, name), self.folder)
            for where, _, names in os.walk(self.folder)
            for name in names
        }

    def folders(self) -> set[str]:
        return {
            os.path.relpath(os.path.join(where, name), self.folder)
            for where, names, _ in os.walk(self.folder)
            for name in names
        }


class TestContract(_OnServer):
    pass
